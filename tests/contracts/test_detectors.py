"""What every detector in the registry must do, whatever it looks at. See `detectors/protocol.py`."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from collector_processor.config import Config
from collector_processor.model import NONE, ChainBatch, Findings, Outcome, Symbols, content_hash
from detectors.protocol import Detector, check_findings
from detectors.registry import DETECTORS, build, components
from tests.builders import NS, START_S, Node, chains, log, span

EPOCH_S = 10
PER_EPOCH = 10
EPOCHS = 60
MEMORY_MAX = 64 * 1024 * 1024
ROUNDS = 12
WINDOWS_ONLY = {"shadow"}  # detectors that say nothing of a single chain: their value is always 0


def payment(rng: np.random.Generator) -> Node:
    """A normal payment, in one of three variants, with log-normal durations."""
    variant = rng.random()

    def ms(typical: float) -> float:
        return float(typical * rng.lognormal(0.0, 0.2))

    steps = [
        span("risk:check", ms(8), log("risk ok")),
        span("account:debit", ms(12), log("debited <*>"), span("account:sql", ms(4), kind="client")),
    ]
    if variant < 0.3:
        steps.append(span("notify:mail", ms(3), log("mail sent")))
    if variant < 0.6:
        steps.insert(1, span("risk:score", ms(5)))
    steps.append(span("ledger:post", ms(6), log("posted <*>")))
    return span("gateway:pay", ms(90), span("order:create", ms(70), log("created <*>"), *steps))


def broken() -> Node:
    """Everything that can be wrong: a new call, a missing step and log, an error, fifty times the time."""
    steps = [
        span("risk:check", 400, log("exception in check <*>", severity=17), status=2),
        span("account:debit", 600, span("account:sql", 300, kind="client")),
        span("account:debit", 600, span("account:sql", 300, kind="client")),
        span("fraud:hold", 700, log("held <*>", severity=13)),
    ]
    return span("gateway:pay", 4500, span("order:create", 4000, *steps, status=2), status=2)


class Bench:
    """One detector, trained on normal payments the way the engine does it."""

    def __init__(self, name: str, epochs: int = EPOCHS, symbols: Symbols | None = None, seed: int = 7) -> None:
        self.symbols = symbols or Symbols()
        self.name = name
        self.detector: Detector = DETECTORS[name].build(Config(), self.symbols)
        self.rng = np.random.default_rng(seed)
        self.now_s = START_S - START_S % EPOCH_S
        self.trace = 1
        for _ in range(epochs):
            batch = self.normal(PER_EPOCH)
            self.detector.score(batch)
            self.end_epoch()
            self.detector.learn(batch, np.ones(len(batch), np.bool_))

    def batch(self, roots: list[Node]) -> ChainBatch:
        self.trace += len(roots)
        every = EPOCH_S / (len(roots) + 1)
        first = self.trace - len(roots)
        return chains(self.symbols, roots, start_s=self.now_s, every_s=every, wait_s=1.0, first_trace=first)

    def normal(self, n: int) -> ChainBatch:
        return self.batch([payment(self.rng) for _ in range(n)])

    def end_epoch(self) -> Findings:
        self.now_s += EPOCH_S
        return self.detector.advance(int(self.now_s * NS))

    def twin(self) -> Bench:
        """Another instance with the same state, by snapshot."""
        other = Bench(self.name, epochs=0, symbols=self.symbols)
        other.detector.restore(self.detector.snapshot())
        other.now_s, other.trace = self.now_s, self.trace
        return other


@pytest.fixture(params=sorted(DETECTORS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained_states() -> dict[str, tuple[Symbols, dict[str, Any], float, int]]:
    return {}


@pytest.fixture
def trained(name: str, trained_states: dict[str, Any]) -> Bench:
    """A trained bench; the training runs once a detector, each test gets a restored copy."""
    if name not in trained_states:
        trained_states[name] = Bench(name)
    bench: Bench = trained_states[name].twin()
    return bench


def same(one: Any, two: Any) -> bool:
    """Whether two snapshots are equal, arrays bit by bit."""
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(two, list | tuple) and len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray):
        return isinstance(two, np.ndarray) and one.dtype == two.dtype and one.tobytes() == two.tobytes()
    return bool(one == two) or (isinstance(one, float) and math.isnan(one) and math.isnan(two))


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: copied(v) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return [copied(v) for v in state]
    return state.copy() if isinstance(state, np.ndarray) else state


def is_plain(state: Any) -> bool:
    if isinstance(state, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in state.items())
    if isinstance(state, list | tuple):
        return all(is_plain(v) for v in state)
    if isinstance(state, np.ndarray):
        return not state.dtype.hasobject
    return state is None or isinstance(state, bool | int | float | str | bytes)


def told(bench: Bench, findings: Findings) -> list[str]:
    """Findings, without the detector's private `detail`, and their evidence."""
    public = findings.copy()
    public["detail"] = 0
    evidence = [json.dumps(bench.detector.evidence(finding), allow_nan=False) for finding in findings]
    return [f"{row.item()} {said}" for row, said in zip(public, evidence, strict=True)]


