"""What exporters share: verdicts and incidents as rows, made once, and the record of a chain to point at.

How it works. A `VerdictBatch` is columns; a row is the object that stands on a line of `verdicts.jsonl`. How it looks
and reads is decide's matter, so the runtime hands decide's two functions in here. Unusual chains are few and their
explanations not free: `Rows.unusual` remembers its last batch, for several exporters ask for the same one, all on the
engine's thread. Normal chains are many and wanted by hardly anybody: `Rows.all` makes theirs when asked, on any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from collector_processor.model import I64, NONE, Bool, Category, Incident, Kind, Severity, VerdictBatch

MakeVerdicts = Callable[[VerdictBatch, I64 | Bool], Iterable[dict[str, Any]]]
"""A batch and which of its chains -> their rows, in that order. Pure: any thread may call it."""
MakeIncident = Callable[[Incident], dict[str, Any]]


class Rows:
    """Rows of verdicts and incidents, from decide's `verdicts` and `incident`."""

    def __init__(self, verdicts: MakeVerdicts, incident: MakeIncident) -> None:
        self._verdicts = verdicts
        self.incident = incident
        self._last: VerdictBatch | None = None
        self._unusual: dict[int, dict[str, Any]] = {}

    def unusual(self, batch: VerdictBatch) -> dict[int, dict[str, Any]]:
        """Chain -> row of those whose severity is not none. On the engine's thread only; do not change the rows."""
        if batch is not self._last:
            chains = np.flatnonzero(batch.severity)
            rows = self._verdicts(batch, chains) if chains.size else ()
            self._unusual = dict(zip(chains.tolist(), rows, strict=True))
            self._last = batch
        return self._unusual

    def some(self, batch: VerdictBatch, chains: I64) -> Iterable[dict[str, Any]]:
        """The rows of `chains`, in that order."""
        return self._verdicts(batch, chains) if chains.size else ()

    def all(self, batch: VerdictBatch, unusual: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows of every chain of `batch`, in its order; `unusual` is what was asked for on the engine's thread."""
        normal = iter(self._verdicts(batch, np.flatnonzero(batch.severity == Severity.NONE)))
        for chain in range(len(batch)):
            yield unusual[chain] if chain in unusual else next(normal)


def findings_of(batch: VerdictBatch, chain: int) -> list[int]:
    """The rows of `batch.findings` about `chain`: rule violations first, then the most significant."""
    start, stop = batch.finding_offsets[chain : chain + 2].tolist()
    kind, p = batch.findings["kind"][start:stop].tolist(), batch.findings["p"][start:stop].tolist()
    rows = sorted(range(stop - start), key=lambda row: (kind[row] != Kind.RULE_VIOLATION, p[row], row))
    return [start + row for row in rows]


def subject_record(batch: VerdictBatch, chain: int) -> int:
    """The record to look at: that of the first finding whose event is in the chain, else the root, else the first span.

    For a log it is the span that emitted it, where known. NONE for a chain without spans.
    """
    chains = batch.chains
    first, end = int(chains.offsets[chain]), int(chains.offsets[chain + 1])
    events = chains.event[first:end]
    for row in findings_of(batch, chain):
        hits = np.flatnonzero(events == batch.findings["event"][row])
        if hits.size:
            record = first + int(hits[0])
            if chains.kind[record] == 0:
                record = int(chains.parent[record])
            if record != NONE:
                return record
    if chains.root[chain] != NONE:
        return int(chains.root[chain])
    spans = np.flatnonzero(chains.kind[first:end])
    return first + int(spans[0]) if spans.size else NONE


def severity_of(batch: VerdictBatch, chain: int) -> str:
    """`none`, `info`, `warning` or `critical`."""
    return Severity(int(batch.severity[chain])).name.lower()


def category_of(batch: VerdictBatch, chain: int) -> str:
    """`system`, `operational`, `compliance`, or `none`."""
    return Category(int(batch.category[chain])).name.lower()


def kind_of(batch: VerdictBatch, chain: int) -> str:
    """The kind of the first finding; `score` when there is none and the fused score alone is unusual."""
    findings = findings_of(batch, chain)
    return Kind(int(batch.findings["kind"][findings[0]])).name.lower() if findings else "score"


def sentences(part: Any) -> str:
    """One part of an explanation as text: a list one item a line, a mapping as `name: values`; nothing for nothing."""
    if isinstance(part, dict):
        named = {name: sentences(inner).replace("\n", ", ") for name, inner in part.items()}
        return "; ".join(f"{name}: {text}" for name, text in named.items() if text)
    if isinstance(part, list | tuple):
        return "\n".join(sentences(inner) for inner in part)
    return "" if part is None else str(part)
