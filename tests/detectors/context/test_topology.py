"""Logs and calls on a small shop: what is rare, missing, doubled or unanswered, whose fault it is, what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector_processor.config import Config
from collector_processor.model import ChainBatch, Findings, Kind, Level, Symbols
from detectors.context.topology import Topology
from tests.builders import NS, START_S, Node, chains, log, span

EPOCH_S = 10
PER_EPOCH = 8


def debit(*, audit: bool = True, error: str | None = None, booked: str = "debit booked", severity: int = 9) -> Node:
    logs = [log("debit requested")] + ([log(booked, severity=severity)] if audit else [])
    return span("account:debit", 10, *logs, *([log(error, severity=17)] if error else []))


def payment(
    *, audit: bool = True, error: str | None = None, twice: bool = False, complaint: bool = False, silent: bool = False,
    booked: str = "debit booked", severity: int = 9,
) -> Node:  # fmt: skip
    """order asks risk, then has account debit; each fault changes what one of them writes or calls."""
    steps = [span("order:POST risk", 8, span("risk:assess", 6, log("assessed")))]
    if complaint:
        steps.append(log("no instances available for account", severity=17))
    elif silent:
        steps.append(span("order:POST account", 12, kind="client"))
    else:
        calls = 2 if twice else 1
        steps += [
            span("order:POST account", 12, debit(audit=audit, error=error, booked=booked, severity=severity))
            for _ in range(calls)
        ]
    return span("gateway:pay", 60, span("order:pay", 50, *steps))


class Bench:
    """A detector with its epochs, driven as the engine does, learning 90 s after chains were closed."""

    def __init__(self, **config: Any) -> None:
        self.symbols = Symbols()
        self.config = Config.model_validate({"detectors": {"context": config}})
        self.detector = Topology(self.config, self.symbols)
        self.epoch = int(START_S) // EPOCH_S
        self.trace = 1
        self.waiting: list[tuple[int, ChainBatch]] = []

    def batch(self, roots: list[Node]) -> ChainBatch:
        out = chains(self.symbols, roots, start_s=self.epoch * EPOCH_S, every_s=1.0, wait_s=0.0, first_trace=self.trace)
        self.trace += len(roots)
        return out

    def run(self, epochs: int, **fault: Any) -> list[Findings]:
        """The window findings of `epochs` epochs of payments."""
        out = []
        for _ in range(epochs):
            batch = self.batch([payment(**fault) for _ in range(PER_EPOCH)])
            self.detector.score(batch).checked(batch)
            self.epoch += 1
            now = self.epoch * EPOCH_S * NS
            out.append(self.detector.advance(now))
            self.waiting.append((now, batch))
            while self.waiting[0][0] <= now - 90 * NS:
                old = self.waiting.pop(0)[1]
                self.detector.learn(old, np.ones(len(old), bool))
        return out

    def service(self, name: str) -> int:
        return self.symbols.services.text.index(name)

    def worst(self, found: list[Findings]) -> np.void:
        rows = np.concatenate(found)
        assert rows.size
        return rows[np.argmin(rows["p"])]

    def seen(self) -> list[float]:
        return list(self.detector.snapshot()["slots"]["seen"].tolist())


@pytest.fixture
def bench() -> Bench:
    """A detector that has seen ten quiet minutes."""
    out = Bench()
    assert sum(found.size for found in out.run(60)) == 0
    return out


def test_a_missing_log_is_told_with_its_template(bench: Bench) -> None:
    row = bench.worst(bench.run(4, audit=False))
    assert (row["kind"], row["service"]) == (Kind.MISSING_LOG, bench.service("account"))
    told = bench.detector.evidence(row)
    assert told["template"] == "debit booked"
    assert told["text"] == 'Operation debit of account no longer writes "debit booked" (32 of 80 in 90 s)'.replace(
        "(32 of 80", f"({told['unusual']} of {told['count']}"
    )
    assert told["unusual"] == 4 * PER_EPOCH
    assert int(told["trace_id"], 16) in range(bench.trace - 4 * PER_EPOCH, bench.trace)


def test_an_error_never_seen_is_an_error_of_its_service(bench: Bench) -> None:
    found = np.concatenate(bench.run(4, error="ledger refused"))
    assert set(found["kind"].tolist()) == {Kind.ERROR}
    assert set(found["service"].tolist()) == {bench.service("account")}


@pytest.mark.parametrize(
    "fault", [{"error": "ledger refused"}, {"audit": False}, {"again": True}], ids=lambda f: next(iter(f))
)
def test_the_line_that_is_told_is_the_one_that_the_fault_changes(fault: dict[str, Any]) -> None:
    """However many variants are usual: here the lines name one of four currencies, each written twice."""
    bench = Bench()

    def root(number: int, error: str | None = None, *, audit: bool = True, again: bool = False) -> Node:
        currency = ("EUR", "EUR", "USD", "CHF", "EUR", "GBP", "EUR", "USD")[number % 8]
        lines = [f"debit of <*> {currency} requested", f"reserved <*> {currency}"] + ["checked"] * (1 if again else 2)
        lines += [f"debited <*> {currency}"] if audit and not error else []
        logs = [log(line) for line in lines] + ([log(error, severity=17)] if error else [])
        return span("gateway:pay", 60, span("account:debit", 10, *logs))

    found = []
    for epoch in range(66):
        batch = bench.batch([root(n, **(fault if epoch >= 60 and n % 2 else {})) for n in range(PER_EPOCH)])
        bench.detector.score(batch)
        bench.epoch += 1
        found.append(bench.detector.advance(bench.epoch * EPOCH_S * NS))
        bench.detector.learn(batch, np.full(len(batch), epoch < 60))
    told = bench.detector.evidence(bench.worst(found))["text"]
    if "error" in fault:
        assert 'Operation debit of account reports "ledger refused"' in told
    elif "audit" in fault:
        assert 'Operation debit of account no longer writes "debited <*>' in told
    else:
        assert 'Operation debit of account writes "checked" fewer times than usual' in told


def test_a_doubled_call_is_a_call_never_made(bench: Bench) -> None:
    row = bench.worst(bench.run(4, twice=True))
    assert (row["kind"], row["service"]) == (Kind.UNSEEN_CALL, bench.service("order"))
    assert 'calls account "debit"' in bench.detector.evidence(row)["text"]


def test_a_complaint_about_a_peer_speaks_for_the_peer(bench: Bench) -> None:
    """What else is unusual about the complaining service in those chains is a consequence."""
    found = np.concatenate(bench.run(5, complaint=True))
    assert set(zip(found["kind"].tolist(), found["level"].tolist(), strict=True)) == {(Kind.ERROR, Level.EDGE)}
    assert set(found["service"].tolist()) == {bench.service("account")}
    assert set(found["caller"].tolist()) == {bench.service("order")}
    assert bench.detector.evidence(found[-1])["template"] == "no instances available for account"


def test_an_unanswered_call_speaks_for_the_callee(bench: Bench) -> None:
    found = np.concatenate(bench.run(4, silent=True))
    edges = found[found["level"] == Level.EDGE]
    assert set(edges["service"].tolist()) == {bench.service("account")}
    assert set(edges["caller"].tolist()) == {bench.service("order")}


@pytest.mark.parametrize("kind", ["client", "unspecified"])
def test_a_call_without_a_name_of_its_own_that_gets_no_answer_speaks_for_who_is_missing(kind: str) -> None:
    """Clients called `POST`, whoever they call: what the caller lacks says who did not answer."""
    bench = Bench()

    def root(silent: bool) -> Node:
        risk = span("order:POST", 8, span("risk:assess", 6), kind=kind)
        account = span("order:POST", 12, *(() if silent else (span("account:debit", 10),)), kind=kind)
        said = [log("payment failed", severity=17)] if silent else []
        return span("gateway:pay", 60, span("order:pay", 50, risk, account, *said))

    found = []
    for epoch in range(66):
        batch = bench.batch([root(silent=epoch >= 60) for _ in range(PER_EPOCH)])
        bench.detector.score(batch)
        bench.epoch += 1
        found.append(bench.detector.advance(bench.epoch * EPOCH_S * NS))
        bench.detector.learn(batch, np.full(len(batch), epoch < 60))
    rows = np.concatenate(found)
    assert set(rows["level"].tolist()) == {Level.EDGE}
    assert set(rows["service"].tolist()) == {bench.service("account")}
    assert set(rows["caller"].tolist()) == {bench.service("order")}


def test_a_database_call_is_not_unanswered() -> None:
    """A client span without another side is normal where it always was so; leaving a step out is the caller's doing."""
    bench = Bench()

    def root(skip: bool) -> Node:
        steps = [span("order:sql", 3, kind="client"), span("order:POST risk", 8, span("risk:assess", 6))]
        return span("gateway:pay", 60, span("order:pay", 50, *steps[: 1 if skip else 2]))

    found = []
    for epoch in range(66):
        batch = bench.batch([root(skip=epoch >= 60) for _ in range(PER_EPOCH)])
        bench.detector.score(batch)
        bench.epoch += 1
        found.append(bench.detector.advance(bench.epoch * EPOCH_S * NS))
        bench.detector.learn(batch, np.full(len(batch), epoch < 60))
    rows = np.concatenate(found)
    assert set(rows["service"].tolist()) == {bench.service("order")}
    assert set(rows["kind"].tolist()) <= {Kind.UNUSUAL_CALLS, Kind.MISSING_CALL}
    assert rows["kind"][-1] == Kind.MISSING_CALL
    assert rows["expected"][-1] < 0.01  # it was never left out before


