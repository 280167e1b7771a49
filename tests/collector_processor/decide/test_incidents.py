"""Incidents: what opens one, what joins it, who is suspected, when it is over, what is told, what is restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector_processor.config import DecideConfig
from collector_processor.decide.incidents import Incidents
from collector_processor.decide.repeats import poisson_tail
from collector_processor.model import (
    NONE,
    Findings,
    Incident,
    Kind,
    Level,
    Severity,
    Symbols,
    VerdictBatch,
    no_findings,
)
from tests.builders import NS, START_S, Node, chains, span

EPOCH_S = 10


def row(kind: Kind, level: Level, nats: float, **ids: int) -> Findings:
    """One window finding."""
    out = no_findings(1)
    out["kind"], out["level"], out["p"] = kind, level, np.exp(-nats)
    out["expected"], out["actual"] = 0.01, 1.0
    for name, value in ids.items():
        out[name] = value
    return out


class Source:
    """A detector that says where a finding came from."""

    def evidence(self, finding: np.void) -> dict[str, Any]:
        return {"text": f"Finding of kind {Kind(int(finding['kind'])).name}", "count": 7}


def shop() -> Node:
    stock = span("stock:reserve", 10)
    mail = span("mail:send", 5)
    return span("gateway:buy", 90, span("order:create", 70, span("order:POST", 20, stock), span("order:PUT", 9, mail)))


class Bench:
    """Incidents of a small shop, judged epoch by epoch."""

    def __init__(self, known_s: int = 3600, **config: Any) -> None:
        """`known_s`: for how long chains of the shop have come."""
        self.symbols = Symbols()
        self.incidents = Incidents(DecideConfig(**config), self.symbols, {"a": Source(), "b": Source()})
        self.epoch = int(START_S) // EPOCH_S
        self.trace = 1
        self.observe()
        self.incidents.first_ns -= known_s * NS

    @property
    def now(self) -> int:
        return self.epoch * EPOCH_S * NS

    def service(self, name: str) -> int:
        return self.symbols.services.text.index(name)

    def event(self, name: str) -> int:
        return self.symbols.events.text.index(name)

    def observe(self, count: int = 1, severity: Severity = Severity.NONE, evidence: Any = None, **finding: Any) -> None:
        """Chains of the shop, with a finding each when one is given."""
        batch = chains(
            self.symbols, [shop()] * count, start_s=self.now / NS, every_s=0.1, wait_s=0.0, first_trace=self.trace
        )
        self.trace += count
        found = np.concatenate([row(nats=8.0, chain=i, **finding) for i in range(count)]) if finding else no_findings()
        self.incidents.observe(
            VerdictBatch(
                chains=batch,
                score=np.zeros(count),
                severity=np.full(count, severity, np.uint8),
                category=np.zeros(count, np.uint8),
                components={},
                findings=found,
                finding_offsets=np.searchsorted(found["chain"], np.arange(count + 1)).astype(np.int64),
                models={},
                evidence=dict.fromkeys(range(found.size), evidence) if evidence else {},
            )
        )

    def judge(self, *rows: Findings, epochs: int = 1) -> list[Incident]:
        out = []
        for _ in range(epochs):
            self.epoch += 1
            out += self.incidents.judge(self.now, np.concatenate(rows) if rows else no_findings())
        return out

    def slow(self, service: str, nats: float = 20.0) -> Findings:
        return row(Kind.SLOW_OPERATION, Level.OPERATION, nats, service=self.service(service), event=self.event("send"))

    def call(self, caller: str, callee: str, nats: float = 20.0) -> Findings:
        ids = {"caller": self.service(caller), "service": self.service(callee)}
        return row(Kind.SLOW_CALL, Level.EDGE, nats, **ids)

    def pool(self, nats: float = 20.0, into: str | None = None, out_of: str | None = None) -> Findings:
        ids = {"service": self.service(into)} if into else {"caller": self.service(out_of or "")}
        return row(Kind.SLOW_CALL, Level.SERVICE, nats, **ids)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def suspects(incident: Incident) -> list[str]:
    return [suspect["service"] for suspect in incident.suspects]


def test_what_is_improbable_for_two_epochs_opens_an_incident(bench: Bench) -> None:
    assert bench.judge(bench.slow("stock")) == []
    (incident,) = bench.judge(bench.slow("stock"))
    assert (incident.state, incident.kind, incident.category) == ("opened", "slow_operation", "system")
    assert incident.subject == {"service": "stock", "operation": "send", "instance": None}
    assert suspects(incident) == ["stock"]
    assert incident.detected_unix_nano == bench.now
    assert incident.resolved_unix_nano is None
    assert "Finding of kind SLOW_OPERATION" in incident.explanation["trigger"]


def test_the_budget_sets_the_threshold() -> None:
    few, many = Bench(alerts_per_day=1.0), Bench(alerts_per_day=100.0)
    assert few.incidents.threshold() == pytest.approx(many.incidents.threshold() + np.log(100.0))
    nats = (few.incidents.threshold() + many.incidents.threshold()) / 2
    assert few.judge(few.slow("stock", nats), epochs=3) == []
    assert len(many.judge(many.slow("stock", nats), epochs=3)) == 1


def test_of_a_slow_call_the_callee_is_suspected_before_the_caller(bench: Bench) -> None:
    (incident,) = bench.judge(bench.call("order", "stock"), epochs=2)
    assert suspects(incident) == ["stock", "order"]


def test_a_caller_slow_towards_everybody_is_suspected_itself(bench: Bench) -> None:
    rows = (bench.call("order", "stock"), bench.call("order", "mail"), bench.pool(30, out_of="order"))
    (incident,) = bench.judge(*rows, epochs=2)
    assert suspects(incident)[0] == "order"


def test_a_pool_that_single_calls_explain_opens_nothing_of_its_own(bench: Bench) -> None:
    rows = (bench.call("order", "stock", 40.0), bench.pool(30, into="stock"), bench.pool(30, out_of="order"))
    (incident,) = bench.judge(*rows, epochs=2)
    assert suspects(incident)[0] == "stock"


def test_a_fault_elsewhere_is_an_incident_of_its_own(bench: Bench) -> None:
    bench.judge(bench.slow("mail"), epochs=2)
    bench.judge(bench.slow("mail"), epochs=10)
    opened = bench.judge(bench.slow("mail"), bench.slow("gateway"), epochs=2)
    assert [(incident.state, suspects(incident)) for incident in opened] == [("opened", ["gateway"])]
    assert len(bench.incidents.open) == 2


def test_a_young_incident_takes_in_its_neighbours_and_may_change_its_suspects(bench: Bench) -> None:
    (opened,) = bench.judge(bench.slow("stock", 12.0), epochs=2)
    (updated,) = bench.judge(bench.slow("stock", 12.0), bench.slow("order", 60.0))
    assert (updated.state, updated.incident_id) == ("updated", opened.incident_id)
    assert suspects(updated) == ["order", "stock"]
    assert (opened.severity, updated.severity) == ("warning", "critical")
    assert updated.detected_unix_nano == opened.detected_unix_nano


def test_what_is_new_about_an_old_incident_opens_its_own(bench: Bench) -> None:
    bench.judge(bench.slow("stock"), epochs=2)
    bench.judge(bench.slow("stock"), epochs=40)
    (second,) = bench.judge(bench.slow("stock"), bench.call("order", "stock"), epochs=2)
    assert second.state == "opened"
    assert suspects(second)[0] == "stock"


@pytest.mark.parametrize(("after", "nats", "apart"), [(3, 60.0, False), (12, 15.0, False), (12, 60.0, True)])
def test_what_is_strong_and_began_late_is_trouble_of_its_own(
    bench: Bench, after: int, nats: float, *, apart: bool
) -> None:
    """An alarm that opens a little early, or for next to nothing, must not take in the fault that follows."""
    (first,) = bench.judge(bench.slow("stock"), epochs=2)
    bench.judge(bench.slow("stock"), epochs=after)
    broken = row(Kind.ERROR, Level.OPERATION, nats, service=bench.service("stock"), event=bench.event("send"))
    told = bench.judge(bench.slow("stock"), broken, epochs=2)
    opened = [incident for incident in told if incident.state == "opened"]
    assert [incident.kind for incident in opened] == (["error"] if apart else [])
    assert all(incident.incident_id != first.incident_id for incident in opened)


@pytest.mark.parametrize("kind", [Kind.DISTRIBUTION_DROP, Kind.INTERRUPTED_SEQUENCE])
def test_the_ways_that_chains_go_are_told_with_the_trouble_that_turns_them_there(bench: Bench, kind: Kind) -> None:
    """A share of a flow's paths is known at the end of a slice: long after the fault that it shows has begun."""
    bench.judge(bench.slow("stock"), epochs=2)
    bench.judge(bench.slow("stock"), epochs=12)
    way = row(kind, Level.OPERATION, 60.0, service=bench.service("stock"), event=bench.event("send"))
    told = bench.judge(bench.slow("stock"), way, epochs=2)
    assert [incident.state for incident in told if incident.state == "opened"] == []
    assert len(bench.incidents.open) == 1


