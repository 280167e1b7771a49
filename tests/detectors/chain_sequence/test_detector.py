"""The chain-sequence detector on a small payment flow: what is new, broke off or shifted, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector_processor.config import ChainSequenceConfig
from collector_processor.model import NONE, ChainBatch, Findings, Kind, Outcome, Symbols
from detectors.chain_sequence import ChainSequence
from tests.builders import NS, START_S, Node, chains, span

EPOCH_S = 10.0
BEGIN_S = START_S - START_S % 300.0  # a slice begins


def payment(*, debit: bool = True, ledger: bool = True, twice: bool = False, extra: str | None = None) -> Node:
    """gateway -> order -> risk, account, ledger; parts left out or added."""
    steps = [span("risk:check", 10)]
    if debit:
        steps.append(span("account:debit", 10))
    if twice:
        steps += [span("notify:retry", 1), span("account:debit", 10)]
    if extra:
        steps.append(span(extra, 5))
    if ledger:
        steps.append(span("ledger:post", 5))
    return span("gateway:pay", 200, span("order:create", 150, *steps))


def refused() -> Node:
    return span("gateway:pay", 30, span("order:create", 20, span("risk:check", 5), span("letter:refuse", 5)))


class Bench:
    """A detector with its epochs: `run` scores chains, ends the epochs on the way, and learns at once."""

    def __init__(self, **config: Any) -> None:
        self.symbols = Symbols()
        self.config = ChainSequenceConfig(**config)
        self.detector = self.new()
        self.now = int(BEGIN_S * NS)
        self.traces = 1

    def new(self) -> ChainSequence:
        return ChainSequence(self.config, self.symbols, EPOCH_S, rows_max=1000)

    def batch(self, roots: list[Node], every_s: float = 1.0) -> ChainBatch:
        batch = chains(self.symbols, roots, start_s=self.now / NS, every_s=every_s, wait_s=0.0, first_trace=self.traces)
        self.traces += len(roots)
        return batch

    def run(self, roots: list[Node], *, every_s: float = 1.0, normal: bool = True) -> Findings:
        """All findings of the chains and of the windows that ended meanwhile."""
        batch = self.batch(roots, every_s)
        found = []
        while len(batch):
            boundary = self.now + int(EPOCH_S * NS)
            part = batch.take(batch.closed_ns <= boundary)
            batch = batch.take(batch.closed_ns > boundary)
            found.append(self.detector.score(part).checked(part).findings)
            found.append(self.detector.advance(boundary))
            self.detector.learn(part, np.full(len(part), normal))
            self.now = boundary
        return np.concatenate(found)

    def only(self, root: Node) -> tuple[float, np.void | None]:
        """The value and the finding of one chain scored now."""
        scores = self.detector.score(self.batch([root]))
        return float(scores.value[0]), scores.findings[0] if scores.findings.size else None

    def service(self, finding: np.void) -> str:
        return self.symbols.services.text[int(finding["service"])]


@pytest.fixture
def bench() -> Bench:
    ready = Bench()
    findings = ready.run([payment() if i % 4 else refused() for i in range(1000)])
    assert findings.size == 0
    return ready


def test_known_paths_are_quiet_and_rarer_ones_score_higher(bench: Bench) -> None:
    common, finding = bench.only(payment())
    rare, other = bench.only(refused())
    assert finding is None
    assert other is None
    assert common == 0.0
    assert rare == pytest.approx(-np.log(0.25), abs=0.05)


def test_a_path_with_an_unknown_step_is_a_new_sequence(bench: Bench) -> None:
    value, finding = bench.only(payment(extra="shadow:copy"))
    assert finding is not None
    assert finding["kind"] == Kind.NEW_SEQUENCE
    assert finding["p"] < 0.005
    assert value == pytest.approx(-np.log(finding["p"]))
    evidence = bench.detector.evidence(finding)
    assert evidence["step"] == "shadow copy"
    assert evidence["after"] == "account debit"
    assert bench.service(finding) == "order"  # who made the call


def test_a_step_done_twice_is_a_new_sequence_that_names_the_repeat(bench: Bench) -> None:
    _, finding = bench.only(payment(twice=True))
    assert finding is not None
    assert finding["kind"] == Kind.NEW_SEQUENCE
    assert bench.detector.evidence(finding)["step"] in {"notify retry", "account debit"}


def test_a_proper_subsequence_is_interrupted_and_names_the_missing_step(bench: Bench) -> None:
    _, finding = bench.only(payment(ledger=False))
    assert finding is not None
    assert finding["kind"] == Kind.INTERRUPTED_SEQUENCE
    evidence = bench.detector.evidence(finding)
    assert evidence["step"] == "ledger post"
    assert evidence["after"] == "account debit"
    assert evidence["path_share"] == pytest.approx(0.75, abs=0.01)
    assert evidence["share"] > 0.99  # of the chains that got as far as the debit
    assert evidence["known_path"].endswith("ledger post")


def test_a_subsequence_shorter_than_the_minimum_is_no_finding() -> None:
    bench = Bench(interrupted_length_min=3)
    bench.run([payment() for _ in range(200)])
    value, finding = bench.only(span("gateway:pay", 5, span("order:create", 3)))
    assert finding is None
    assert value > 4.0


def test_a_broken_off_path_is_attributed_by_transition_probability() -> None:
    bench = Bench()
    usual = span("g:a", 50, span("s:b", 5), span("s:c", 5), span("s:d", 5))
    seldom = span("g:a", 50, span("s:b", 5), span("s:c", 5), span("s:e", 5))
    bench.run([usual if i % 10 else seldom for i in range(300)])
    _, finding = bench.only(span("g:a", 50, span("s:b", 5), span("s:c", 5)))
    assert finding is not None
    assert bench.detector.evidence(finding)["step"] == "s d"


def test_the_callee_is_looked_at_first_when_a_client_span_got_no_answer() -> None:
    bench = Bench()

    def flow(answered: bool) -> Node:
        answer = [span("account:debit", 10)] if answered else []
        return span("gateway:pay", 90, span("gateway:call account", 50, *answer, kind="client"))

    bench.run([flow(True) for _ in range(200)])
    _, finding = bench.only(flow(False))
    assert finding is not None
    assert bench.service(finding) == "account"
    assert bench.symbols.services.text[int(finding["caller"])] == "gateway"


def test_a_caller_that_stops_points_at_whom_it_called_last(bench: Bench) -> None:
    """account answered, and order never went on to ledger; but order went on to ledger without account by itself."""
    _, stopped = bench.only(payment(ledger=False))
    assert stopped is not None
    assert bench.service(stopped) == "account"
    assert bench.symbols.services.text[int(stopped["caller"])] == "order"
    _, skipped = bench.only(payment(debit=False))
    assert skipped is not None
    assert bench.service(skipped) == "order"
    assert skipped["caller"] == NONE


def test_more_rounds_of_a_known_loop_are_the_same_path(bench: Bench) -> None:
    def stations(n: int) -> Node:
        return span("gateway:pay", 99, *[span("a:x", 1), span("b:y", 1)] * n)

    bench.run([stations(3) for _ in range(200)])
    value, finding = bench.only(stations(9))
    assert finding is None
    assert value < 3.0


def test_a_flow_whose_paths_vary_by_nature_is_not_flooded_with_findings() -> None:
    rng = np.random.default_rng(5)

    def varied() -> Node:
        steps = [span(f"s{i}:op", 2) for i in range(12) if rng.random() < 0.5]
        return span("gateway:search", 100, *steps)

    bench = Bench()
    bench.run([varied() for _ in range(1500)], every_s=0.2)
    fresh = bench.detector.score(bench.batch([varied() for _ in range(300)]))
    assert fresh.findings.size <= 0.05 * 300
    _, odd = bench.only(span("gateway:search", 100, span("s1:op", 2), span("never:seen", 2), span("s5:op", 2)))
    assert odd is not None
    assert odd["p"] < 0.02


def test_a_young_flow_is_quiet_and_says_until_when() -> None:
    bench = Bench(learn_chains_min=50)
    assert "no chain learned" in str(bench.detector.describe_state())
    assert bench.run([payment(extra=f"s{i}:op") for i in range(20)]).size == 0
    assert "20 of 50 chains" in str(bench.detector.describe_state())


def test_a_chain_whose_root_never_came_is_found_inside_the_flows_of_its_tenant(bench: Bench) -> None:
    headless = bench.batch([span("order:create", 150, span("risk:check", 10), span("account:debit", 10))])
    headless.outcome[:] = Outcome.TIMEOUT
    headless.root[:] = NONE
    scores = bench.detector.score(headless).checked(headless)
    assert scores.findings["kind"].tolist() == [Kind.INTERRUPTED_SEQUENCE]
    assert scores.findings["p"][0] < 0.01
    assert bench.detector.evidence(scores.findings[0])["step"] == "gateway pay"
    headless.outcome[:] = Outcome.COMPLETE
    assert bench.detector.score(headless).findings.size == 0


def test_a_chain_cut_short_by_a_cap_says_nothing(bench: Bench) -> None:
    cut = bench.batch([payment(ledger=False)])
    cut.outcome[:] = Outcome.EVICTED
    scores = bench.detector.score(cut)
    assert scores.findings.size == 0
    assert scores.value.tolist() == [0.0]


def test_the_same_finding_pages_only_when_it_repeats_within_a_slice(bench: Bench) -> None:
    twice = bench.run([payment(ledger=False)] * 2, normal=False)
    assert (twice["chain"] >= 0).sum() == 2
    assert (twice["chain"] == NONE).sum() == 0
    windows = bench.run([payment(ledger=False)] * 10, normal=False)
    windows = windows[windows["chain"] == NONE]
    assert set(windows["kind"].tolist()) == {Kind.INTERRUPTED_SEQUENCE}
    assert windows["actual"].max() == 12
    assert windows["p"].min() < 1e-5
    bench.now += 400 * NS
    assert bench.run([payment()]).size == 0


def test_anomalous_chains_do_not_become_normal(bench: Bench) -> None:
    bench.run([payment(ledger=False)] * 100, normal=False)
    value, finding = bench.only(payment(ledger=False))
    assert finding is not None
    assert value > 4.0
    bench.run([payment(ledger=False)] * 10, normal=True)  # audit samples: a tenth
    assert bench.only(payment(ledger=False))[1] is not None


def test_a_corrected_verdict_makes_the_path_normal(bench: Bench) -> None:
    bench.run([payment(ledger=False)] * 20, normal=False)
    bench.run([payment(ledger=False)] * 25, normal=True)
    assert bench.only(payment(ledger=False))[1] is None


def test_a_path_that_keeps_coming_for_longer_than_a_day_is_adopted() -> None:
    bench = Bench(adopt_s=3600.0, adopt_repeats=20)
    bench.run([payment()] * 200)
    bench.run([payment(extra="new:step")] * 50, normal=False, every_s=60.0)
    assert bench.only(payment(extra="new:step"))[1] is not None
    bench.run([payment(extra="new:step")] * 15, normal=False, every_s=60.0)
    assert bench.only(payment(extra="new:step"))[1] is None


def test_a_jump_in_a_paths_share_is_a_surge_and_the_other_a_drop(bench: Bench) -> None:
    quiet = bench.run([payment() if i % 4 else refused() for i in range(600)])
    assert quiet.size == 0
    found = bench.run([refused() if i % 4 else payment() for i in range(120)])
    assert {Kind.DISTRIBUTION_SURGE, Kind.DISTRIBUTION_DROP} <= set(found["kind"].tolist())
    surge = found[found["kind"] == Kind.DISTRIBUTION_SURGE][-1]
    evidence = bench.detector.evidence(surge)
    assert evidence["path"].endswith("letter refuse")
    assert surge["actual"] > surge["expected"]
    low, high = (float(part) for part in evidence["expected"].split(" to "))
    assert low <= surge["expected"] <= high < evidence["actual"]


def test_a_change_of_volume_alone_does_not_move_shares(bench: Bench) -> None:
    bench.run([payment() if i % 4 else refused() for i in range(600)])
    found = bench.run([payment() if i % 4 else refused() for i in range(1200)], every_s=0.25)
    assert found.size == 0


def test_traffic_that_stops_is_a_drop() -> None:
    bench = Bench()
    bench.run([payment() if i % 4 else refused() for i in range(4500)])
    found = np.concatenate([bench.detector.advance(bench.now + int(k * EPOCH_S * NS)) for k in range(1, 13)])
    drops = found[found["kind"] == Kind.RATE_DROP]
    assert bench.detector.evidence(drops[0])["within_s"] == 60.0, "a minute is enough, though the first slice was short"
    assert drops["actual"].min() == 0
    assert bench.detector.evidence(drops[-1])["within_s"] in {60.0, 300.0}


@pytest.mark.slow
def test_what_is_normal_at_night_is_unusual_at_noon() -> None:
    bench = Bench(slice_s=3600.0)
    day = 86_400 * NS
    start = bench.now - bench.now % day + 7 * day
    batch_run = span("gateway:pay", 9, span("settlement:close", 5))
    for days in range(4):
        for hour in (2, 12):
            bench.now = start + days * day + hour * 3600 * NS
            bench.run([batch_run if hour == 2 else payment() for _ in range(360)], every_s=10.0)
    bench.now = start + 4 * day + 2 * 3600 * NS
    bench.run([batch_run] * 2)
    night, _ = bench.only(batch_run)
    bench.now = start + 4 * day + 12 * 3600 * NS
    bench.run([payment()] * 2)
    noon, _ = bench.only(batch_run)
    assert night < 1.0
    assert noon > 3.0


def test_scores_do_not_depend_on_how_chains_are_batched(bench: Bench) -> None:
    roots = [payment(), payment(ledger=False), refused(), payment(extra="a:b"), payment(ledger=False)]
    batch = bench.batch(roots)
    restored = bench.new()
    restored.restore(bench.detector.snapshot())
    whole = bench.detector.score(batch)
    for chain in range(len(batch)):
        one = restored.score(batch.take(np.array([chain])))
        assert one.value[0] == whole.value[chain]
        expected = whole.findings[whole.findings["chain"] == chain].copy()
        expected["chain"] = 0
        assert (one.findings == expected).all()


def test_a_restored_detector_goes_on_the_same(bench: Bench) -> None:
    bench.run([payment(ledger=False), payment(extra="a:b")] * 2, normal=False)
    other = bench.new()
    other.restore(bench.detector.snapshot())
    for round_ in range(40):
        batch = bench.batch([payment(), refused(), payment(extra="a:b"), payment(extra=f"x{round_}:y")])
        ours, theirs = bench.detector.score(batch), other.score(batch)
        assert (ours.value == theirs.value).all()
        assert (ours.findings == theirs.findings).all()
        bench.now += int(EPOCH_S * NS)
        assert (bench.detector.advance(bench.now) == other.advance(bench.now)).all()
        normal = np.array([True, True, False, round_ % 2 == 0])
        bench.detector.learn(batch, normal)
        other.learn(batch, normal)


def test_a_full_symbol_list_still_tells_paths_apart() -> None:
    bench = Bench()
    bench.symbols.paths.limit = 1
    bench.run([payment() if i % 4 else refused() for i in range(400)])
    assert bench.only(payment())[1] is None
    assert bench.only(payment(ledger=False))[1] is not None


def test_the_table_of_paths_is_bounded() -> None:
    bench = Bench()
    bench.detector = ChainSequence(bench.config, bench.symbols, EPOCH_S, rows_max=50)
    bench.run([payment()] * 100)
    for i in range(120):
        bench.run([payment(extra=f"s{i}:op"), payment()])
    assert bench.detector.paths.size <= 51
    assert bench.only(payment())[1] is None


def test_a_snapshot_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        Bench().detector.restore({"version": 2})