def test_without_an_example_nothing_is_said_to_be_left_out() -> None:
    """The example of a window may be older than the window, when what came since is less unusual."""
    bench = Bench()

    def root(skip: bool) -> Node:
        steps = [span("order:sql", 3, kind="client"), span("order:POST risk", 8, span("risk:assess", 6))]
        return span("gateway:pay", 60, span("order:pay", 50, *steps[: 1 if skip else 2]))

    for epoch in range(66):
        batch = bench.batch([root(skip=epoch >= 60) for _ in range(PER_EPOCH)])
        bench.detector.score(batch)
        bench.epoch += 1
        if epoch == 65:
            bench.detector.examples.clear()
        rows = bench.detector.advance(bench.epoch * EPOCH_S * NS)
        bench.detector.learn(batch, np.full(len(batch), epoch < 60))
    assert Kind.UNUSUAL_CALLS in rows["kind"]
    assert Kind.MISSING_CALL not in rows["kind"]


def test_several_calls_left_out_at_once_may_be_for_one_cause_below() -> None:
    bench = Bench()

    def root(ends: bool) -> Node:
        steps = [span(f"order:POST {name}", 8, span(f"{name}:do", 6)) for name in ("risk", "stock", "mail")]
        return span("gateway:pay", 60, span("order:pay", 50, *steps[: 1 if ends else 3]))

    found = []
    for epoch in range(66):
        batch = bench.batch([root(ends=epoch >= 60) for _ in range(PER_EPOCH)])
        bench.detector.score(batch)
        bench.epoch += 1
        found.append(bench.detector.advance(bench.epoch * EPOCH_S * NS))
        bench.detector.learn(batch, np.full(len(batch), epoch < 60))
    rows = np.concatenate(found)
    assert rows["kind"][-1] == Kind.MISSING_CALL
    assert rows["expected"][-1] == 1.0