def test_a_service_that_is_gone_while_an_incident_about_it_is_open_is_trouble_of_its_own(bench: Bench) -> None:
    bench.judge(bench.slow("stock"), epochs=2)
    bench.judge(bench.slow("stock"), epochs=12)
    ids = {"service": bench.service("stock"), "event": bench.event("reserve"), "caller": bench.service("order")}
    gone = row(Kind.UNUSUAL_CALLS, Level.EDGE, 60.0, **ids)
    assert bench.judge(gone, epochs=9) == [], "an instance may have been restarted"
    (second,) = bench.judge(gone)
    assert (second.state, suspects(second)[0]) == ("opened", "stock")


def test_what_grows_strong_is_not_taken_in_while_it_is_weak(bench: Bench) -> None:
    (first,) = bench.judge(bench.slow("stock"), epochs=2)
    bench.judge(bench.slow("stock"), epochs=12)
    ids = {"service": bench.service("stock"), "event": bench.event("send")}
    assert bench.judge(row(Kind.ERROR, Level.OPERATION, 9.0, **ids), epochs=20) == []
    assert [case.incident_id for case in bench.incidents.open] == [first.incident_id]  # kept awake by the echo
    (second,) = bench.judge(row(Kind.ERROR, Level.OPERATION, 60.0, **ids))
    assert (second.state, second.kind) == ("opened", "error")


