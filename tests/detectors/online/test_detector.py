"""Slow elements on a small shop: which service is named, what does not alarm, what is learned, what is restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector_processor.config import Config
from collector_processor.kernels import elements as kernel
from collector_processor.model import NONE, ChainBatch, Findings, Kind, Level, Symbols
from detectors.online import Online
from tests.builders import NS, START_S, Node, chains, span

EPOCH_S = 10
PER_EPOCH = 8


def order(rng: np.random.Generator, *, into: float = 0.0, itself: float = 0.0, queued: float = 0.0) -> Node:
    """gateway -> stock, with `into` ms more between caller and callee, `itself` ms more inside the callee."""

    def ms(typical: float) -> float:
        return float(typical * rng.lognormal(0.0, 0.15))

    work = ms(10) + itself
    stock = span("stock:reserve", work, span("stock:sql", ms(3), kind="client"))
    call = span("gateway:POST", work + ms(2) + into + queued, stock)
    return span("gateway:buy", ms(30) + into + itself + queued, call)


class Bench:
    """A detector with its epochs, driven as the engine does, learning 90 s after chains were closed."""

    def __init__(self, seed: int = 1) -> None:
        self.symbols = Symbols()
        self.rng = np.random.default_rng(seed)
        self.detector = Online(Config(), self.symbols)
        self.epoch = int(START_S) // EPOCH_S
        self.trace = 1
        self.waiting: list[tuple[int, ChainBatch]] = []
        self.findings: list[Findings] = []

    def batch(self, roots: list[Node]) -> ChainBatch:
        out = chains(self.symbols, roots, start_s=self.epoch * EPOCH_S, every_s=1.0, wait_s=0.0, first_trace=self.trace)
        self.trace += len(roots)
        return out

    def run(self, epochs: int, **fault: float) -> list[Findings]:
        """The window findings of `epochs` epochs of traffic."""
        out = []
        for _ in range(epochs):
            batch = self.batch([order(self.rng, **fault) for _ in range(PER_EPOCH)])
            self.detector.score(batch).checked(batch)
            out.append(self.end(batch))
        return out

    def end(self, batch: ChainBatch) -> Findings:
        self.epoch += 1
        now = self.epoch * EPOCH_S * NS
        found = self.detector.advance(now)
        self.waiting.append((now, batch))
        while self.waiting and self.waiting[0][0] <= now - 90 * NS:
            old = self.waiting.pop(0)[1]
            self.detector.learn(old, np.ones(len(old), bool))
        return found

    def service(self, name: str) -> int:
        return self.symbols.services.text.index(name)


@pytest.fixture
def bench() -> Bench:
    """A detector that has seen ten quiet minutes."""
    out = Bench()
    assert sum(found.size for found in out.run(60)[20:]) == 0
    return out


def worst(found: list[Findings]) -> np.void:
    rows = np.concatenate(found)
    assert rows.size
    return rows[np.argmin(rows["p"])]


def test_a_slow_network_is_a_slow_call_into_the_callee(bench: Bench) -> None:
    row = worst(bench.run(6, into=400.0))
    assert (row["kind"], row["service"]) == (Kind.SLOW_CALL, bench.service("stock"))
    assert row["expected"] < 0.01
    assert 0.35 < row["actual"] < 0.45
    assert -np.log(row["p"]) > 20


def test_work_that_takes_longer_is_a_slow_operation_of_its_own_service(bench: Bench) -> None:
    found = np.concatenate(bench.run(6, itself=400.0))
    assert set(found["kind"].tolist()) == {Kind.SLOW_OPERATION}
    assert set(found["service"].tolist()) == {bench.service("stock")}, "the caller only waits"


def test_evidence_says_how_many_of_how_many(bench: Bench) -> None:
    found = bench.run(6, into=400.0)[-1]
    edge = found[found["level"] == Level.EDGE][0]
    told = bench.detector.evidence(edge)
    assert told["text"].startswith("Calls from gateway to stock reserve: 4")
    assert told["text"].endswith(f"({told['slow']} of {told['count']} in 90 s)")
    assert told["slow"] == 6 * PER_EPOCH <= told["count"]


def test_one_burst_alone_never_alarms(bench: Bench) -> None:
    assert sum(found.size for found in [*bench.run(1, into=2000.0), *bench.run(10)]) == 0


def test_a_delay_that_matters_to_nobody_is_no_finding(bench: Bench) -> None:
    assert sum(found.size for found in bench.run(8, itself=1.0)) == 0


def test_an_unknown_element_says_nothing_until_it_is_known() -> None:
    bench = Bench()
    assert bench.detector.describe_state() is not None
    batch = bench.batch([order(bench.rng, into=5000.0)])
    scores = bench.detector.score(batch)
    assert scores.findings.size == 0
    assert scores.value.tolist() == [0.0]
    bench.run(12)
    assert bench.detector.describe_state() is None


def test_an_alarm_does_not_become_the_baseline(bench: Bench) -> None:
    """Twenty minutes of trouble are as improbable at their end as after two."""
    bench.run(12, into=400.0)
    late = bench.run(108, into=400.0)[-1]
    assert -np.log(late["p"].min()) > 20


def test_chains_that_are_not_normal_teach_nothing(bench: Bench) -> None:
    before = bench.detector.snapshot()["history"]["slots"]["seen"]
    batch = bench.batch([order(bench.rng)])
    bench.detector.learn(batch, np.zeros(1, bool))
    after = bench.detector.snapshot()["history"]["slots"]["seen"]
    assert before.tolist() == after.tolist()


def test_a_chain_through_an_element_in_alarm_scores_higher(bench: Bench) -> None:
    usual = bench.batch([order(np.random.default_rng(5))])
    before = bench.detector.score(usual).value[0]
    bench.run(6, into=400.0)
    assert bench.detector.score(usual).value[0] > before + 5


@pytest.mark.parametrize("slow", [("pod-2",), ("pod-0", "pod-1", "pod-2", "pod-3")])
def test_one_slow_instance_of_several_is_named_and_all_of_them_are_the_service(slow: tuple[str, ...]) -> None:
    bench = Bench()

    def epoch(ms: float) -> Findings:
        roots = []
        for number in range(PER_EPOCH):
            pod = f"pod-{number % 4}"
            work = float(10 * bench.rng.lognormal(0.0, 0.3)) + (ms if pod in slow else 0.0)
            roots.append(span("gateway:buy", work + 20, span("stock:reserve", work, instance=pod)))
        bench.detector.score(batch := bench.batch(roots))
        return bench.end(batch)

    assert not np.concatenate([epoch(0.0) for _ in range(40)]).size
    state = bench.detector.snapshot()
    found = [epoch(300.0) for _ in range(4)][-1]
    assert set(found["service"].tolist()) == {bench.service("stock")}
    named = [bench.symbols.instances.text[i] for i in found["instance"].tolist() if i != NONE]
    assert named == (["pod-2"] if len(slow) == 1 else [])
    if named:
        row = found[found["instance"] != NONE][0]
        assert bench.detector.evidence(row)["text"].startswith("Operations of stock on pod-2: ")
    other = Online(Config(), bench.symbols)
    other.restore(state)
    assert other.instances.tolist() == bench.detector.instances.tolist()


def test_instances_that_are_gone_leave_their_windows_to_others() -> None:
    bench = Bench()
    config = Config.model_validate({"detectors": {"online": {"elements_max": 32}}})
    bench.detector = Online(config, bench.symbols)
    stock = {"slow": 0.0}

    def epoch(release: int) -> Findings:
        roots = []
        for number in range(PER_EPOCH):
            pod = f"pod-{release}-{number % 4}"
            work = float(10 * bench.rng.lognormal(0.0, 0.3)) + (stock["slow"] if number % 4 == 2 else 0.0)
            roots.append(span("gateway:buy", work + 20, span("stock:reserve", work, instance=pod)))
        bench.detector.score(batch := bench.batch(roots))
        return bench.end(batch)

    def having() -> list[str]:
        return [bench.symbols.instances.text[i] for i in np.flatnonzero(bench.detector.instances != NONE)]

    for _ in range(15):
        epoch(1)
    assert having() == [f"pod-1-{number}" for number in range(4)], "one in eight windows"
    for _ in range(15):
        epoch(2)
    assert having() == [f"pod-1-{number}" for number in range(4)], "they may come back"
    bench.epoch += 7 * 3600 // EPOCH_S
    for _ in range(40):
        epoch(2)
    assert having() == [f"pod-2-{number}" for number in range(4)]
    again = Online(config, bench.symbols)
    again.restore(bench.detector.snapshot())
    assert again.instances.tolist() == bench.detector.instances.tolist()
    assert _flat(again.snapshot()) == _flat(bench.detector.snapshot())
    stock["slow"] = 300.0
    found = [epoch(2) for _ in range(4)][-1]
    assert [bench.symbols.instances.text[i] for i in found["instance"].tolist() if i != NONE] == ["pod-2-2"]


def test_asynchronous_frameworks_do_not_make_a_handler_slow(bench: Bench) -> None:
    """A handler whose call hangs beside it, not below it, only waits."""

    def root(ms: float) -> Node:
        handler = span("gateway:handle", ms + 2, at_ms=1)
        call = span("gateway:POST", ms, span("stock:reserve", ms - 2), kind="client", at_ms=2)
        return span("gateway:buy", ms + 5, handler, call)

    for _ in range(30):
        bench.end(batch := bench.batch([root(20.0) for _ in range(PER_EPOCH)]))
        bench.detector.score(batch)
    found = []
    for _ in range(6):
        bench.detector.score(batch := bench.batch([root(600.0) for _ in range(PER_EPOCH)]))
        found.append(bench.end(batch))
    assert bench.service("gateway") not in np.concatenate(found)["service"].tolist()


def test_grouping_of_chains_leaves_no_trace(bench: Bench) -> None:
    state = bench.detector.snapshot()
    roots = [order(np.random.default_rng(7), into=300.0) for _ in range(20)]
    batch = bench.batch(roots)
    whole = bench.detector.score(batch)
    together = bench.detector.advance(bench.epoch * EPOCH_S * NS + EPOCH_S * NS)
    other = Online(Config(), bench.symbols)
    other.restore(state)
    parts = [other.score(batch.take(np.arange(a, b))) for a, b in ((0, 1), (1, 9), (9, 20))]
    assert np.concatenate([part.value for part in parts]).tolist() == whole.value.tolist()
    assert sum(part.findings.size for part in parts) == whole.findings.size
    apart = other.advance(bench.epoch * EPOCH_S * NS + EPOCH_S * NS)
    assert together.tobytes() == apart.tobytes()


def test_how_far_times_are_from_the_middle_is_learned_where_a_middle_is_known() -> None:
    """However many chains are learned at first, in which nothing is known yet."""
    tails = []
    for chains_at_first in (8, 80):
        bench = Bench()
        batch = bench.batch([order(np.random.default_rng(n)) for n in range(chains_at_first)])
        bench.detector.learn(batch, np.ones(len(batch), bool))
        for _ in range(10):
            batch = bench.batch([order(bench.rng) for _ in range(PER_EPOCH)])
            bench.detector.learn(batch, np.ones(len(batch), bool))
        far = bench.detector.history.residual[:, kernel.BINS + 25 :]  # 150 times the middle
        tails.append(float(far.sum()))
    assert tails == [0.0, 0.0]


def test_a_restored_detector_goes_on_as_if_nothing_had_happened(bench: Bench) -> None:
    bench.run(3, into=400.0)
    twin = Bench()
    twin.symbols, twin.epoch, twin.trace = bench.symbols, bench.epoch, bench.trace
    twin.detector = Online(Config(), bench.symbols)
    twin.detector.restore(bench.detector.snapshot())
    bench.rng, twin.rng = np.random.default_rng(3), np.random.default_rng(3)
    bench.waiting, twin.waiting = [], []
    for mine, other in zip(bench.run(15, into=400.0), twin.run(15, into=400.0), strict=True):
        assert mine.tobytes() == other.tobytes()
    assert _flat(bench.detector.snapshot()) == _flat(twin.detector.snapshot())


def _flat(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _flat(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_flat(value) for value in state]
    return state.tobytes() if isinstance(state, np.ndarray) else state


def test_beyond_the_limit_elements_are_counted() -> None:
    bench = Bench()
    config = Config.model_validate({"detectors": {"online": {"elements_max": 3}}})
    bench.detector = Online(config, bench.symbols)
    bench.run(12)
    assert bench.detector.windows.used == 3
    assert bench.detector.windows.overflowed > 0


def test_an_edge_finding_names_caller_and_callee(bench: Bench) -> None:
    found = np.concatenate(bench.run(6, into=400.0))
    edges = found[found["level"] == Level.EDGE]
    assert set(zip(edges["caller"].tolist(), edges["service"].tolist(), strict=True)) == {
        (bench.service("gateway"), bench.service("stock"))
    }
    out_of = found[(found["level"] == Level.SERVICE) & (found["service"] == NONE)]
    assert set(out_of["caller"].tolist()) == {bench.service("gateway")}
