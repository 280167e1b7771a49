"""The sequence detector: which orders inside spans are improbable, with n-grams alone and with the model that ships."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector_processor.config import Config, SequenceTransformerConfig
from collector_processor.model import Kind, Level, Outcome, Symbols, content_hash
from collector_processor.training.synthetic import make_system
from detectors.sequence_transformer import SequenceTransformer, build
from detectors.sequence_transformer.lanes import Lane
from tests.builders import NS, Node, log, span
from tests.detectors.bench import ChainBench


def payment(*lines: str, calls: tuple[str, ...] = ("risk:check", "account:debit", "ledger:post")) -> Node:
    said = lines or ("payment <*> received", "risk passed", "amount <*> debited", "payment <*> done")
    return span("gateway:pay", 99, span("order:create", 90, *map(log, said), *(span(call, 5) for call in calls)))


class Bench(ChainBench):
    def __init__(self, model: str = "none", **config: Any) -> None:
        section = SequenceTransformerConfig(model=model, **config)
        detectors = Config().detectors.model_copy(update={"sequence_transformer": section})
        self.config = Config().model_copy(update={"detectors": detectors})
        super().__init__()

    def new(self) -> SequenceTransformer:
        return build(self.config, self.symbols)


@pytest.fixture(params=["none", "general"])
def bench(request: pytest.FixtureRequest) -> Bench:
    ready = Bench(request.param)
    ready.learn([payment() if i % 5 else payment(calls=("risk:check", "ledger:post")) for i in range(400)])
    return ready


def test_the_usual_order_is_quiet(bench: Bench) -> None:
    value, finding, _ = bench.only(payment())
    assert finding is None
    assert value < 2.0


def test_log_lines_in_another_order_are_improbable(bench: Bench) -> None:
    value, finding, evidence = bench.only(
        payment("payment <*> received", "amount <*> debited", "risk passed", "payment <*> done")
    )
    assert finding is not None
    assert finding["kind"] == Kind.UNLIKELY_SEQUENCE
    assert finding["level"] == Level.TEMPLATE
    assert value > 5.0
    assert finding["p"] < 0.01
    assert evidence["inside"] == "create"
    assert evidence["after"] in {"payment <*> received", "amount <*> debited", "risk passed"}


def test_calls_in_another_order_are_improbable_and_what_was_expected_is_named(bench: Bench) -> None:
    _, finding, evidence = bench.only(payment(calls=("account:debit", "risk:check", "ledger:post")))
    assert finding is not None
    assert bench.symbols.services.text[int(finding["service"])] == "order"
    assert evidence["of"] == "calls"
    assert evidence["expected"] in {"check", "post", "debit", "the end"}


def test_an_early_end_is_improbable(bench: Bench) -> None:
    _, finding, evidence = bench.only(payment("payment <*> received", "risk passed"))
    assert finding is not None
    assert evidence["step"] == "the end"
    assert evidence["expected"] == "amount <*> debited"


def test_more_rounds_of_a_loop_are_no_news(bench: Bench) -> None:
    def stations(rounds: int) -> Node:
        return payment(*["looking up station", "station found"] * rounds)

    bench.learn([stations(3)] * 100)
    assert bench.only(stations(7))[1] is None


def test_a_branch_in_parallel_does_not_change_the_lanes() -> None:
    """Logs between calls move with every run; logs and calls are judged apart."""
    bench = Bench()

    def run(log_at: float) -> Node:
        inner = [span("a:x", 10, at_ms=10), log("half way", at_ms=log_at), span("b:y", 10, at_ms=40)]
        return span("order:create", 90, *inner)

    bench.learn([run(5.0)] * 100)
    assert bench.only(run(60.0))[0] == bench.only(run(5.0))[0]


def test_log_only_chains_have_one_lane(bench: Bench) -> None:
    batch = bench.batch([payment()] * 3)
    batch.kind[:] = 0
    batch.parent[:] = -1
    batch.enters[:] = False
    found = bench.detector.lanes.find(batch)
    assert np.diff(found.offsets).tolist() == [1, 1, 1]


def test_what_anomalous_chains_do_is_not_learned_until_it_has_kept_coming() -> None:
    bench = Bench(adopt_s=1000.0, adopt_repeats=20)
    bench.learn([payment()] * 200)
    odd = payment("payment <*> received", "payment <*> done")
    bench.learn([odd] * 60, normal=False)
    assert bench.only(odd)[1] is not None
    bench.now += 2000
    bench.learn([odd] * 20, normal=False)
    bench.now += 600
    bench.learn([payment()] * 20)
    assert bench.only(odd)[0] < 3.0


def test_a_chain_cut_short_by_a_cap_says_nothing(bench: Bench) -> None:
    batch = bench.batch([payment("payment <*> received")])
    batch.outcome[:] = Outcome.EVICTED
    scores = bench.detector.score(batch)
    assert scores.value.tolist() == [0.0]
    assert scores.findings.size == 0
    lanes = bench.detector.lanes.view("good").copy()
    bench.detector.learn(batch, np.ones(1, np.bool_))
    assert (bench.detector.lanes.view("good")[: lanes.size] == lanes).all()


def test_a_young_flow_is_quiet_and_says_until_when() -> None:
    bench = Bench(learn_chains_min=50)
    assert "no chain learned" in str(bench.detector.describe_state())
    bench.learn([payment()] * 20)
    assert bench.only(payment("nothing", "like", "it"))[1] is None
    assert "20 of 50 chains" in str(bench.detector.describe_state())


def test_the_table_of_lanes_is_bounded() -> None:
    bench = Bench(lanes_max=60)
    bench.learn([payment()] * 100)
    bench.learn([payment(f"line {i}") if i % 2 else payment() for i in range(300)])
    assert bench.detector.lanes.size <= 60 + 80
    assert bench.only(payment())[1] is None


def test_batching_and_restoring_leave_no_trace(bench: Bench) -> None:
    bench.learn([payment("seen", "by few"), payment()] * 5, normal=False)
    other = bench.new()
    other.restore(bench.detector.snapshot())
    for round_ in range(30):
        roots = [payment(), payment("seen", "by few"), payment("payment <*> received", f"variant {round_ // 3}")]
        batch = bench.batch(roots)
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


def test_a_snapshot_of_another_model_keeps_what_was_counted() -> None:
    bench = Bench("none")
    bench.learn([payment()] * 200)
    bench.config = Bench("general").config
    other = bench.new()
    other.restore(bench.detector.snapshot())
    assert other.version() != bench.detector.version()
    assert (other.lanes.view("good") == bench.detector.lanes.view("good")).all()
    assert (other.lanes.model[: other.lanes.used] > 0).any()


def test_the_model_beats_the_n_grams_alone_on_lanes_never_seen() -> None:
    """Systems made up with seeds that it was not trained on: nats per event of lanes that were held out."""
    nats: dict[str, list[float]] = {"none": [], "general": []}
    for seed in range(20_000, 20_010):
        system = make_system(seed)
        for model, surprises in nats.items():
            symbols = Symbols()
            for number, (text, is_log) in enumerate(zip(system.texts, system.is_log, strict=True)):
                symbols.events.add(content_hash(number), text, service=0, is_log=int(is_log))
            table = build(Bench(model).config, symbols).lanes
            held = [lane for number, lane in enumerate(system.lanes) if number % 5 == 0]
            for number, (head, kind, events, weight) in enumerate(system.lanes):
                if number % 5:
                    table.counts.learn(Lane(head + (head >= 0), kind, np.array(events, np.int32) + 1), weight)
            table.vocabulary = np.arange(1, len(symbols.events), dtype=np.int32)
            for head, kind, events, _ in held:
                lane = np.array([head + (head >= 0)], np.int32), np.array([kind]), np.array([0, len(events)])
                [row] = table.add(*lane, np.array(events, np.int32) + 1, np.zeros(1, np.int64)).tolist()
                table.value_new(row)
                surprises += table.surprisals(row).tolist()
    assert np.mean(nats["general"]) < 0.9 * np.mean(nats["none"])


def test_a_snapshot_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        Bench().detector.restore({"version": 2})
