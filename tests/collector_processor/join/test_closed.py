"""Closed chains are remembered for their time, or as far as the bound allows; what is forgotten early is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from otlp import T0, span, traces

from collector_processor.config import DecodeConfig, JoinConfig
from collector_processor.decode.decoder import Decoder
from collector_processor.join.closed import SLOTS_MIN, Closed
from collector_processor.join.joiner import Joiner
from collector_processor.kernels import closed as kernel
from collector_processor.model import Payload, Signal, Symbols

SECOND = 1_000_000_000
EPOCH = 10 * SECOND


class Memory:
    """A `Closed` and what has to be in it: hash -> when it was closed."""

    def __init__(self, most: int, remembered_s: float) -> None:
        self.closed = Closed(most, int(remembered_s * SECOND))
        self.held = self.now_ns = self.not_entered = 0
        self.times: dict[int, int] = {}

    def enter(self, hashes: Any) -> None:
        self.closed.reserve(self.held, len(hashes))
        for h in hashes:
            entered = kernel.enter(self.closed.table, self.held, self.closed.generation, np.uint64(h))
            self.held += entered
            self.not_entered += 1 - entered
            self.times[int(h)] = self.now_ns

    def end_epoch(self) -> None:
        self.now_ns += EPOCH
        self.held = self.closed.turn(self.held, self.now_ns)

    def ages(self) -> tuple[list[int], list[int]]:
        """Ages, ns, of the remembered and of the forgotten."""
        known = {h: bool(kernel.holds(self.closed.table, np.uint64(h))) for h in self.times}
        assert sum(known.values()) == self.held == np.count_nonzero(self.closed.table)
        ages = {h: self.now_ns - time for h, time in self.times.items()}
        return [ages[h] for h in known if known[h]], [ages[h] for h in known if not known[h]]


def random_hashes(count: int, crowded: bool = False) -> Any:
    """crowded: in a few places of the table, with runs over its end."""
    chance = np.random.default_rng(5)
    hashes = chance.integers(0, 2**63, count, np.uint64)
    if crowded:
        hashes = hashes << np.uint64(20) | chance.choice([np.uint64(0), np.uint64(0xFFFFF)], count)
    return hashes


@pytest.mark.parametrize("crowded", [False, True])
def test_each_is_remembered_for_its_time_and_not_much_longer(crowded: bool) -> None:
    memory, remembered = Memory(100_000, 60), 60 * SECOND
    for hashes in np.split(random_hashes(4000, crowded), 40):
        memory.enter(hashes)
        memory.end_epoch()
        known, forgotten = memory.ages()
        assert min(forgotten, default=remembered) >= remembered
        assert max(known) <= remembered + remembered // 6 + 2 * EPOCH
    assert memory.closed.forgotten == memory.not_entered == 0
    for _ in range(10):  # nobody comes any more
        memory.end_epoch()
    assert memory.held == 0


def test_the_bound_holds_and_what_it_costs_is_counted() -> None:
    memory = Memory(7000, 3600)
    for hashes in np.split(random_hashes(40_000), 100):
        memory.enter(hashes)
        memory.end_epoch()
        assert memory.held <= 7000
        assert memory.held >= min(len(memory.times), 7000 - 2 * 1000 - len(hashes))
    known, forgotten = memory.ages()
    assert max(known) < min(forgotten), "the oldest go first"
    assert memory.closed.forgotten == len(forgotten)


def test_one_epoch_with_more_than_all_that_is_allowed_is_bounded_and_counted() -> None:
    memory = Memory(1000, 60)
    memory.enter(random_hashes(20_000))
    assert memory.closed.table.size == 2048
    assert memory.held + memory.not_entered == 20_000
    assert memory.held == 2048 * 3 // 4
    memory.end_epoch()
    assert memory.held == 0
    memory.enter(random_hashes(900))
    memory.end_epoch()
    assert memory.held == 900, "a flood that fits is remembered"
    memory.end_epoch()
    memory.enter(np.arange(1, 100, dtype=np.uint64) << np.uint64(3))
    memory.end_epoch()
    assert memory.held == 99, "and gives way to what follows"


def test_a_snapshot_remembers_the_same() -> None:
    memory = Memory(7000, 200)
    hashes = np.split(random_hashes(12_000), 30)
    for some in hashes[:20]:
        memory.enter(some)
        memory.end_epoch()
    other = Memory(7000, 200)
    other.closed.restore(memory.closed.snapshot())
    other.held, other.now_ns, other.times = memory.held, memory.now_ns, dict(memory.times)
    for some in hashes[20:]:
        for each in (memory, other):
            each.enter(some)
            each.end_epoch()
        assert memory.ages() == other.ages()
        assert memory.closed.forgotten == other.closed.forgotten


def test_it_takes_no_more_memory_than_what_it_remembers() -> None:
    memory = Memory(1_000_000, 60)
    memory.enter(random_hashes(400))
    assert memory.closed.table.size == SLOTS_MIN


@pytest.mark.slow
def test_of_many_chains_whose_records_come_minutes_late_none_is_told_again() -> None:
    join = JoinConfig(chains_max=40_000, records_max=80_000, closed_remembered_max=50_000)
    symbols = Symbols()
    decoder = Decoder(DecodeConfig(), join, symbols, 7)
    joiner = Joiner(join, symbols, decoder.attributes, 7)
    chains, told = 31_000, 0

    def send(first: int, span_id: int, now_ns: int) -> None:
        spans = [span(trace, span_id, span_id - 1) for trace in range(first, first + 1000)]
        joiner.append(decoder.decode(Payload(Signal.TRACES, "default", traces(*spans), now_ns)), now_ns)

    for first in range(1, chains, 1000):
        send(first, 1, T0)
    for epoch in range(1, 50):
        now_ns = T0 + epoch * EPOCH
        told += sum(map(len, joiner.close(now_ns)))
        joiner.forget(now_ns)
    for first in range(1, chains, 1000):
        send(first, 2, now_ns)
    assert told == chains
    assert joiner.open_chains == 0
    assert joiner.counters()["late_spans"] == chains
    assert joiner.counters()["closed_forgotten"] == 0


def test_ids_that_are_chosen_alike_are_told_apart() -> None:
    join = JoinConfig(chains_max=2000, records_max=2000)
    symbols = Symbols()
    decoder = Decoder(DecodeConfig(), join, symbols, 7)
    joiner = Joiner(join, symbols, decoder.attributes, 7)
    told = 0
    for number in range(1, 200):  # both halves the same
        now_ns = T0 + number * 60 * SECOND
        data = traces(span(number << 64 | number, 1))
        joiner.append(decoder.decode(Payload(Signal.TRACES, "default", data, now_ns)), now_ns)
        told += sum(map(len, joiner.close(now_ns + 59 * SECOND)))
    assert told == 199
