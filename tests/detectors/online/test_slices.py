"""Flows as a whole: error shares and log floods are told, drift becomes normal, a restart changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector_processor.model import ChainBatch, Findings, Kind, Level, Symbols
from detectors.online.slices import FLOWS_MAX, SLICES_MIN, Slices
from tests.builders import NS, START_S, Node, chains, log, span

SLICE_S = 60
PER_SLICE = 30


def order(rng: np.random.Generator, *, fails: bool = False, lines: int = 2, ms: float = 40.0) -> Node:
    logs = [log("line <*>") for _ in range(lines)]
    took = float(ms * rng.lognormal(0.0, 0.2))
    return span("gateway:buy", took, *logs, status=2 if fails else 0)


class Bench:
    """Slices of one flow, a minute at a time."""

    def __init__(self) -> None:
        self.symbols = Symbols()
        self.rng = np.random.default_rng(2)
        self.slices = Slices(SLICE_S)
        self.minute = int(START_S) // SLICE_S
        self.trace = 1
        self.slices.advance(self.minute * SLICE_S * NS)

    def batch(self, share: float = 0.0, **how: Any) -> ChainBatch:
        roots = [order(self.rng, fails=bool(self.rng.random() < share), **how) for _ in range(PER_SLICE)]
        self.trace += PER_SLICE
        return chains(self.symbols, roots, start_s=self.minute * SLICE_S, wait_s=0.0, first_trace=self.trace)

    def run(self, minutes: int, **how: Any) -> list[Findings]:
        out = []
        for _ in range(minutes):
            batch = self.batch(**how)
            self.slices.observe(batch, np.zeros(len(batch)))
            self.minute += 1
            out.append(self.slices.advance(self.minute * SLICE_S * NS))
        return out


@pytest.fixture
def bench() -> Bench:
    """A flow with two quiet hours."""
    out = Bench()
    assert sum(found.size for found in out.run(2 * SLICES_MIN)) == 0
    return out


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"share": 0.5}, Kind.ERROR, "hold an error, usually 0.0%"),
        ({"lines": 60}, Kind.RATE_SURGE, "write 60 log lines each, usually 2"),
        ({"ms": 900.0}, Kind.SLOW_OPERATION, "s, usually 0.0"),
    ],
)
def test_a_slice_beyond_all_its_past_is_told(bench: Bench, how: dict[str, Any], kind: Kind, words: str) -> None:
    (found,) = bench.run(1, **how)
    assert (found["kind"][0], found["level"][0]) == (kind, Level.FLOW)
    assert words in (bench.slices.sentence(int(found["flow"][0]), "gateway buy") or "")
    assert found["p"][0] >= 1.0 / (2 * SLICES_MIN + 1), "a rank cannot be more certain than its history"


def test_less_traffic_alone_is_not_its_matter(bench: Bench) -> None:
    batch = bench.batch().take(np.arange(12))
    bench.slices.observe(batch, np.zeros(len(batch)))
    bench.minute += 1
    assert bench.slices.advance(bench.minute * SLICE_S * NS).size == 0


@pytest.mark.slow
def test_what_is_unusual_does_not_train_until_it_has_drifted(bench: Bench) -> None:
    """ADWIN on the p-values tells trouble from a new normal: after it has spoken, the slices are learned."""
    (flow,) = bench.slices.flows.values()
    before = flow.slices
    assert sum(found.size for found in bench.run(5, lines=60)) == 5
    assert flow.slices == before
    bench.run(240, lines=60)
    assert flow.drifts >= 1
    assert flow.slices > before


def test_grouping_of_chains_leaves_no_trace(bench: Bench) -> None:
    batch = bench.batch(share=0.3)
    nats = np.linspace(0.0, 5.0, len(batch))
    other = Slices(SLICE_S)
    other.restore(bench.slices.snapshot())
    bench.slices.observe(batch, nats)
    for a, b in ((0, 1), (1, 20), (20, 30)):
        other.observe(batch.take(np.arange(a, b)), nats[a:b])
    assert bench.slices.sums.tolist() == other.sums.tolist()


def test_a_restart_changes_nothing(bench: Bench) -> None:
    twin = Bench()
    twin.symbols, twin.minute, twin.trace = bench.symbols, bench.minute, bench.trace
    twin.slices.restore(bench.slices.snapshot())
    bench.rng, twin.rng = np.random.default_rng(4), np.random.default_rng(4)
    for how in ({}, {"share": 0.5}, {}):
        for mine, other in zip(bench.run(30, **how), twin.run(30, **how), strict=True):
            assert mine.tobytes() == other.tobytes()


def test_flows_beyond_the_limit_are_counted() -> None:
    slices = Slices(SLICE_S)
    symbols = Symbols()
    roots = [span(f"gateway:buy {'x' * flow}", 20.0) for flow in range(FLOWS_MAX + 3) for _ in range(10)]
    slices.advance(0)
    batch = chains(symbols, roots, start_s=1.0, every_s=0.01)
    slices.observe(batch, np.zeros(len(batch)))
    slices.advance(SLICE_S * NS)
    assert len(slices.flows) == FLOWS_MAX
    assert slices.overflowed == 3
