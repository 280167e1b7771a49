"""Verdicts and incidents as plain rows: the shapes of `verdicts.jsonl` and `incidents.jsonl`, for every exporter.

How it works. A `VerdictBatch` is columns; a row is a dict that any JSON encoder takes. Names come from `Symbols`, ids
from content hashes, the explanation from a callable that decide provides. Unusual chains are few and described once:
`VerdictRows.unusual` remembers its last batch, for several exporters ask for the same one on the engine's thread;
`VerdictRows.row` of a normal chain explains nothing and may be called from any thread. Text that came from outside
loses its control characters here, once for all sinks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from collector_processor.model import (
    I64,
    NONE,
    U64,
    Category,
    ChainBatch,
    Incident,
    Kind,
    Level,
    Severity,
    VerdictBatch,
)

TEXT_MAX = 2048  # characters of one text that leave us
DEPTH_MAX = 8  # of nested evidence

Explain = Callable[[VerdictBatch, int], dict[str, Any]]
"""A batch and a chain in it -> trigger, context, affected, actions."""

# Terminal escape sequences; control characters but newline and tab; characters that reorder or hide text.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


@lru_cache(maxsize=8192)
def clean(text: str, length_max: int = TEXT_MAX) -> str:
    """`text` without escape sequences, control and direction characters; at most `length_max` characters."""
    text = _UNSEEN.sub("", _ESCAPES.sub("", text)).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON types only: numpy unpacked, text cleaned, not-a-number as null, depth bounded."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), depth)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if depth >= DEPTH_MAX:
        return clean(str(value))
    if isinstance(value, dict):
        return {clean(str(key)): plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(inner, depth + 1) for inner in items]
    return clean(str(value))


def _mix(state: U64, column: U64) -> U64:
    """One absorbing step: the finalizer of splitmix64 (Steele, Lea, Flood 2014) over `state` plus `column`."""
    mixed = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def verdict_keys(chains: ChainBatch, rows: Any = slice(None)) -> U64:
    """uint64[n, 2]: the two halves of the verdict id of each of `rows` (indices, mask or slice; all by default).

    An id is the content hash of tenant, trace id, flow and start; for a chain without a trace id also of its sequence.
    So the same chain has the same id in every process, however often it is delivered, and whatever it was judged to be.
    """
    symbols = chains.symbols
    trace_hi, trace_lo = chains.trace_hi[rows], chains.trace_lo[rows]
    columns = (
        symbols.tenants.hash[chains.tenant[rows]],
        trace_hi,
        trace_lo,
        symbols.flows.hash[chains.flow[rows]],
        chains.start_ns[rows].view(np.uint64),
        np.where((trace_hi | trace_lo) == 0, chains.sequence[rows], np.uint64(0)),
    )
    out = np.empty((trace_hi.size, 2), np.uint64)
    for half, seed in enumerate((0x7370616E636861, 0x696E76657264)):
        state = np.full(trace_hi.size, seed, np.uint64)
        for column in columns:
            state = _mix(state, column)
        out[:, half] = state
    return out


def hex_id(halves: U64) -> str:
    """32 hex digits of one row of `verdict_keys`."""
    return f"{int(halves[0]):016x}{int(halves[1]):016x}"


def name_of(member: Kind | Level | Severity | Category) -> str:
    """The name in the public contract: `new_sequence`, `warning`, ..."""
    return member.name.lower()


def severity_of(batch: VerdictBatch, chain: int) -> str:
    return name_of(Severity(int(batch.severity[chain])))


def category_of(batch: VerdictBatch, chain: int) -> str | None:
    category = Category(int(batch.category[chain]))
    return None if category == Category.NONE else name_of(category)


def findings_of(batch: VerdictBatch, chain: int) -> I64:
    """The rows of `batch.findings` that are about `chain`, the most significant first."""
    rows = np.arange(batch.finding_offsets[chain], batch.finding_offsets[chain + 1])
    return rows[np.argsort(batch.findings["p"][rows], kind="stable")]


def subject_record(batch: VerdictBatch, chain: int) -> int:
    """The row of the span to look at: that of the most significant finding whose event is in the chain, else the root.

    For a log it is the span that emitted it, where known. NONE for a chain without spans.
    """
    chains = batch.chains
    first, end = int(chains.offsets[chain]), int(chains.offsets[chain + 1])
    events = chains.event[first:end]
    for event in batch.findings["event"][findings_of(batch, chain)].tolist():
        hits = np.flatnonzero(events == event) if event != NONE else np.zeros(0, np.int64)
        if hits.size:
            row = first + int(hits[0])
            if chains.kind[row] == 0:
                row = int(chains.parent[row])
            if row != NONE:
                return row
    root = int(chains.root[chain])
    if root != NONE:
        return root
    spans = np.flatnonzero(chains.kind[first:end])
    return first + int(spans[0]) if spans.size else NONE


def finding_subject(batch: VerdictBatch, row: int) -> dict[str, str | None]:
    """What finding `row` is about: level, and what applies of service, operation, template, caller, instance."""
    symbols, finding = batch.chains.symbols, batch.findings[row]
    event = int(finding["event"])
    is_log = event != NONE and int(symbols.events.column("is_log")[event]) == 1
    name = _name(symbols.events.text, event)
    subject = {
        "level": name_of(Level(int(finding["level"]))),
        "service": _name(symbols.services.text, int(finding["service"])),
        "operation": None if is_log else name,
        "instance": _name(symbols.instances.text, int(finding["instance"])),
    }
    if is_log:
        subject["template"] = name
    if finding["caller"] != NONE:
        subject["caller"] = _name(symbols.services.text, int(finding["caller"]))
    return subject


def _name(names: list[str], index: int) -> str | None:
    return None if index == NONE else clean(names[index])


class VerdictRows:
    """Rows of `verdicts.jsonl`.

    Args:
        explain: the explanation of one unusual chain.
    """

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._last: VerdictBatch | None = None
        self._rows: dict[int, dict[str, Any]] = {}

    def unusual(self, batch: VerdictBatch) -> dict[int, dict[str, Any]]:
        """Chain -> row, for each chain whose severity is not none. Engine's thread only; the rows are shared."""
        if batch is not self._last:
            chains = np.flatnonzero(batch.severity).tolist()
            self._rows = {chain: self._describe(batch, chain) for chain in chains}
            self._last = batch
        return self._rows

    def row(self, batch: VerdictBatch, chain: int, verdict_id: str | None = None) -> dict[str, Any]:
        """The row of `chain` without an explanation: for normal chains."""
        chains, symbols = batch.chains, batch.chains.symbols
        verdict_id = verdict_id or hex_id(verdict_keys(chains, slice(chain, chain + 1))[0])
        return {
            "verdict_id": verdict_id,
            "tenant": clean(symbols.tenants.text[chains.tenant[chain]]),
            "trace_id": chains.trace_id(chain),
            "flow": clean(symbols.flows.text[chains.flow[chain]]),
            "start_unix_nano": int(chains.start_ns[chain]),
            "end_unix_nano": int(chains.end_ns[chain]),
            "score": float(batch.score[chain]),
            "severity": severity_of(batch, chain),
            "category": category_of(batch, chain),
            "findings": [self._finding(batch, row) for row in findings_of(batch, chain).tolist()],
            "components": {name: float(values[chain]) for name, values in batch.components.items()},
            "models": batch.models,
        }

    @staticmethod
    def _finding(batch: VerdictBatch, row: int) -> dict[str, Any]:
        finding = batch.findings[row]
        numbers = {"expected": float(finding["expected"]), "actual": float(finding["actual"])}
        return {
            "detector": batch.detectors[int(finding["detector"])],
            "kind": name_of(Kind(int(finding["kind"]))),
            "subject": finding_subject(batch, row),
            "p_value": float(finding["p"]),
            "evidence": numbers | plain(batch.evidence.get(row, {})),
        }

    def _describe(self, batch: VerdictBatch, chain: int) -> dict[str, Any]:
        row = self.row(batch, chain)
        row["explanation"] = plain(self._explain(batch, chain))
        return row


def incident_row(incident: Incident) -> dict[str, Any]:
    """The row of `incidents.jsonl`."""
    return {
        "incident_id": incident.incident_id,
        "tenant": clean(incident.tenant),
        "kind": incident.kind,
        "category": incident.category,
        "severity": incident.severity,
        "subject": plain(incident.subject),
        "suspects": plain(incident.suspects),
        "flows": plain(incident.flows),
        "opened_unix_nano": incident.opened_unix_nano,
        "detected_unix_nano": incident.detected_unix_nano,
        "resolved_unix_nano": incident.resolved_unix_nano,
        "chains": int(incident.chains),
        "example_trace_ids": list(incident.example_trace_ids),
        "explanation": plain(incident.explanation),
    }


def sentences(value: Any) -> str:
    """One part of an explanation as text: a string as it is, a list as one item a line, a mapping as `key: value`."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {sentences(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(sentences(inner) for inner in value)
    return str(value)