def test_the_order_of_concurrent_calls_does_not_matter(bench: Bench) -> None:
    def swapped() -> Node:
        steps = (
            span("order:POST account", 12, debit()),
            span("order:POST risk", 8, span("risk:assess", 6, log("assessed"))),
        )
        return span("gateway:pay", 60, span("order:pay", 50, *steps))

    batch = bench.batch([swapped()])
    scores = bench.detector.score(batch)
    assert scores.findings.size == 0
    assert scores.value.tolist() == [0.0]


def test_the_cause_below_discounts_the_effect_above() -> None:
    """When the callee fails, what the caller then writes is not as surprising as what the callee wrote."""
    bench = Bench()

    def root(fails: bool) -> Node:
        inner = span("account:debit", 10, log("refused by the ledger", severity=13) if fails else log("booked"))
        outer = [log("payment went wrong" if fails else "payment done")]
        return span("gateway:pay", 60, span("order:pay", 50, span("order:POST", 12, inner), *outer))

    found = []
    for epoch in range(66):
        batch = bench.batch([root(fails=epoch >= 60) for _ in range(PER_EPOCH)])
        bench.detector.score(batch)
        bench.epoch += 1
        found.append(bench.detector.advance(bench.epoch * EPOCH_S * NS))
        bench.detector.learn(batch, np.full(len(batch), epoch < 60))
    assert set(np.concatenate(found)["service"].tolist()) == {bench.service("account")}


@pytest.mark.slow
def test_who_has_never_failed_is_not_to_blame_for_failing_with_the_one_below() -> None:
    """order has a longer history than account, so that its first failures are the rarer ones."""
    bench = Bench()

    def root(number: int, *, fails: bool) -> Node:
        other = span("risk:assess", 6, log("assessed"))
        error = [log("ledger refused", severity=17)] if fails else [log(f"booked as {number % 4}")]
        inner = span("account:debit", 10, *error, status=2 if fails else 0)
        calls = [span("order:POST", 12, inner, status=2 if fails else 0)] if number % 4 == 0 else []
        return span("gateway:pay", 60, span("order:pay", 50, *calls, *(span("order:POST", 8, other) for _ in range(6))))

    found = []
    for epoch in range(90):
        batch = bench.batch([root(n, fails=epoch >= 80) for n in range(4 * PER_EPOCH)])
        bench.detector.score(batch)
        bench.epoch += 1
        found.append(bench.detector.advance(bench.epoch * EPOCH_S * NS))
        bench.detector.learn(batch, np.full(len(batch), epoch < 80))
    assert set(np.concatenate(found)["service"].tolist()) == {bench.service("account")}


