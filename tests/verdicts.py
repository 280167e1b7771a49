"""Verdicts and incidents for the tests of exporters, and rows of them in the shape of the public contract.

How it works. `verdicts` judges chains of `builders.py`: the last `unusual` of a batch have a severity, a finding each.
`rows()` makes rows as decide does, but short: exporters only pass them on. A trace id is the number of its chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from builders import NS, START_S, Node, chains, log, span

from collector_processor.model import (
    Category,
    Incident,
    Kind,
    Level,
    Severity,
    Symbols,
    VerdictBatch,
    content_hash,
    no_findings,
)
from collector_processor.rows import Rows

SYMBOLS = Symbols()


def payment(service: str = "gateway", operation: str = "pay") -> Node:
    """A small chain: the entry calls `risk:check`, which logs once."""
    return span(f"{service}:{operation}", 100, span(f"{service}:call", 80, span("risk:check", 60, log("checked <*>"))))


def verdicts(
    number: int = 3,
    unusual: int = 1,
    *,
    first_trace: int = 1,
    symbols: Symbols | None = None,
    root: Node | None = None,
    tenant: str = "default",
    severity: Severity = Severity.CRITICAL,
) -> VerdictBatch:
    """`number` verdicts, of which the last `unusual` are not normal; the operation `check` was slow in those."""
    symbols = symbols or SYMBOLS
    batch = chains(
        symbols,
        [root or payment()] * max(number, 1),
        tenant=tenant,
        first_trace=first_trace,
        start_s=START_S + first_trace,
    )
    batch = batch.take(np.arange(number))
    normal = number - unusual
    findings = no_findings(unusual)
    findings["chain"] = np.arange(normal, number)
    findings["kind"] = Kind.SLOW_OPERATION
    findings["level"] = Level.OPERATION
    check = symbols.events.text.index("check")
    findings["event"] = check
    findings["service"] = symbols.events.column("service")[check]
    findings["instance"] = symbols.instances.text.index("risk-1")
    findings["p"] = 1e-6
    findings["expected"], findings["actual"] = 0.06, 2.5
    is_unusual = np.arange(number) >= normal
    return VerdictBatch(
        chains=batch,
        score=np.where(is_unusual, 0.9995, np.linspace(0.1, 0.8, number)),
        severity=np.where(is_unusual, severity, Severity.NONE).astype(np.uint8),
        category=np.where(is_unusual, Category.SYSTEM, Category.NONE).astype(np.uint8),
        components={"ctx": np.where(is_unusual, 1e-6, 0.5)},
        findings=findings,
        finding_offsets=np.searchsorted(findings["chain"], np.arange(number + 1)).astype(np.int64),
        models={"context": "1"},
        detectors=("context",),
    )


def verdict_ids(batch: VerdictBatch, *, unusual: bool = False) -> list[str]:
    """The ids of all verdicts, or of the unusual ones."""
    return [row["verdict_id"] for row in verdict_rows(batch, np.flatnonzero(batch.severity >= int(unusual)))]


def verdict_rows(batch: VerdictBatch, which: Any) -> Iterator[dict[str, Any]]:
    """Rows in the shape of `verdicts.jsonl`."""
    symbols = batch.chains.symbols
    for chain in (np.flatnonzero(which) if which.dtype == np.bool_ else which).tolist():
        trace_id = batch.chains.trace_id(chain)
        severity = Severity(int(batch.severity[chain])).name.lower()
        row: dict[str, Any] = {
            "verdict_id": f"{content_hash(trace_id, int(batch.chains.start_ns[chain])):016x}",
            "tenant": symbols.tenants.text[batch.chains.tenant[chain]],
            "trace_id": trace_id,
            "flow": symbols.flows.text[batch.chains.flow[chain]],
            "start_unix_nano": int(batch.chains.start_ns[chain]),
            "end_unix_nano": int(batch.chains.end_ns[chain]),
            "score": float(batch.score[chain]),
            "severity": severity,
            "category": None if severity == "none" else "system",
            "findings": [],
            "components": {},
            "models": batch.models,
        }
        if severity != "none":
            subject = {"level": "operation", "service": "risk", "operation": "check", "instance": "risk-1"}
            row["findings"] = [
                {"detector": "context", "kind": "slow_operation", "subject": subject, "p_value": 1e-6, "evidence": {}}
            ]
            row["explanation"] = explanation()
        yield row


def explanation() -> dict[str, Any]:
    """An explanation in four parts, as decide writes them."""
    return {
        "trigger": "check of risk took 2.5 s, usually 60 ms.",
        "context": "Fewer than 1 in 1,000,000 normal chains look so unusual.",
        "affected": {"flows": ["gateway pay"], "services": ["risk"], "instances": ["risk-1"], "chains": 1},
        "actions": ["Look at what check of risk waits for.", "Compare with a normal trace."],
    }


def incident(
    number: int = 1, state: str = "opened", severity: str = "critical", chains_seen: int = 4, tenant: str = "default"
) -> Incident:
    """An incident about `risk:check`; the same `number` is the same incident."""
    opened = int((START_S + number) * NS)
    return Incident(
        incident_id=f"{content_hash('incident', number):016x}",
        tenant=tenant,
        kind="slow_operation",
        category="system",
        severity=severity,
        subject={"service": "risk", "operation": "check", "instance": None},
        suspects=[{"service": "risk", "operation": "check", "score": 0.9}],
        flows=["gateway pay"],
        opened_unix_nano=opened,
        detected_unix_nano=opened + NS,
        resolved_unix_nano=opened + 60 * NS if state == "resolved" else None,
        chains=chains_seen,
        example_trace_ids=[f"{number:032x}"],
        explanation=explanation(),
        state=state,
    )


def incident_row(of: Incident) -> dict[str, Any]:
    """A row in the shape of `incidents.jsonl`."""
    return {name: getattr(of, name) for name in Incident.__dataclass_fields__}


def rows() -> Rows:
    """Makes the rows above."""
    return Rows(verdict_rows, incident_row)