@pytest.mark.parametrize(("quiet", "count"), [(0, 1), (4, 2)])
def test_the_same_trouble_again_is_another_incident(bench: Bench, quiet: int, count: int) -> None:
    """Of two faults at one service the second one is told as well."""
    bench.judge(bench.slow("stock", 60.0), epochs=12)
    bench.judge(epochs=quiet)
    bench.judge(bench.slow("stock", 60.0), epochs=3)
    assert len(bench.incidents.open) == count


def test_the_same_logs_under_another_kind_are_no_new_trouble(bench: Bench) -> None:
    ids = {"service": bench.service("stock"), "event": bench.event("send")}
    bench.judge(row(Kind.MISSING_LOG, Level.OPERATION, 60.0, **ids), epochs=12)
    bench.judge(row(Kind.UNUSUAL_LOG, Level.OPERATION, 60.0, **ids), epochs=3)
    assert len(bench.incidents.open) == 1


def test_an_incident_is_over_when_it_has_been_quiet(bench: Bench) -> None:
    bench.judge(bench.slow("stock"), epochs=2)
    assert bench.judge(epochs=14) == []
    (over,) = bench.judge(epochs=2)
    assert (over.state, over.resolved_unix_nano) == ("resolved", bench.now - EPOCH_S * NS)
    assert bench.incidents.open == []
    (again,) = bench.judge(bench.slow("stock"), epochs=2)
    assert again.incident_id != over.incident_id