def test_errors_in_alarm_are_not_learned_other_news_by_samples(bench: Bench) -> None:
    size = len(bench.seen())
    bench.run(30, error="ledger refused")
    known = bench.detector.known
    rows = [row for row in range(known.used) if known.rows["count"][row] > 0]
    templates = {bench.symbols.events.text[event] for row in rows for event in known.events(row)}
    assert len(bench.seen()) == size
    assert "ledger refused" not in templates


def test_chains_that_are_not_normal_teach_nothing(bench: Bench) -> None:
    before = bench.seen()
    bench.detector.learn(bench.batch([payment()]), np.zeros(1, bool))
    assert bench.seen() == before


def test_grouping_of_chains_leaves_no_trace(bench: Bench) -> None:
    state = bench.detector.snapshot()
    batch = bench.batch([payment(audit=i % 2 == 0, complaint=i % 5 == 0) for i in range(20)])
    now = (bench.epoch + 1) * EPOCH_S * NS
    whole, together = bench.detector.score(batch), bench.detector.advance(now)
    other = Topology(bench.config, bench.symbols)
    other.restore(state)
    parts = [other.score(batch.take(np.arange(a, b))) for a, b in ((0, 1), (1, 9), (9, 20))]
    assert np.concatenate([part.value for part in parts]).tolist() == whole.value.tolist()
    assert other.advance(now).tobytes() == together.tobytes()
    assert [other.evidence(row) for row in together] == [bench.detector.evidence(row) for row in together]


def test_a_restored_detector_goes_on_as_if_nothing_had_happened(bench: Bench) -> None:
    bench.run(3, audit=False)
    twin = Bench()
    twin.symbols, twin.epoch, twin.trace = bench.symbols, bench.epoch, bench.trace
    twin.detector = Topology(bench.config, bench.symbols)
    twin.detector.restore(bench.detector.snapshot())
    bench.waiting, twin.waiting = [], []
    for mine, other in zip(bench.run(15, audit=False), twin.run(15, audit=False), strict=True):
        assert mine.tobytes() == other.tobytes()
    assert bench.seen() == twin.seen()


def test_beyond_the_limit_elements_are_counted() -> None:
    bench = Bench(elements_max=3)
    bench.run(12)
    assert bench.detector.windows.used == 3
    assert bench.detector.windows.overflowed > 0


def test_all_that_a_large_system_shows_at_first_is_learned() -> None:
    """Hundreds of operations in one epoch, each with logs and calls of its own."""
    bench = Bench()
    roots = [span(f"front:get {n}", 20, log(f"asked for {n}"), span(f"back:read {n}", 9)) for n in range(600)]
    batch = bench.batch([*roots, *roots])
    bench.detector.learn(batch, np.ones(len(batch), bool))
    slots = bench.detector.snapshot()["slots"]
    assert slots["seen"].sum() > 1000
    assert not slots["excess"].any()


def test_a_reworded_log_is_told_once_and_what_is_missing_then_is_seen_as_before(bench: Bench) -> None:
    release = bench.run(3, booked="account has been debited") + bench.run(12, booked="account has been debited")
    told = bench.worst(release)
    assert (told["kind"], told["service"]) == (Kind.UNUSUAL_LOG, bench.service("account"))
    assert sum(found.size for found in bench.run(6, booked="account has been debited")) == 0
    missing = bench.worst(bench.run(4, booked="account has been debited", audit=False))
    assert (missing["kind"], missing["service"]) == (Kind.MISSING_LOG, bench.service("account"))


def test_evidence_says_that_logs_were_reworded_so_that_it_may_train(bench: Bench) -> None:
    said = []
    for _ in range(6):
        found = bench.run(1, booked="account has been debited")
        if found[0].size:
            said.append(bench.detector.evidence(bench.worst(found)).get("reworded"))
    assert said[-1] is True


def test_a_stray_error_after_a_rewording_is_not_taken_for_its_cause(bench: Bench) -> None:
    """What the new words did to the window is explained; one error in it says little."""
    assert any(found.size for found in bench.run(4, booked="account has been debited"))
    stray = [payment(booked="account has been debited", error="no connection")]
    bench.detector.score(bench.batch(stray + [payment(booked="account has been debited")] * PER_EPOCH))
    found = bench.run(1, booked="account has been debited")[0]
    assert Kind.ERROR not in found["kind"]


@pytest.mark.parametrize("fault", [{"booked": "debit booked late", "severity": 13}, {"audit": False}])
def test_a_warning_or_a_missing_line_is_no_other_wording(bench: Bench, fault: dict[str, Any]) -> None:
    found = bench.run(20, **fault)
    assert found[-1].size
    assert "reworded" not in bench.detector.evidence(bench.worst(found[-1:]))
