"""A tail gives what is durable once and in order, while the journal is written, cut into segments and damaged."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.config import JournalConfig
from collector_processor.journal.wal import FAILURES_MAX, Journal, JournalUnavailableError
from collector_processor.model import Payload, Signal


def payload(number: int, size: int = 100) -> Payload:
    return Payload(Signal.TRACES, "default", f"{number:08d}".encode() * (size // 8), 1000 + number)


def opened(folder: Path, **settings: Any) -> Journal:
    return Journal.open(folder, JournalConfig(**({"durability": "os", "segment_bytes_max": 1000} | settings)))


def rest(tail: Any, bytes_max: int = 1 << 20) -> list[tuple[int, Payload]]:
    out = []
    while more := tail.read(bytes_max):
        out += more
    return out


@given(st.lists(st.tuples(st.integers(8, 3000), st.booleans()), max_size=30), st.integers(1, 2000))
def test_all_comes_once_and_in_order_however_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]], bytes_max: int
) -> None:
    journal = opened(tmp_path_factory.mktemp("journal"))
    tail, found, expected = journal.tail(0), [], []
    for number, (size, reads) in enumerate(steps):
        expected.append((journal.append(payload(number, size)), payload(number, size)))
        if reads:
            found += tail.read(bytes_max)
    found += rest(tail, bytes_max)
    assert found == expected
    assert tail.read(bytes_max) == []
    middle = len(expected) // 2
    if expected:
        assert rest(journal.tail(expected[middle][0])) == expected[middle:]
    journal.close()


def test_what_is_not_synced_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path, durability="fsync")
    tail = journal.tail(0)
    journal.append(payload(1))
    assert len(rest(tail)) == 1
    entered, released = threading.Event(), threading.Event()
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        entered.set()
        released.wait(20)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    writer = threading.Thread(target=journal.append, args=(payload(2),))
    writer.start()
    assert entered.wait(20)
    assert tail.read(1000) == []
    released.set()
    writer.join()
    assert rest(tail) == [(2, payload(2))]
    journal.close()


def test_what_a_failed_sync_took_back_is_never_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path, durability="fsync")
    tail = journal.tail(0)
    journal.append(payload(1))

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(JournalUnavailableError):
            journal.append(payload(2))
    journal.append(payload(3))
    assert [each for _, each in rest(tail)] == [payload(1), payload(3)]
    journal.close()


def test_what_a_tail_has_not_passed_stays_and_goes_once_it_has(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    tail = journal.tail(0)
    for number in range(40):
        journal.append(payload(number))
    assert journal.truncate(30) == 0
    tail.pass_to(20)
    assert 10 < min(position for position, _ in journal.replay()) <= 20
    tail.pass_to(41)
    assert 20 < min(position for position, _ in journal.replay()) <= 30, "the checkpoint needs the rest"
    journal.close()


def test_truncated_segments_are_stepped_over(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    tail = journal.tail(0)
    tail.passed = 100
    for number in range(40):
        journal.append(payload(number))
    assert journal.truncate(30) > 0
    positions = [position for position, _ in rest(tail)]
    assert positions == list(range(positions[0], 41))
    assert 1 < positions[0] <= 30
    journal.close()


@pytest.mark.parametrize("bytes_max", [50, 1 << 20])
def test_damage_costs_one_frame_and_is_counted_once(tmp_path: Path, bytes_max: int) -> None:
    journal = opened(tmp_path, segment_bytes_max=1 << 20)
    for number in range(1, 11):
        journal.append(payload(number))
    [(segment, size)] = journal.segments()
    content = bytearray(segment.path.read_bytes())
    content[size // 2] ^= 1  # in the middle
    content[-1] ^= 1  # and in the last frame
    segment.path.write_bytes(content)
    tail = journal.tail(0)
    found = rest(tail, bytes_max)
    assert len(found) == 8
    rest(tail, bytes_max)
    assert (journal.read_counters.corrupt, journal.read_counters.torn) == (1, 1)
    journal.close()


def test_a_file_that_cannot_be_read_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for number in range(1, 21):
        journal.append(payload(number))
    first, _ = journal.segments()[0]
    second, _ = journal.segments()[1]
    first.path.rename(tmp_path / "aside")
    first.path.mkdir()  # EISDIR, also for root
    tail = journal.tail(0)
    for _ in range(3):
        with pytest.raises(OSError, match="directory"):
            tail.read(1000)
    first.path.rmdir()
    (tmp_path / "aside").rename(first.path)
    assert tail.read(1)[0][0] == 1
    first.path.rename(tmp_path / "aside")
    first.path.mkdir()
    tail = journal.tail(0)
    for _ in range(FAILURES_MAX - 1):
        with pytest.raises(OSError, match="directory"):
            tail.read(1000)
    assert rest(tail)[0][0] == second.first
    assert journal.read_counters.unreadable_files == 1
    journal.close()
