"""Files that hold each id once, across kills at any byte and repeats of any length."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from exporters.file.jsonl import IncidentFile, VerdictFile, cut_torn_line, encode
from tests.examples import examples


def row(number: int) -> dict[str, Any]:
    return {"verdict_id": f"{number:016x}", "text": f'\n"verdict_id":"{"f" * 16}', "score": 0.5}


def ids(path: Path) -> list[int]:
    return [int(json.loads(line)["verdict_id"], 16) for line in path.read_text().splitlines()]


def test_rows_are_appended_and_read_back(tmp_path: Path) -> None:
    file = VerdictFile(tmp_path / "v.jsonl")
    file.append([row(1), row(2)])
    file.append([])
    file.append([row(3)])
    assert ids(file.path) == [1, 2, 3]
    assert json.loads(file.path.read_text().splitlines()[0]) == row(1)
    file.close()


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut is simulated here, so the real disk need not be waited for."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.slow
@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_kill_at_any_byte_loses_and_repeats_nothing(tmp_path: Path, no_fsync: None, data: st.DataObject) -> None:
    """The runtime in small: rows in order, checkpoints, kills, power cuts, a replay from either kept checkpoint; in one
    file, or in many small ones."""
    bytes_max = data.draw(st.sampled_from([None, 2000]))
    for leftover in tmp_path.iterdir():
        leftover.unlink()
    path = tmp_path / "v.jsonl"
    checkpoints = [0, 0]  # the two that are kept: how many rows had been given
    done = ever = on_disk = 0
    with ExitStack() as stack:
        file = stack.enter_context(closing(VerdictFile(path, bytes_max, 1000)))
        for _ in range(data.draw(st.integers(1, 15))):
            match data.draw(st.sampled_from(["rows", "checkpoint", "failed checkpoint", "killed", "power cut"])):
                case "rows":
                    more = data.draw(st.integers(1, 30))
                    inode = path.stat().st_ino
                    file.append([row(number) for number in range(done, done + more)])
                    on_disk = on_disk if path.stat().st_ino == inode else 0
                    done += more
                    ever = max(ever, done)
                case "checkpoint":
                    file.sync()
                    on_disk = file.size
                    checkpoints = [checkpoints[1], done]
                    if data.draw(st.booleans()):  # else killed between the two
                        file.mark(file.position)
                case "failed checkpoint":
                    file.sync()
                    on_disk = file.size
                case kill:
                    size = path.stat().st_size
                    torn = data.draw(st.integers(on_disk, size)) if kill == "power cut" else size
                    os.truncate(path, torn)
                    file = stack.enter_context(closing(VerdictFile(path, bytes_max, 1000)))
                    done = data.draw(st.sampled_from(checkpoints))
        file.append([row(number) for number in range(done, ever + 5)])
    older = sorted(tmp_path.glob("v.jsonl.[0-9]*"), key=lambda each: -int(each.suffix[1:]))
    assert [number for each in [*older, path] for number in ids(each)] == list(range(ever + 5))
    assert bytes_max is None or all(each.stat().st_size <= 2000 or len(ids(each)) <= 35 for each in older)


def test_a_file_that_is_full_becomes_an_older_one_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    size = len(encode(row(0)))
    file = VerdictFile(path, 3 * size, 2)
    for number in range(11):
        file.append([row(number)])
    file.close()
    assert ids(path) == [9, 10]
    assert ids(tmp_path / "v.jsonl.1") == [6, 7, 8]
    assert ids(tmp_path / "v.jsonl.2") == [3, 4, 5]
    assert not (tmp_path / "v.jsonl.3").exists()


def test_one_batch_stands_in_one_file(tmp_path: Path) -> None:
    file = VerdictFile(tmp_path / "v.jsonl", len(encode(row(0))), 1)
    file.append([row(number) for number in range(5)])
    assert ids(file.path) == [0, 1, 2, 3, 4]
    file.append([row(5)])
    assert ids(file.path) == [5]
    file.close()


def test_a_mark_in_an_older_file_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    file = VerdictFile(path, 3 * len(encode(row(0))), 5)
    file.append([row(0), row(1)])
    file.mark(file.position)
    file.append([row(2)])
    file.mark(file.position)
    for number in range(3, 8):
        file.append([row(number)])
    file.close()
    again = VerdictFile(path, 3 * len(encode(row(0))), 5)
    assert again._known.tolist() == [2, 3, 4, 5, 6, 7]
    again.append([row(number) for number in range(2, 9)])
    again.close()
    assert ids(path) == [6, 7, 8]


def test_when_the_file_of_a_mark_goes_all_that_is_left_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    file = VerdictFile(path, len(encode(row(0))), 1)
    file.append([row(0)])
    file.mark(file.position)
    file.mark(file.position)
    for number in range(1, 6):
        file.append([row(number)])
    file.close()
    again = VerdictFile(path, len(encode(row(0))), 1)
    assert again._marks == []
    assert again._known.tolist() == [4, 5]
    again.close()


def test_only_what_stands_behind_the_oldest_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    file = VerdictFile(path)
    for number in range(5):
        file.append([row(number)])
        file.mark(file.position)
    file.append([row(5)])
    file.close()
    again = VerdictFile(path)
    assert again._known.tolist() == [4, 5], "the marks after rows 3 and 4 are kept"
    again.close()


@pytest.mark.parametrize("marks", [b"", b"{", b'{"marks": [5000000]}', b'{"marks": ["x"]}', b'{"marks": [3, 2]}'])
def test_damaged_marks_only_cost_a_longer_look(tmp_path: Path, marks: bytes) -> None:
    path = tmp_path / "v.jsonl"
    file = VerdictFile(path)
    file.append([row(1), row(2)])
    file.close()
    path.with_name("v.jsonl.marks").write_bytes(marks)
    again = VerdictFile(path)
    again.append([row(1), row(2), row(3)])
    again.close()
    assert ids(path) == [1, 2, 3]


def test_a_write_that_fails_halfway_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = VerdictFile(tmp_path / "v.jsonl")
    file.append([row(1)])
    real = file._file

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def write(self, content: bytes) -> int:
            real.write(content[:10])
            raise OSError(28, "No space left on device")

    file._file = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        file.append([row(2)])
    assert ids(file.path) == [1]
    file._file = real
    file.append([row(2)])
    assert ids(file.path) == [1, 2]
    file.close()


def test_a_file_emptied_by_somebody_goes_on(tmp_path: Path) -> None:
    file = VerdictFile(tmp_path / "v.jsonl")
    file.append([row(1)])
    os.truncate(file.path, 0)
    file.append([row(2)])
    assert ids(file.path) == [2]
    file.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"a", b""), (b"a\n", b"a\n"), (b"a\nb", b"a\n"), (b"a\n" + b"x" * 200_000, b"a\n")],
)
def test_torn_lines_are_cut(tmp_path: Path, before: bytes, after: bytes) -> None:
    (tmp_path / "f").write_bytes(before)
    cut_torn_line(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == after


def incident(number: int, resolved: int | None = None, chains: int = 1) -> dict[str, Any]:
    return {"incident_id": f"i{number}", "resolved_unix_nano": resolved, "chains": chains}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_an_incident_with_its_last_state(tmp_path: Path) -> None:
    file = IncidentFile(tmp_path / "i.jsonl")
    file.update([incident(1), incident(2)])
    file.update([incident(1, chains=5), incident(3), incident(3, chains=7)])
    file.update([incident(1, resolved=9, chains=6)])
    assert lines(file.path) == [incident(1, 9, 6), incident(2), incident(3, chains=7)]


def test_incidents_go_on_after_a_restart_and_what_is_given_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    file = IncidentFile(path)
    file.update([incident(1), incident(2)])
    file.update([incident(1, resolved=9, chains=6)])
    before = lines(path)
    with path.open("ab") as torn:
        torn.write(b'{"incident_id": "i')
    again = IncidentFile(path)
    again.update([incident(1), incident(2)])
    again.update([incident(1, resolved=9, chains=6)])
    again.update([incident(3)])
    assert lines(path) == [*before, incident(3)]


def test_a_line_that_is_not_ours_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    path.write_text('{"note": 1}\n' + json.dumps(incident(1)) + "\n")
    file = IncidentFile(path)
    file.update([incident(1, chains=3)])
    assert lines(path) == [{"note": 1}, incident(1, chains=3)]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file = IncidentFile(tmp_path / "i.jsonl")
    file.update([incident(number) for number in range(100)])
    with file.path.open() as reader:
        start = reader.read(100)
        file.update([incident(0, resolved=1)])
        old = start + reader.read()
    assert [json.loads(line)["resolved_unix_nano"] for line in old.splitlines()] == [None] * 100
    assert len(lines(file.path)) == 100


def test_more_incidents_than_are_kept_cost_the_oldest_that_are_over_then_the_oldest(tmp_path: Path) -> None:
    file = IncidentFile(tmp_path / "i.jsonl", incidents_max=3)
    assert file.update([incident(1), incident(2, resolved=8), incident(3)]) == 0
    assert file.update([incident(4), incident(5)]) == 2
    assert lines(file.path) == [incident(3), incident(4), incident(5)]
    assert file.update([incident(3, resolved=9)]) == 0
    again = IncidentFile(file.path, incidents_max=3)
    assert again.update([incident(4, chains=2), incident(6)]) == 1
    assert lines(file.path) == [incident(4, chains=2), incident(5), incident(6)]


def test_what_is_told_again_in_the_same_words_is_not_written_again(tmp_path: Path) -> None:
    file = IncidentFile(tmp_path / "i.jsonl")
    file.update([incident(1)])
    written = file.path.stat().st_ino
    file.update([incident(1)])
    assert file.path.stat().st_ino == written


def test_a_write_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = IncidentFile(tmp_path / "i.jsonl", incidents_max=1)
    file.update([incident(1)])

    def full(*_: Any) -> None:
        raise OSError(28, "no room")

    with monkeypatch.context() as patched:
        patched.setattr("exporters.file.jsonl.replace", full)
        with pytest.raises(OSError, match="no room"):
            file.update([incident(2)])
    assert lines(file.path) == [incident(1)]
    assert file.update([incident(2)]) == 1
    assert lines(file.path) == [incident(2)]
