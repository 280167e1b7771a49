"""What inline mode remembers: each note once, until it is settled, over crashes and damage."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from exporters.otlp.notes import Note, Notes


def note(number: int, trace: int = 1) -> Note:
    ids = {"trace_id": trace.to_bytes(16, "big"), "span_id": number.to_bytes(8, "big")}
    return Note(verdict=f"v{number}", tenant="t", kind=2, event=b"e" * number, child=b"c", **ids)


def trace(number: int) -> set[bytes]:
    return {number.to_bytes(16, "big")}


def verdicts(notes: list[Note]) -> list[str]:
    return [each.verdict for each in notes]


def test_a_note_is_found_by_its_trace_once_a_window_has_begun(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    assert notes.add([note(1), note(2), note(3, trace=2), note(1)], before=5) == 1
    assert (len(notes), notes.size) == (3, 1 + 2 + 3 + 3)
    assert notes.about(trace(1)) == []
    notes.begin(7)
    assert verdicts(notes.about(trace(1))) == ["v1", "v2"]
    assert verdicts(notes.about(trace(2) | trace(9))) == ["v3"]
    notes.add([note(4)], before=6)
    assert verdicts(notes.about(trace(1))) == ["v1", "v2"], "it came after the window had begun"
    assert notes.about(trace(1))[1] == Note(**{**fields(note(2)), "seq": 2})


def fields(of: Note) -> dict[str, Any]:
    return {name: getattr(of, name) for name in Note.__dataclass_fields__}


def test_a_note_is_late_when_all_that_there_was_has_been_sent(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    notes.add([note(1)], before=5)
    notes.add([note(2)], before=6)
    notes.begin(5)
    assert notes.late(9) == []
    notes.done([])
    notes.begin(9)
    assert verdicts(notes.late(9)) == ["v1"]
    notes.done(notes.late(9))
    notes.begin(9)
    assert verdicts(notes.late(9)) == ["v2"]


def test_after_a_crash_the_same_window_has_the_same_notes(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    notes.add([note(1)], before=3)
    notes.begin(8)
    notes.close()
    again = Notes(tmp_path / "notes.db")
    again.add([note(2)], before=3)
    assert (again.sent, again.until) == (1, 8)
    assert verdicts(again.about(trace(1))) == ["v1"]
    again.done(again.about(trace(1)))
    again.close()
    after = Notes(tmp_path / "notes.db")
    assert (after.sent, after.until, len(after)) == (8, 8, 1)
    after.begin(9)
    assert verdicts(after.about(trace(1))) == ["v2"]


def test_after_a_crash_the_same_window_has_the_same_late_notes(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    notes.add([note(1)], before=1)
    notes.begin(8)
    notes.close()
    again = Notes(tmp_path / "notes.db")
    again.add([note(2)], before=1)
    assert verdicts(again.late(9)) == ["v1"]


def test_a_settled_note_is_known_for_two_checkpoints(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    notes.add([note(1)], before=1)
    notes.begin(1)
    notes.done(notes.about(trace(1)))
    for _ in range(2):
        notes.checkpointed()
        assert notes.add([note(1)], before=1) == 1
    notes.checkpointed()
    assert notes.add([note(1)], before=1) == 0


def test_a_waiting_note_is_not_forgotten_by_checkpoints(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    notes.add([note(1)], before=1)
    for _ in range(5):
        notes.checkpointed()
    notes.sync()
    assert len(Notes(tmp_path / "notes.db")) == 1


def test_a_damaged_file_is_moved_aside_and_all_is_forwarded_again(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_bytes(b"this is no database" * 100)
    notes = Notes(path)
    assert (notes.sent, len(notes)) == (1, 0)
    assert (tmp_path / "notes.db.damaged").exists()


def test_a_folder_that_cannot_be_had_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "notes.db").mkdir()
    with pytest.raises(OSError, match=r"notes\.db"):
        Notes(tmp_path / "notes.db")


def test_a_disk_that_fails_leaves_what_memory_knows(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    notes.add([note(1)], before=1)
    notes.begin(1)
    found = notes.about(trace(1))
    notes.close()
    with pytest.raises(sqlite3.Error):
        notes.begin(5)
    with pytest.raises(sqlite3.Error):
        notes.done(found)
    assert (notes.sent, notes.until, len(notes), notes.size) == (5, 5, 0, 0)
