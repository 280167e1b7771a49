"""The retrieval detector on a small payment flow: what is far from every known content, by how much, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector_processor.config import RetrievalConfig
from collector_processor.model import NONE, ChainBatch, Kind, Level, content_hash
from detectors.protocol import Scores
from detectors.retrieval import Retrieval
from tests.builders import NS, Node, log, span
from tests.detectors.bench import ChainBench


def payment(*extra: Node, debit_log: str = "debited <*> from account <*>", rounds: int = 1) -> Node:
    debit = span("account:debit", 10, log(debit_log))
    return span("gateway:pay", 99, span("risk:check", 5, *[log("score <*> computed")] * rounds), debit, *extra)


def with_value(batch: ChainBatch, event: str, values: list[str]) -> ChainBatch:
    """One cell a chain: attribute 0 of the first record named `event`."""
    names = np.array(batch.symbols.events.text)
    records = [
        int(lo + np.flatnonzero(names[batch.event[lo:hi]] == event)[0])
        for lo, hi in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
    ]
    batch.cell_record = np.array(records, np.int32)
    batch.cell_key = np.zeros(len(batch), np.int32)
    batch.cell_number = np.full(len(batch), np.nan)
    batch.cell_hash = np.array([content_hash(value) for value in values], np.uint64)
    return batch


class Bench(ChainBench):
    def __init__(self, **config: Any) -> None:
        self.config = RetrievalConfig(**config)
        super().__init__()

    def new(self) -> Retrieval:
        return Retrieval(self.config, self.symbols, ("user.name",))


@pytest.fixture
def bench() -> Bench:
    ready = Bench()
    mail = span("notify:mail", 3, log("mail sent"))
    ready.learn([payment(mail) if i % 4 == 0 else payment() for i in range(800)])
    return ready


def test_known_content_has_no_distance_unless_it_was_seen_once_or_twice(bench: Bench) -> None:
    bench.learn([payment(log("once"))])
    assert bench.only(payment())[:2] == (0.0, None)
    assert bench.only(payment(span("notify:mail", 3, log("mail sent"))))[:2] == (0.0, None)
    value, finding, _ = bench.only(payment(log("once")))
    assert finding is None
    assert value > 5.0


def test_an_unknown_log_line_stands_out(bench: Bench) -> None:
    value, finding, evidence = bench.only(payment(log("java.lang.NullPointerException in debit")))
    assert finding is not None
    assert finding["kind"] == Kind.UNUSUAL_CONTENT
    assert finding["level"] == Level.TEMPLATE
    assert evidence["template"].startswith("java.lang")
    assert evidence["deviation"] == "extra"
    assert value == pytest.approx(-np.log(finding["p"]))
    assert finding["p"] < 0.005


def test_a_missing_step_stands_out(bench: Bench) -> None:
    _, finding, evidence = bench.only(span("gateway:pay", 99, span("risk:check", 5, log("score <*> computed"))))
    assert finding is not None
    assert evidence["deviation"] == "missing"
    assert "debit" in (evidence.get("step") or evidence["template"])


def test_what_is_farther_away_scores_higher(bench: Bench) -> None:
    one, _, near = bench.only(payment(log("unheard of")))
    all_, _, far = bench.only(span("gateway:pay", 9, span("x:a", 1), span("y:b", 1, log("strange")), span("z:c", 1)))
    assert far["distance"] > near["distance"]
    assert all_ > one


def test_a_reworded_line_is_nearer_than_a_foreign_one(bench: Bench) -> None:
    *_, reworded = bench.only(payment(debit_log="debited <*> from account <*> ok"))
    *_, foreign = bench.only(payment(debit_log="connection reset by peer"))
    assert reworded["distance"] < 0.7 * foreign["distance"]


def test_one_round_more_of_a_long_loop_is_the_same_content() -> None:
    bench = Bench()
    bench.learn([payment(rounds=12) for _ in range(100)])
    value, finding, _ = bench.only(payment(rounds=13))
    assert finding is None
    assert value == 0.0
    assert bench.only(payment(rounds=60))[1] is not None


def test_a_new_value_where_new_values_are_rare(bench: Bench) -> None:
    users = ["ann", "bob", "eve"]
    for i in range(40):
        batch = with_value(bench.batch([payment()] * 10), "debit", [users[(i + k) % 3] for k in range(10)])
        bench.detector.learn(batch, np.ones(10, np.bool_))
    batch = with_value(bench.batch([payment()] * 2), "debit", ["ann", "mallory"])
    scores = bench.detector.score(batch).checked(batch)
    assert scores.findings["chain"].tolist() == [1]
    assert scores.value[1] > scores.value[0] + 3.0
    evidence = bench.detector.evidence(scores.findings[0])
    assert evidence["attribute"] == "user.name"
    assert "never seen" in evidence["text"]


def test_values_of_an_id_are_never_judged_nor_kept(bench: Bench) -> None:
    for i in range(60):
        batch = with_value(bench.batch([payment()] * 10), "debit", [f"payment-{i}-{k}" for k in range(10)])
        assert bench.detector.score(batch).findings.size == 0
        bench.detector.learn(batch, np.ones(10, np.bool_))
    assert bench.detector.values.used[1] < 100


def test_anomalous_content_trains_nothing_until_it_has_kept_coming() -> None:
    bench = Bench(adopt_s=1000.0, adopt_repeats=20)
    bench.learn([payment()] * 200)
    bench.learn([payment(log("new line"))] * 60, normal=False)
    assert bench.only(payment(log("new line")))[1] is not None
    bench.now += 2000
    bench.learn([payment(log("new line"))] * 20, normal=False)
    bench.now += 600
    bench.learn([payment()])
    assert bench.only(payment(log("new line")))[1] is None


def test_a_young_flow_is_quiet_and_says_until_when() -> None:
    bench = Bench(learn_chains_min=50)
    bench.learn([payment(log(f"line {i}")) for i in range(20)])
    assert bench.only(payment(log("another")))[:2] == (0.0, None)
    assert "20 of 50 chains" in str(bench.detector.describe_state())


def test_the_core_is_bounded() -> None:
    bench = Bench(core_max=64)
    bench.learn([payment()] * 100)
    bench.learn([payment(log(f"line {i}")) if i % 2 else payment() for i in range(300)])
    assert bench.detector.bags.size <= 64 + 20
    assert bench.only(payment())[1] is None


def test_batching_and_restoring_leave_no_trace(bench: Bench) -> None:
    bench.learn([payment(log("seen by few")), payment()] * 5, normal=False)
    other = bench.new()
    other.restore(bench.detector.snapshot())
    for round_ in range(30):
        roots = [payment(), payment(log("seen by few")), payment(debit_log=f"debited <*> variant {round_ // 3}")]
        batch = with_value(bench.batch(roots), "debit", ["ann", "ann", f"user {round_}"])
        whole = bench.detector.score(batch)
        parts = [other.score(batch.take(np.array([chain]))) for chain in range(3)]
        assert whole.value.tolist() == [float(part.value[0]) for part in parts]
        assert [f.item()[1:] for f in whole.findings] == [f.item()[1:] for part in parts for f in part.findings]
        bench.now += 10
        bench.detector.advance(int(bench.now * NS))
        other.advance(int(bench.now * NS))
        normal = np.array([True, False, round_ % 2 == 0])
        bench.detector.learn(batch, normal)
        other.learn(batch, normal)


def test_an_event_beyond_the_list_is_still_content(bench: Bench) -> None:
    bench.symbols.events.limit = len(bench.symbols.events)
    scores: Scores = bench.detector.score(bench.batch([payment(log("one too many"))]))
    assert scores.findings.size == 1
    assert scores.findings["event"][0] != NONE


def test_a_snapshot_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        Bench().detector.restore({"version": 2})