@pytest.mark.parametrize(
    ("kind", "level", "patience_s"),
    [
        (Kind.UNUSUAL_CALLS, Level.OPERATION, 300),
        (Kind.NEW_SEQUENCE, Level.OPERATION, 300),
        (Kind.ERROR, Level.EDGE, 90),
        (Kind.INTERRUPTED_SEQUENCE, Level.EDGE, 90),
        (Kind.UNSEEN_CALL, Level.OPERATION, 10),
        (Kind.MISSING_LOG, Level.OPERATION, 10),
    ],
)
def test_what_may_be_meant_to_be_so_must_hold_for_a_while(
    bench: Bench, kind: Kind, level: Level, patience_s: int
) -> None:
    finding = row(kind, level, 50.0, service=bench.service("stock"), caller=bench.service("order"))
    assert bench.judge(finding, epochs=patience_s // EPOCH_S) == []
    assert len(bench.judge(finding)) == 1


@pytest.mark.parametrize(("known_s", "patience_s"), [(150, 120), (240, 60), (900, 10)])
def test_of_a_system_just_met_other_log_lines_must_hold_longer(known_s: int, patience_s: int) -> None:
    """Which lines come in swarms nobody knows in the first minutes; how long things take is another matter."""
    bench = Bench(known_s)
    other = row(Kind.MISSING_LOG, Level.OPERATION, 50.0, service=bench.service("stock"))
    assert bench.judge(other, epochs=patience_s // EPOCH_S) == []
    assert len(bench.judge(other)) == 1
    assert len(Bench(known_s).judge(bench.slow("gateway"), epochs=2)) == 1


def test_in_a_large_system_what_is_hardly_unlikely_opens_nothing(bench: Bench) -> None:
    for number in range(1000):
        bench.symbols.services.add(number + 1, f"service {number}", tenant=0)
    weak = bench.incidents.threshold() / 2 - 0.5
    other = row(Kind.MISSING_LOG, Level.OPERATION, weak, service=bench.service("stock"))
    assert bench.judge(other, epochs=30) == []


@pytest.mark.parametrize(("usually", "epochs"), [(0.001, 2), (0.04, 2), (0.2, 10)])
def test_a_call_that_was_hardly_ever_left_out_is_missed_at_once(bench: Bench, usually: float, epochs: int) -> None:
    missing = row(Kind.MISSING_CALL, Level.OPERATION, 20.0, service=bench.service("order"), event=bench.event("POST"))
    missing["expected"] = usually
    assert bench.judge(missing, epochs=epochs - 1) == []
    assert len(bench.judge(missing)) == 1


def test_a_symptom_of_a_soft_kind_does_not_outrank_a_cause(bench: Bench) -> None:
    soft = row(Kind.UNUSUAL_CALLS, Level.OPERATION, 60.0, service=bench.service("order"))
    (incident,) = bench.judge(bench.slow("stock", 20.0), soft, epochs=2)
    assert suspects(incident) == ["stock", "order"]


def test_chains_flows_and_examples_are_those_with_findings_about_the_suspect(bench: Bench) -> None:
    subject = {"kind": Kind.SLOW_OPERATION, "level": Level.OPERATION, "service": bench.service("stock")}
    bench.epoch += 1
    bench.observe(20, **subject)
    bench.observe(30, **(subject | {"service": bench.service("mail")}))
    (incident,) = bench.judge(bench.slow("stock"), epochs=2)
    assert incident.chains == 20
    assert incident.flows == ["gateway buy"]
    assert len(incident.example_trace_ids) == len(set(incident.example_trace_ids)) == 5
    assert incident.explanation["trigger"].startswith("20 chains in ")


def test_where_no_chain_is_unusual_by_itself_the_traces_are_those_of_the_evidence(bench: Bench) -> None:
    found = bench.judge(bench.slow("stock"), epochs=2)[0]
    assert found.example_trace_ids == []
    bench = Bench()
    bench.incidents.sources[0].evidence = lambda finding: {"text": "slow", "trace_id": "ab" * 16}  # type: ignore[method-assign]
    found = bench.judge(bench.slow("stock"), epochs=2)[0]
    assert found.example_trace_ids == ["ab" * 16]


def test_one_instance_is_named_when_nearly_all_happens_there(bench: Bench) -> None:
    stock = bench.service("stock")
    other = bench.symbols.instances.add(4711, "stock-2", service=stock)
    subject = {"kind": Kind.SLOW_OPERATION, "level": Level.OPERATION, "service": stock}
    bench.epoch += 1
    bench.observe(9, **subject, instance=other)
    bench.observe(1, **subject, instance=bench.symbols.instances.text.index("stock-1"))
    (incident,) = bench.judge(bench.slow("stock"), epochs=2)
    assert incident.subject["instance"] == "stock-2"


def test_an_instance_that_stands_out_is_evidence_beside_its_service(bench: Bench) -> None:
    stock = {"service": bench.service("stock")}
    whole = row(Kind.SLOW_OPERATION, Level.SERVICE, 12.0, **stock)
    one = row(Kind.SLOW_OPERATION, Level.SERVICE, 30.0, **stock, instance=0)
    assert len(bench.judge(whole, one, epochs=2)) == 1
    assert sorted(bench.incidents.open[0].nats.values()) == pytest.approx([12.0, 30.0])


def test_a_critical_rule_pages_at_its_first_violation_with_its_own_words(bench: Bench) -> None:
    said = {"rule": "debit-equals-credit", "severity": "critical", "category": "compliance", "actions": ["Stop."]}
    violation = {"kind": Kind.RULE_VIOLATION, "level": Level.SERVICE, "service": bench.service("stock"), "detail": 3}
    bench.observe(1, Severity.CRITICAL, said, **violation)
    (incident,) = bench.judge()
    assert (incident.kind, incident.category, incident.severity) == ("rule_violation", "compliance", "critical")
    assert incident.explanation["actions"] == ["Stop."]


def test_two_rules_about_one_service_are_told_apart_in_the_evidence(bench: Bench) -> None:
    for rule in (3, 4):
        said = {"rule": f"rule-{rule}", "severity": "critical", "category": "compliance"}
        ids = {"level": Level.SERVICE, "service": bench.service("stock"), "detail": rule}
        bench.observe(1, Severity.CRITICAL, said, kind=Kind.RULE_VIOLATION, **ids)
    (incident,) = bench.judge()
    assert len(bench.incidents.open[0].nats) == 2
    assert "rule-4" in incident.explanation["trigger"] + incident.explanation["context"]


def test_what_single_chains_say_pages_when_it_repeats_and_lasts(bench: Bench) -> None:
    subject = {"kind": Kind.UNUSUAL_CONTENT, "level": Level.OPERATION, "service": bench.service("stock")}
    opened = []
    for _ in range(32):
        bench.observe(3, Severity.INFO, **subject)
        opened += bench.judge()
    assert [incident.kind for incident in opened if incident.state == "opened"] == ["unusual_content"]


def test_findings_of_usual_chains_are_not_counted(bench: Bench) -> None:
    subject = {"kind": Kind.UNUSUAL_CONTENT, "level": Level.OPERATION, "service": bench.service("stock")}
    for _ in range(32):
        bench.observe(3, Severity.NONE, **subject)
        assert bench.judge() == []


def test_a_finding_about_a_flow_is_about_where_the_flow_enters(bench: Bench) -> None:
    finding = row(Kind.DISTRIBUTION_DROP, Level.FLOW, 30.0, flow=bench.symbols.flows.text.index("gateway buy"))
    (incident,) = bench.judge(finding, epochs=2)
    assert incident.subject["service"] == "gateway"
    assert incident.category == "operational"


def test_a_restored_one_goes_on_as_if_nothing_had_happened(bench: Bench) -> None:
    subject = {"kind": Kind.SLOW_OPERATION, "level": Level.OPERATION, "service": bench.service("stock")}
    bench.observe(4, Severity.INFO, **subject)
    bench.judge(bench.slow("stock"), bench.call("order", "stock"), epochs=12)
    twin = Incidents(bench.incidents.config, bench.symbols, {"a": Source(), "b": Source()})
    twin.restore(bench.incidents.snapshot())
    for _ in range(20):
        bench.epoch += 1
        rows = np.concatenate([bench.slow("stock", 30.0), bench.slow("gateway", 15.0)])
        assert bench.incidents.judge(bench.now, rows) == twin.judge(bench.now, rows)
    for _ in range(20):
        bench.epoch += 1
        assert bench.incidents.judge(bench.now, no_findings()) == twin.judge(bench.now, no_findings())


def test_the_same_findings_give_the_same_ids() -> None:
    first, second = Bench(), Bench()
    ids = [b.judge(b.slow("stock"), epochs=2)[0].incident_id for b in (first, second)]
    assert ids[0] == ids[1]


def test_the_tail_of_counts_is_a_bound() -> None:
    assert poisson_tail(3, 5.0) == 1.0
    assert poisson_tail(10, 1.0) < 1e-6
    assert poisson_tail(4, 1.0) > 1 - sum(np.exp(-1.0) / f for f in (1, 1, 2, 6)), "never below the exact tail"


def test_a_service_that_is_unknown_opens_nothing(bench: Bench) -> None:
    assert bench.judge(row(Kind.SLOW_CALL, Level.SERVICE, 40.0, service=NONE), epochs=3) == []


def test_of_very_many_findings_a_sample_of_chains_waits_and_open_incidents_count_all() -> None:
    unusual = {"kind": Kind.SLOW_OPERATION, "level": Level.OPERATION}
    benches = Bench(), Bench()
    for bench, batches in zip(benches, ((60,), (10, 20, 30)), strict=True):
        bench.incidents.epoch_max = 20
        bench.judge(bench.slow("stock"), epochs=2)
        before = bench.incidents.open[0].chains
        for count in batches:
            bench.observe(count, service=bench.service("stock"), **unusual)
        bench.judge(bench.slow("stock"))
        assert bench.incidents.open[0].chains == before + 60
    kept = [np.concatenate([seen["lo"] for _, seen in bench.incidents.recent]) for bench in benches]
    assert 0 < len(kept[0]) <= 20
    assert bench.incidents.forgotten == 60 - len(kept[0])
    assert kept[0].tolist() == kept[1].tolist()