def test_the_registry_names_its_detectors() -> None:
    built = build(Config(), Symbols())
    assert list(built) == [n for n in DETECTORS if n in built]
    assert all(detector.name == n for n, detector in built.items())
    assert set(components(list(built)).values()) <= {"rec", "seq", "ctx"}
    assert len(DETECTORS) < 256, "the index of a detector is a byte of its findings"


def test_scores_before_it_has_learned(name: str) -> None:
    bench = Bench(name, epochs=0)
    batch = bench.normal(5)
    bench.detector.score(batch).checked(batch)
    check_findings(bench.end_epoch())
    assert bench.detector.version()
    assert bench.detector.describe_state() is None or len(str(bench.detector.describe_state())) > 10


def test_a_broken_chain_scores_above_all_normal_ones(trained: Bench) -> None:
    if trained.name in WINDOWS_ONLY:
        assert not trained.detector.score(trained.batch([broken()])).value.any()
        return
    batch = trained.batch([payment(trained.rng) for _ in range(30)] + [broken()])
    odd = int(np.flatnonzero(batch.trace_lo == batch.trace_lo.max())[0])
    scores = trained.detector.score(batch).checked(batch)
    assert scores.value[odd] > np.delete(scores.value, odd).max()
    assert (scores.findings["chain"] == odd).any()


def test_most_normal_chains_have_nothing_unusual(trained: Bench) -> None:
    batch = trained.normal(200)
    findings = trained.detector.score(batch).checked(batch).findings
    assert np.unique(findings["chain"][findings["p"] < 1e-3]).size <= 10


def test_scoring_changes_no_later_score(trained: Bench) -> None:
    batch, other = trained.normal(20), trained.batch([broken()] * 20)
    first = trained.detector.score(batch)
    trained.detector.score(other)
    again = trained.detector.score(batch)
    assert first.value.tobytes() == again.value.tobytes()
    assert first.findings.tobytes() == again.findings.tobytes()


def test_grouping_leaves_no_trace(trained: Bench) -> None:
    """Values, findings, evidence and what the windows say afterwards are the same for any partition of an epoch."""
    whole, parts = trained, trained.twin()
    batch = whole.batch([payment(whole.rng) for _ in range(25)] + [broken() for _ in range(5)])
    one = whole.detector.score(batch).checked(batch)
    values, findings = [], []
    for cut in np.array_split(np.arange(30), [1, 2, 9, 9, 22]):
        part = parts.detector.score(batch.take(cut))
        moved = part.findings.copy()
        moved["chain"] += int(cut[0]) if cut.size else 0
        values.append(part.value)
        findings.append(moved)
    assert np.concatenate(values).tobytes() == one.value.tobytes()
    assert told(parts, np.concatenate(findings)) == told(whole, one.findings)
    assert told(parts, parts.end_epoch()) == told(whole, whole.end_epoch())
    for bench in (whole, parts):
        bench.detector.learn(batch, np.ones(30, np.bool_))
    later = whole.normal(20)
    assert whole.detector.score(later).value.tobytes() == parts.detector.score(later).value.tobytes()


def test_two_instances_that_saw_the_same_say_the_same(name: str) -> None:
    one, two = Bench(name, epochs=20), Bench(name, epochs=20)
    batches = [bench.batch([payment(bench.rng) for _ in range(10)] + [broken()]) for bench in (one, two)]
    scores = [bench.detector.score(batch) for bench, batch in zip((one, two), batches, strict=True)]
    assert scores[0].value.tobytes() == scores[1].value.tobytes()
    assert scores[0].findings.tobytes() == scores[1].findings.tobytes()
    assert same(one.detector.snapshot(), two.detector.snapshot())


def test_a_snapshot_is_plain_versioned_and_stands_still(trained: Bench) -> None:
    state = trained.detector.snapshot()
    assert state["version"] == 1
    assert is_plain(state)
    kept = copied(state)
    for _ in range(5):
        batch = trained.batch([payment(trained.rng), broken()])
        trained.detector.score(batch)
        trained.end_epoch()
        trained.detector.learn(batch, np.ones(2, np.bool_))
    assert same(state, kept)


def test_a_restored_detector_goes_on_the_same(trained: Bench) -> None:
    one, two = trained, trained.twin()
    assert same(one.detector.snapshot(), two.detector.snapshot())
    for _ in range(5):
        batch = one.batch([payment(one.rng) for _ in range(10)] + [broken()])
        first, second = (bench.detector.score(batch) for bench in (one, two))
        assert first.value.tobytes() == second.value.tobytes()
        assert told(one, first.findings) == told(two, second.findings)
        two.now_s = one.now_s
        assert told(one, one.end_epoch()) == told(two, two.end_epoch())
        for bench in (one, two):
            bench.detector.learn(batch, np.arange(len(batch)) % 3 > 0)
    assert one.detector.describe_state() == two.detector.describe_state()


