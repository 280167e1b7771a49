"""The Decider: budget kept over long runs, trouble not learned, verdicts independent of how chains are grouped."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from collector_processor.config import BusinessConfig, CalendarConfig, Config, DecideConfig, JoinConfig, PeriodConfig
from collector_processor.decide.verdicts import Decider, incident_row, verdict_id, verdict_rows
from collector_processor.model import (
    F64,
    ChainBatch,
    Findings,
    Incident,
    Kind,
    Outcome,
    Severity,
    Symbols,
    VerdictBatch,
    no_findings,
)
from tests.builders import chains, span

COMPONENTS = {"shape": "seq", "size": "ctx"}
EPOCH_NS = 10_000_000_000


@dataclass
class Scored:
    value: F64
    findings: Findings = field(default_factory=no_findings)


@dataclass
class Source:
    """A detector as far as decide asks: evidence and version."""

    told: dict[str, Any] = field(default_factory=dict)
    model: str = "1"
    asked: int = 0

    def evidence(self, finding: np.void) -> dict[str, Any]:
        self.asked += 1
        return {"detail": int(finding["detail"])} | self.told

    def version(self) -> str:
        return self.model


class Bench:
    """A decider with two sources, its epochs, and a quarantine of one epoch."""

    def __init__(self, config: Config | None = None, symbols: Symbols | None = None, **told: Any) -> None:
        self.symbols = symbols or Symbols()
        self.sources = {"shape": Source(), "size": Source(told)}
        self.decider = Decider(config or Config(), self.symbols, self.sources, COMPONENTS)
        self.now = 1_700_000_000 * 1_000_000_000
        self.waiting: list[tuple[ChainBatch, Any]] = []
        self.rng = np.random.default_rng(0)
        self.trace = 1
        self.troubled: list[int] = []

    def batch(self, n: int, **cells: float) -> ChainBatch:
        roots = [span("gateway:pay", 10, cells=dict.fromkeys([0], cells["amount"]) if cells else None)] * n
        self.trace += n
        return chains(self.symbols, roots, start_s=self.now / 1e9, every_s=10.0 / n, first_trace=self.trace - n)

    def normal(self, n: int) -> dict[str, Scored]:
        return {name: Scored(self.rng.exponential(1.0, n)) for name in self.sources}

    def epoch(self, batch: ChainBatch, scores: dict[str, Scored]) -> VerdictBatch:
        """Decides the batch, ends the epoch and learns what the epoch before left in quarantine."""
        verdicts = self.decider.decide(batch, scores)
        self.now += EPOCH_NS
        self.decider.advance(self.now, self.troubled)
        for due, training in self.waiting:
            self.decider.learn(due, training, self.decider.clear(due, training))
        self.waiting = [(batch, verdicts.training)]
        return verdicts

    def train(self, epochs: int = 20, n: int = 40) -> Bench:
        for _ in range(epochs):
            self.epoch(self.batch(n), self.normal(n))
        return self


def violation(chain: int, p: float = 1e-6) -> Findings:
    found = no_findings(1)
    found["chain"], found["kind"], found["p"], found["detail"] = chain, Kind.RULE_VIOLATION, p, 7
    return found


def findings(*rows: tuple[int, Kind, float]) -> Findings:
    found = no_findings(len(rows))
    for name, values in zip(("chain", "kind", "p"), zip(*rows, strict=True), strict=True):
        found[name] = values
    return found


def far(n: int, size: float = 40.0) -> dict[str, Scored]:
    return {"shape": Scored(np.full(n, size)), "size": Scored(np.full(n, size))}


@pytest.mark.parametrize("alerts", [500.0, 5000.0])
def test_the_alarm_rate_stays_at_the_budget_and_does_not_run_away(alerts: float) -> None:
    """Dropping alarmed scores from calibration would cut the tail off a little more with every turn of the ring."""
    bench = Bench(Config(decide=DecideConfig(alerts_per_day=alerts, probability_max=0.05))).train()
    first, rates = bench.batch(100), []
    for _ in range(6):
        alarms = 0
        for _ in range(100):
            bench.trace += 100
            batch = replace(first, trace_lo=first.trace_lo + np.uint64(bench.trace))
            alarms += int((bench.epoch(batch, bench.normal(100)).severity > Severity.NONE).sum())
        rates.append(alarms / 10_000)
    target = alerts / (100 * 8640)
    assert target / 3 < np.mean(rates) < 3 * target
    assert np.mean(rates[-3:]) < 2 * np.mean(rates[:3]) + target


def gateway(bench: Bench) -> int:
    return bench.symbols.services.text.index("gateway")


@pytest.mark.slow
def test_trouble_that_lasts_is_not_learned_while_its_incident_is_open() -> None:
    bench = Bench().train()
    bench.troubled = [gateway(bench)]
    broken = np.arange(40) % 2 == 0
    for _ in range(200):
        scores = bench.normal(40)
        scores["size"].value[broken] += 60.0
        scores["size"].findings = findings(*[(c, Kind.SLOW_OPERATION, 1e-6) for c in np.flatnonzero(broken)])
        last = bench.epoch(bench.batch(40), scores)
    assert (last.severity[broken] > Severity.NONE).all()
    assert last.score[broken].min() > 0.7


def test_a_chain_through_the_service_of_an_open_incident_needs_less() -> None:
    bench = Bench().train()
    scores = {name: Scored(np.full(1, 3.5)) for name in bench.sources}
    before = bench.decider.decide(bench.batch(1), scores)
    bench.decider.advance(bench.now, [gateway(bench)])
    inside = bench.decider.decide(bench.batch(1), scores)
    elsewhere = bench.decider.decide(chains(bench.symbols, [span("batch:run", 5)], first_trace=99_000), scores)
    assert before.severity[0] == elsewhere.severity[0] == Severity.NONE < inside.severity[0]
    assert inside.score[0] > before.score[0]
    context = next(verdict_rows(inside, np.arange(1)))["explanation"]["context"]
    assert "an incident is open at a service that it went through" in context


def test_rare_variants_that_no_incident_explains_are_learned() -> None:
    """Were they left out, the tail of the calibration would be cut off and they would alarm for ever."""
    bench = Bench().train()
    for _ in range(100):
        scores = bench.normal(40)
        scores["shape"].value[::10] += 20.0
        last = bench.epoch(bench.batch(40), scores)
    assert (last.severity == Severity.NONE).all()
    assert last.components["shape"][::10].min() > 0.01


def test_a_change_of_the_whole_flow_without_damage_becomes_normal() -> None:
    bench = Bench().train()
    unusual = []
    for epoch in range(100):
        bench.troubled = [gateway(bench)] if 5 < epoch < 50 else []  # it opens an incident, which finds less and less
        scores = bench.normal(40)
        scores["shape"].value += 60.0
        unusual.append((bench.epoch(bench.batch(40), scores).severity > Severity.NONE).mean())
    assert unusual[0] > 0.9
    assert np.mean(unusual[-10:]) < 0.05


def test_what_a_release_made_suspect_trains_the_detectors_and_not_the_calibration() -> None:
    bench = Bench().train()
    before = bench.decider.decide(bench.batch(40), far(40)).components["shape"]
    for _ in range(10):
        batch = bench.batch(40)
        training = bench.decider.decide(batch, far(40)).training
        bench.decider.advance(bench.now, [], [gateway(bench)])
        clear = bench.decider.clear(batch, training)
        assert clear.all()
        bench.decider.learn(batch, training, clear)
    assert (bench.decider.decide(bench.batch(40), far(40)).components["shape"] == before).all()
    bench.decider.advance(bench.now)
    bench.decider.learn(batch, training, clear)
    assert (bench.decider.decide(bench.batch(40), far(40)).components["shape"] > before).all()


def test_an_outage_of_the_whole_flow_does_not_become_normal() -> None:
    bench = Bench().train()
    bench.troubled = [gateway(bench)]
    for _ in range(150):
        scores = far(40)
        scores["size"].findings = findings(*[(c, Kind.ERROR, 1e-6) for c in range(40)])
        last = bench.epoch(bench.batch(40), scores)
    assert (last.severity == Severity.CRITICAL).all()


def test_verdicts_do_not_depend_on_the_grouping() -> None:
    bench = Bench().train()
    batch, scores = bench.batch(60), bench.normal(60)
    scores["size"].value[::7] += 30.0
    scores["size"].findings = findings(*[(c, Kind.SLOW_CALL, 1e-5) for c in range(0, 60, 7)])
    whole = bench.decider.decide(batch, scores)
    rows = list(verdict_rows(whole, np.arange(60)))
    parts: list[dict[str, Any]] = []
    for cut in np.array_split(np.arange(60), 11):
        part = {
            name: Scored(one.value[cut], one.findings[np.isin(one.findings["chain"], cut)].copy())
            for name, one in scores.items()
        }
        for one in part.values():
            one.findings["chain"] -= cut[0]
        verdicts = bench.decider.decide(batch.take(cut), part)
        parts += verdict_rows(verdicts, np.ones(len(cut), np.bool_))
    assert json.dumps(rows) == json.dumps(parts)


def test_a_restored_decider_goes_on_the_same() -> None:
    one = Bench().train()
    two = Bench(symbols=one.symbols)
    two.decider.restore(one.decider.snapshot())
    two.now, two.waiting = one.now, list(one.waiting)
    for _ in range(3):
        batch, scores = one.batch(40), one.normal(40)
        verdicts = [bench.epoch(batch, scores) for bench in (one, two)]
        assert verdicts[0].score.tobytes() == verdicts[1].score.tobytes()


def test_a_verdict_has_the_public_shape() -> None:
    bench = Bench().train()
    scores = far(3)
    scores["size"].findings = findings((0, Kind.SLOW_OPERATION, 1e-6), (0, Kind.ERROR, 1e-9), (2, Kind.ERROR, 1e-3))
    scores["shape"].findings = findings((1, Kind.NEW_SEQUENCE, 1e-4))
    verdicts = bench.decider.decide(bench.batch(3), scores)
    rows = list(verdict_rows(verdicts, np.ones(3, np.bool_)))
    first = rows[0]
    assert list(first) == [
        *("verdict_id", "tenant", "trace_id", "flow", "start_unix_nano", "end_unix_nano", "score", "severity"),
        *("category", "findings", "components", "models", "explanation"),
    ]
    assert [f["kind"] for f in first["findings"]] == ["error", "slow_operation"]
    assert [f["detector"] for f in rows[1]["findings"]] == ["shape"]
    assert set(first["findings"][0]) == {"detector", "kind", "subject", "p_value", "evidence"}
    assert [row["category"] for row in rows] == ["system", "operational", "system"]
    assert set(first["components"]) == {"seq", "ctx", "shape", "size"}
    assert set(first["explanation"]) == {"trigger", "context", "affected", "actions"}
    assert first["severity"] == "critical"
    assert rows[1]["severity"] == "warning"
    assert first["models"] == {"shape": "1", "size": "1"}
    json.dumps(rows, allow_nan=False)


def test_a_usual_chain_is_not_explained_and_costs_no_evidence() -> None:
    bench = Bench().train()
    scores = {name: Scored(np.zeros(5)) for name in bench.sources}
    scores["size"].findings = findings((1, Kind.SLOW_CALL, 0.2))
    verdicts = bench.decider.decide(bench.batch(5), scores)
    rows = list(verdict_rows(verdicts, np.arange(5)))
    assert (verdicts.severity == Severity.NONE).all()
    assert not any("explanation" in row for row in rows)
    assert all(row["category"] is None and row["severity"] == "none" for row in rows)
    assert bench.sources["size"].asked == 0


def test_equal_findings_are_asked_about_once() -> None:
    bench = Bench().train()
    scores = far(30)
    scores["size"].findings = findings(*[(c, Kind.ERROR, 1e-9) for c in range(30)])
    bench.decider.decide(bench.batch(30), scores)
    assert bench.sources["size"].asked == 1


def test_an_unusual_chain_without_findings_is_explained_too() -> None:
    bench = Bench().train()
    row = next(verdict_rows(bench.decider.decide(bench.batch(1), far(1)), np.arange(1)))
    assert row["severity"] == "warning"
    assert row["category"] == "operational"
    assert "as a whole" in row["explanation"]["trigger"]
    assert "judged by 300 of the same flow" in row["explanation"]["context"]


def test_a_certain_rule_needs_neither_history_nor_odds() -> None:
    bench = Bench(rule="balance", certain=True, severity="critical", category="compliance", text="Debit is not credit")
    scores = {name: Scored(np.zeros(2)) for name in bench.sources}
    scores["size"].findings = violation(1, p=0.5)
    verdicts = bench.decider.decide(bench.batch(2), scores)
    assert verdicts.severity.tolist() == [Severity.NONE, Severity.CRITICAL]
    row = next(verdict_rows(verdicts, np.array([1])))
    assert row["category"] == "compliance"
    assert row["explanation"]["trigger"] == "Debit is not credit."
    assert "no odds were weighed" in row["explanation"]["context"]
    bench.decider.advance(bench.now + EPOCH_NS)
    assert bench.decider.clear(verdicts.chains, verdicts.training).tolist() == [True, False]


def test_a_rule_that_is_not_certain_sets_the_severity_of_what_is_unusual() -> None:
    bench = Bench(rule="limit", severity="critical").train()
    scores = {name: Scored(np.array([0.0, 40.0])) for name in bench.sources}
    scores["size"].findings = np.concatenate([violation(0), violation(1)])
    verdicts = bench.decider.decide(bench.batch(2), scores)
    assert verdicts.severity.tolist() == [Severity.NONE, Severity.CRITICAL]


def test_without_history_the_detectors_own_odds_count() -> None:
    bench = Bench()
    scores = {name: Scored(np.zeros(3)) for name in bench.sources}
    scores["shape"].findings = findings((0, Kind.NEW_SEQUENCE, 1e-7), (1, Kind.NEW_SEQUENCE, 0.2))
    verdicts = bench.decider.decide(bench.batch(3), scores)
    assert (verdicts.severity > 0).tolist() == [True, False, False]
    row = next(verdict_rows(verdicts, np.array([0])))
    assert "there is no history yet" in row["explanation"]["context"]


def test_money_and_the_calendar_weigh() -> None:
    decide = DecideConfig(
        business=BusinessConfig(amount="amount", amount_critical=1e6, amount_minor=5.0),
        calendar=CalendarConfig(
            periods=(PeriodConfig(name="always", days=("tue", "wed"), start="00:00", end="23:59", severity=1),)
        ),
    )
    config = Config(join=JoinConfig(attributes=("amount",)), decide=decide)
    bench = Bench(config).train()
    for amount, severity in ((2e6, Severity.CRITICAL), (1.0, Severity.INFO), (700.0, Severity.CRITICAL)):
        verdicts = bench.decider.decide(bench.batch(2, amount=amount), far(2))
        assert verdicts.severity.tolist() == [severity, severity]
        row = next(verdict_rows(verdicts, np.array([1])))
        assert row["explanation"]["affected"]["amount"] == amount
        assert "during always" in row["explanation"]["context"]


def test_an_amount_that_is_not_read_is_refused() -> None:
    decide = DecideConfig(business=BusinessConfig(amount="amount"))
    with pytest.raises(ValueError, match=r"join\.attributes"):
        Bench(Config(decide=decide))


def test_an_incomplete_chain_says_so() -> None:
    bench = Bench().train()
    batch = bench.batch(2)
    batch.outcome[:] = [Outcome.TIMEOUT, Outcome.EVICTED]
    rows = list(verdict_rows(bench.decider.decide(batch, far(2)), np.arange(2)))
    assert "root never came" in rows[0]["explanation"]["context"]
    assert "cut short" in rows[1]["explanation"]["context"]


def test_the_id_depends_on_what_a_chain_is_and_not_on_its_score() -> None:
    bench = Bench().train()
    batch = bench.batch(2)
    one = bench.decider.decide(batch, bench.normal(2))
    two = bench.decider.decide(batch, far(2))
    assert verdict_id(one, 0) == verdict_id(two, 0) != verdict_id(two, 1)
    other = Bench()
    other.symbols.tenants.add(99, "a tenant that shifts every id")
    same = other.decider.decide(chains(other.symbols, [span("gateway:pay", 10)] * 2), other.normal(2))
    again = Bench()
    same_again = again.decider.decide(chains(again.symbols, [span("gateway:pay", 10)] * 2), again.normal(2))
    assert verdict_id(same_again, 0) == verdict_id(same, 0)
    assert len(verdict_id(one, 0)) == 16


def test_a_new_model_starts_its_calibration_anew() -> None:
    bench = Bench().train()
    bench.sources["size"].model = "2"
    bench.decider.note_reload()
    bench.decider.advance(bench.now + EPOCH_NS)
    verdicts = bench.decider.decide(bench.batch(1), far(1))
    assert verdicts.components["size"][0] == 1.0
    assert verdicts.components["shape"][0] < 1e-3
    assert verdicts.models["size"] == "2"


def test_young_flows_are_named() -> None:
    bench = Bench()
    assert bench.decider.describe_state() is None
    bench.train(epochs=60, n=1)
    bench.epoch(chains(bench.symbols, [span("gateway:refund", 5)], first_trace=90_000), bench.normal(1))
    bench.train(epochs=2, n=1)
    for _ in range(2):
        bench.epoch(chains(bench.symbols, [span("gateway:refund", 5)] * 9, first_trace=91_000), bench.normal(9))
    state = bench.decider.describe_state()
    assert state is not None
    assert "gateway refund (10 of 50 chains)" in state


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_and_one_chain(n: int) -> None:
    bench = Bench()
    batch = bench.batch(1).take(np.arange(n))
    verdicts = bench.epoch(batch, bench.normal(n))
    assert len(verdicts) == n
    assert verdicts.finding_offsets.tolist() == [0] * (n + 1)


def test_a_chain_without_a_flow_is_judged_as_other() -> None:
    bench = Bench().train()
    batch = bench.batch(3)
    batch.flow[:] = -1
    verdicts = bench.epoch(batch, bench.normal(3))
    assert next(verdict_rows(verdicts, np.arange(1)))["flow"] == "other"


def test_an_incident_has_the_public_shape() -> None:
    incident = Incident("id", "t", "slow_call", "system", "warning", {}, [], [], 1, 2, None, 3, [], {})
    assert list(incident_row(incident))[:14] == [
        *("incident_id", "tenant", "kind", "category", "severity", "subject", "suspects", "flows"),
        *("opened_unix_nano", "detected_unix_nano", "resolved_unix_nano", "chains", "example_trace_ids", "explanation"),
    ]
