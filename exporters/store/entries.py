"""What is kept of a batch, as plain data: made on the engine's thread, kept by the queue as JSON, written by `sink`."""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.model import I64, NONE, ChainBatch, Incident, Severity, VerdictBatch

KINDS = ("log", "unspecified", "internal", "server", "client", "producer", "consumer")
STATUS = ("unset", "ok", "error")

Entry = dict[str, Any]


def sampled(batch: VerdictBatch, share: float) -> I64:
    """The normal chains that are kept: `share` of the trace ids, whatever process asks."""
    if share == 0:
        return np.zeros(0, np.int64)
    chains = batch.chains
    x = chains.trace_hi ^ chains.trace_lo
    if not x.all():  # held together by a business key only
        x = np.where(x == 0, chains.sequence ^ chains.start_ns.view(np.uint64), x)
    # Multiplied by 2^64 / the golden ratio even numbers in a row are spread evenly; every batch has to pass this.
    low = (x ^ (x >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15) <= np.uint64(min(int(share * 2**64), 2**64 - 1))
    return np.flatnonzero(low & (batch.severity == Severity.NONE)) if low.any() else np.zeros(0, np.int64)


def verdict_entry(row: dict[str, Any], closed_ns: int, records: dict[str, Any] | None) -> Entry:
    """`row` is the line of verdicts.jsonl."""
    return {"verdict": row, "closed": closed_ns, "records": records}


def incident_entry(row: dict[str, Any], incident: Incident) -> Entry:
    """`row` is the line of incidents.jsonl."""
    return {"incident": row, "changed": incident.changed_unix_nano or incident.detected_unix_nano}


def records_of(chains: ChainBatch, chain: int, records_max: int) -> dict[str, Any]:
    """The first `records_max` records of a chain in causal order, as people read them; and how many were left out.

    Times are nanoseconds: `at_ns` from the chain's start. `parent` is the place of the parent in this list.
    """
    symbols = chains.symbols
    services, is_log = symbols.events.column("service"), symbols.events.column("is_log")
    first, end = int(chains.offsets[chain]), int(chains.offsets[chain + 1])
    start_ns, last = int(chains.start_ns[chain]), min(end, first + records_max)
    out = []
    for record in range(first, last):
        event, parent, instance = int(chains.event[record]), int(chains.parent[record]), int(chains.instance[record])
        log = bool(is_log[event])
        status = int(chains.status[record])
        out.append(
            {
                "kind": KINDS[min(int(chains.kind[record]), len(KINDS) - 1)],
                "service": symbols.services.text[services[event]],
                "template" if log else "operation": symbols.events.text[event],
                "instance": symbols.instances.text[instance] if instance != NONE else None,
                "span_id": f"{int(chains.span_id[record]):016x}",
                "parent": parent - first if parent != NONE else None,
                "at_ns": int(chains.time_ns[record]) - start_ns,
            }
            | (
                {"severity_number": status}
                if log
                else {
                    "duration_ns": int(chains.duration[record]),
                    "self_ns": int(chains.self_time[record]),
                    "status": STATUS[min(status, len(STATUS) - 1)],
                }
            )
        )
    return {"records": out, "left_out": end - last}