def test_a_restart_in_the_middle_of_an_epoch_changes_nothing(trained: Bench) -> None:
    """Between scoring and the boundary, too, the snapshot holds everything that the windows will need."""
    one = trained
    one.detector.score(one.batch([broken() for _ in range(8)]))
    two = one.twin()
    assert told(one, one.end_epoch()) == told(two, two.end_epoch())


def test_what_is_not_normal_is_not_learned(trained: Bench) -> None:
    normal = trained.normal(30)
    for _ in range(40):
        batch = trained.batch([broken() for _ in range(10)])
        trained.detector.score(batch)
        trained.end_epoch()
        trained.detector.learn(batch, np.zeros(10, np.bool_))
    odd = trained.batch([broken()])
    if trained.name not in WINDOWS_ONLY:
        assert trained.detector.score(odd).value[0] > trained.detector.score(normal).value.max()


def odd_shape(bench: Bench, shape: str) -> ChainBatch:
    """A batch at the edge of what the join can give."""
    if shape == "wide":
        return bench.batch([span("gateway:pay", 9000, *[span("risk:check", 0.5) for _ in range(9_999)])])
    if shape == "unseen":
        return bench.batch([span("settlement:run", 5, span("clearing:net", 2, log("netted <*>")))])
    if shape == "empty":
        return bench.normal(1).take(np.zeros(0, np.int64))
    if shape == "lost":
        lost = bench.normal(2)
        lost.outcome[:] = Outcome.TIMEOUT
        lost.root[:] = NONE
        lost.parent[lost.offsets[:-1]] = NONE
        return lost
    single = bench.batch([span("gateway:pay", 5)])
    if shape == "log":
        only_log = replace(single, kind=np.zeros(1, np.uint8), duration=np.zeros(1, np.float32))
        only_log.self_time[:] = 0
        only_log.root[:] = NONE
        return only_log
    if shape == "other":
        one = np.zeros(1, np.int32)
        return replace(single, flow=one, path=one.copy(), event=one.copy())
    ns = np.full(1, LENGTHS[shape], np.float32)
    return replace(single, duration=ns, self_time=ns.copy())


LENGTHS = {"single": 5e6, "zero": 0.0, "negative": -5e6, "endless": 3e38}
SHAPES = ["empty", "single", "log", "lost", "wide", "unseen", "zero", "negative", "endless", "other"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", ["new", "trained"])
def test_odd_chains_are_scored_and_learned(name: str, trained: Bench, shape: str, state: str) -> None:
    bench = trained if state == "trained" else Bench(name, epochs=0, symbols=trained.symbols)
    batch = odd_shape(bench, shape)
    for _ in range(3):
        scores = bench.detector.score(batch).checked(batch)
        told(bench, scores.findings)
        told(bench, check_findings(bench.end_epoch()))
        bench.detector.learn(batch, np.ones(len(batch), np.bool_))
    after = bench.normal(5)
    bench.detector.score(after).checked(after)
    assert is_plain(bench.detector.snapshot())


def test_silence_is_no_error(trained: Bench) -> None:
    """Boundaries without chains, and a gap of a week."""
    for step in (EPOCH_S, EPOCH_S, 3600, 7 * 86_400, EPOCH_S):
        trained.now_s += step - EPOCH_S
        told(trained, check_findings(trained.end_epoch()))
    batch = trained.normal(10)
    trained.detector.score(batch).checked(batch)


@pytest.mark.slow
def test_memory_is_bounded_however_many_sequences_come(name: str) -> None:
    bench = Bench(name, epochs=3, symbols=Symbols(paths_max=1000, flows_max=200))
    base = bench.batch([payment(bench.rng) for _ in range(500)])
    events = np.arange(1, len(bench.symbols.events), dtype=np.int32)
    spans = events[bench.symbols.events.column("is_log")[events] == 0]
    tracemalloc.start()
    for number in range(ROUNDS):
        event = np.where(base.kind > 0, bench.rng.choice(spans, base.records), base.event).astype(np.int32)
        sequence = bench.rng.integers(0, 2**63, len(base)).astype(np.uint64)
        path = [bench.symbols.paths.add(content_hash(int(s)), "x", flow=1) for s in sequence]
        batch = replace(base, event=event, sequence=sequence, path=np.array(path, np.int32))
        batch.closed_ns[:] += EPOCH_S * NS
        bench.detector.score(batch)
        bench.end_epoch()
        bench.detector.learn(batch, np.full(len(batch), number % 2 == 0))
        if number == ROUNDS // 2:
            half, _ = tracemalloc.get_traced_memory()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < MEMORY_MAX, f"{used / 2**20:.0f} MiB after {ROUNDS * 500:,} distinct sequences"
    assert used < 1.3 * half + 2**20, "memory still grows with the number of sequences"
