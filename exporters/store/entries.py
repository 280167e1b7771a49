"""From a batch to the tables: what is kept of a chain, and how it is written so that repeats and old news do no harm.

How it works. On the engine's thread an entry is made, plain data that the queue keeps as JSON; on the queue's thread it
becomes a row. A verdict's id is a hash of its content, so one that is there already is left alone. An incident's row is
replaced by a later state only: after a crash older states are given again, and a resolved incident stays resolved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
from sqlalchemy import Connection, and_, func, or_
from sqlalchemy.dialects import postgresql, sqlite

from collector_processor.model import I64, NONE, ChainBatch, Incident, Severity, VerdictBatch
from exporters.store.schema import INCIDENTS, VERDICTS

ROW_BYTES = 128  # what a row counts beside its texts: its columns and their place in the indices
KINDS = ("log", "unspecified", "internal", "server", "client", "producer", "consumer")
STATUS = ("unset", "ok", "error")

Entry = dict[str, Any]


def sampled(batch: VerdictBatch, share: float) -> I64:
    """The normal chains that are kept: `share` of the trace ids, whatever process asks."""
    chains = batch.chains
    x = chains.trace_hi ^ chains.trace_lo
    x = np.where(x == 0, chains.sequence ^ chains.start_ns.view(np.uint64), x)  # held together by a business key only
    x = x + np.uint64(0x9E3779B97F4A7C15)  # splitmix64, for trace ids may be anything but random
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    low = (x >> np.uint64(11)).astype(np.float64) / 2.0**53 < share
    return np.flatnonzero(low & (batch.severity == Severity.NONE))


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


def write(connection: Connection, entries: Iterable[Entry]) -> None:
    """Writes what is new of `entries`."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    verdicts, incidents = [], []
    for entry in entries:
        if "verdict" in entry:
            verdicts.append(_verdict_columns(entry))
        else:
            incidents.append(_incident_columns(entry))
    if verdicts:
        connection.execute(insert(VERDICTS).on_conflict_do_nothing(), verdicts)
    if incidents:
        statement = insert(INCIDENTS)
        new = statement.excluded
        columns = {each.name: new[each.name] for each in INCIDENTS.columns if not each.primary_key}
        later = or_(
            new.changed_unix_nano > INCIDENTS.c.changed_unix_nano,
            # Told and resolved at the same moment: the end counts.
            and_(
                new.changed_unix_nano == INCIDENTS.c.changed_unix_nano,
                INCIDENTS.c.resolved_unix_nano.is_(None),
                new.resolved_unix_nano.is_not(None),
            ),
        )
        connection.execute(
            statement.on_conflict_do_update(index_elements=["tenant", "incident_id"], set_=columns, where=later),
            incidents,
        )


def stored(connection: Connection) -> dict[str, tuple[int, int]]:
    """Table -> rows and bytes."""
    out = {}
    for table in (VERDICTS, INCIDENTS):
        query = func.count(), func.coalesce(func.sum(table.c.bytes), 0)
        rows, size = connection.execute(table.select().with_only_columns(*query)).one()
        out[table.name] = (int(rows), int(size))
    return out


def _verdict_columns(entry: Entry) -> dict[str, Any]:
    row, records = entry["verdict"], entry["records"]
    content = orjson.dumps(row).decode()
    chain = orjson.dumps(records).decode() if records is not None else None
    return {
        "tenant": _text(row["tenant"]),
        "verdict_id": row["verdict_id"],
        "trace_id": row["trace_id"],
        "flow": _text(row["flow"]),
        "start_unix_nano": row["start_unix_nano"],
        "closed_unix_nano": entry["closed"],
        "score": row["score"],
        "severity": Severity[row["severity"].upper()].value,
        "content": content,
        "records": chain,
        "bytes": len(content) + len(chain or "") + ROW_BYTES,
    }


def _incident_columns(entry: Entry) -> dict[str, Any]:
    row = entry["incident"]
    content = orjson.dumps(row).decode()
    return {
        "tenant": _text(row["tenant"]),
        "incident_id": row["incident_id"],
        "kind": row["kind"],
        "severity": Severity[row["severity"].upper()].value,
        "opened_unix_nano": row["opened_unix_nano"],
        "changed_unix_nano": max(entry["changed"], row["resolved_unix_nano"] or 0),
        "resolved_unix_nano": row["resolved_unix_nano"],
        "chains": row["chains"],
        "content": content,
        "bytes": len(content) + ROW_BYTES,
    }


def _text(value: str) -> str:
    """PostgreSQL's texts hold no NUL."""
    return value.replace("\0", "�")
