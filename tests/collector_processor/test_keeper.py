"""Checkpoints and exporters that cannot deliver: they hold a checkpoint back, but not for ever, and not the engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector_processor import keeper
from collector_processor.config import JournalConfig
from collector_processor.journal.checkpoint import Counters, read_checkpoint
from collector_processor.journal.wal import Journal
from collector_processor.keeper import PATIENCE, Keeper
from collector_processor.model import Payload, Signal


class Sink:
    """An exporter, as far as checkpoints are concerned."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delivers = True
        self.told = 0
        self.may_end = threading.Event()
        self.may_end.set()

    def flush(self, deadline_s: float) -> bool:
        self.may_end.wait(30)
        return self.delivers

    def checkpointed(self) -> None:
        self.told += 1


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    config = JournalConfig(checkpoint_interval_s=10, bytes_max=100_000, segment_bytes_max=10_000, durability="os")
    opened = Journal.open(tmp_path, config)
    yield opened
    opened.close()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr(keeper.time, "monotonic", lambda: time[0])
    return time


def made(journal: Journal) -> tuple[Keeper, dict[str, Any], Counters]:
    sinks, counters = {"one": Sink("one"), "two": Sink("two")}, Counters()
    return Keeper(journal.directory, journal, sinks, counters), sinks, counters


def kept_position(journal: Journal) -> int | None:
    found = read_checkpoint(journal.directory)
    return found[0] if found else None


def test_a_sink_that_is_down_holds_a_checkpoint_back_for_some_intervals_only(
    journal: Journal, now: list[float]
) -> None:
    kept, sinks, counters = made(journal)
    sinks["two"].delivers = False
    assert not kept.keep(1, {})
    assert (kept_position(journal), counters.failures, kept.unflushed) == (None, 1, 0)
    now[0] += PATIENCE * 10 + 1
    assert kept.keep(2, {})
    assert (kept_position(journal), kept.unflushed) == (2, 1)
    assert (sinks["one"].told, sinks["two"].told) == (1, 0)  # whose keys may still be needed
    assert not kept.keep(3, {})  # the patience begins anew
    sinks["two"].delivers = True
    assert kept.keep(4, {})
    assert kept_position(journal) == 4


def test_a_journal_that_fills_up_ends_the_patience(journal: Journal, now: list[float]) -> None:
    kept, sinks, _ = made(journal)
    sinks["one"].delivers = False
    while journal.size_bytes <= journal.config.bytes_max / 2:
        assert not kept.keep(journal.position, {})
        journal.append(Payload(Signal.LOGS, "default", bytes(8000), 1))
    assert kept.keep(journal.position, {})
    assert journal.size_bytes < journal.config.bytes_max / 2  # nothing of it is needed any more


def test_what_waits_for_a_sink_does_not_wait_in_the_engine(journal: Journal) -> None:
    kept, sinks, _ = made(journal)
    sinks["one"].may_end.clear()
    kept.begin(7, {"a": 1})
    assert kept.is_busy
    assert kept_position(journal) is None
    sinks["one"].may_end.set()
    kept.wait()
    assert not kept.is_busy
    assert kept_position(journal) == 7


def test_state_that_cannot_be_written_ends_nothing(journal: Journal) -> None:
    kept, _, counters = made(journal)
    kept.begin(7, {"a": object()})
    kept.wait()
    assert counters.failures == 1
    assert kept_position(journal) is None
