"""Small ChainBatches for tests, from a compact description.

How it works. A chain is a tree of `span("service:operation", ms, *children)` and `log("template")`; `chains` lays it
out the way the join does: depth first, children by start, self times, ids in `Symbols`. What is not said follows from
the tree: children start one after the other in equal gaps, a log stands between its neighbours, a span called from
another service is a server span, one with a child in another service is a client span, any other is internal.

    batch = chains(Symbols(), [span("gateway:pay", 100, span("gateway:call", 80, span("risk:check", 60, log("ok"))))])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import add, attrgetter, itemgetter
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from collector_processor.model import NONE, ChainBatch, Outcome, Symbols, content_hash

NS = 1_000_000_000
START_S = 1_700_000_000.0

hashed = lru_cache(1 << 16, typed=True)(content_hash)  # tests make the same few names thousands of times

_KINDS = {"unspecified": 1, "internal": 2, "server": 3, "client": 4, "producer": 5, "consumer": 6}
_ENTRIES = {_KINDS["server"], _KINDS["consumer"]}


class Node(NamedTuple):
    """A span, or a log when `ms` is None. Units: `ms` and `at_ms` milliseconds, `at_ms` from the parent's start."""

    service: str | None
    name: str
    ms: float | None
    children: tuple[Node, ...] = ()
    kind: str | None = None
    at_ms: float | None = None
    status: int = 0
    instance: str | None = None
    cells: Mapping[int, float] = MappingProxyType({})


def span(
    name: str,
    ms: float,
    *children: Node,
    kind: str | None = None,
    at_ms: float | None = None,
    status: int = 0,
    instance: str | None = None,
    cells: Mapping[int, float] = MappingProxyType({}),
) -> Node:
    """A span; `name` is `service:operation`, `status` 0 unset, 1 ok, 2 error, `cells` numbers by attribute index."""
    service, _, operation = name.partition(":")
    return Node(service, operation, ms, children, kind, at_ms, status, instance, cells)


def log(template: str, *, severity: int = 9, at_ms: float | None = None) -> Node:
    """A log of the span that it stands in."""
    return Node(None, template, None, at_ms=at_ms, status=severity)


def chains(
    symbols: Symbols,
    roots: Sequence[Node],
    *,
    start_s: float = START_S,
    every_s: float = 1.0,
    wait_s: float = 6.0,
    tenant: str = "default",
    first_trace: int = 1,
) -> ChainBatch:
    """One chain a root, started `every_s` apart from `start_s`, closed `wait_s` after its end, in closing order."""
    rows = [
        _Rows(symbols, tenant, root, int((start_s + number * every_s) * NS), first_trace + number)
        for number, root in enumerate(roots)
    ]
    rows.sort(key=lambda r: (r.end, r.trace))
    offsets = np.cumsum([0, *(len(r.event) for r in rows)]).astype(np.int64)
    shift = dict(zip((r.trace for r in rows), offsets.tolist(), strict=False))

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array(list(chain.from_iterable(map(attrgetter(name), rows))), dtype)

    def per_chain(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(r, name) for r in rows], dtype)

    end = per_chain("end", np.int64)
    parent = [p if p == NONE else p + shift[r.trace] for r in rows for p in r.parent]
    cells = [(shift[r.trace] + row, key, number) for r in rows for row, key, number in r.cells]
    return ChainBatch(
        symbols=symbols,
        tenant=per_chain("tenant", np.int32),
        trace_hi=np.zeros(len(rows), np.uint64),
        trace_lo=per_chain("trace", np.uint64),
        flow=per_chain("flow", np.int32),
        path=per_chain("path", np.int32),
        sequence=per_chain("sequence", np.uint64),
        start_ns=per_chain("start", np.int64),
        end_ns=end,
        closed_ns=end + int(wait_s * NS),
        arrived_ns=end.copy(),
        outcome=np.full(len(rows), Outcome.COMPLETE, np.uint8),
        root=offsets[:-1].astype(np.int32),
        offsets=offsets,
        event=column("event", np.int32),
        instance=column("instance", np.int32),
        parent=np.array(parent, np.int32),
        time_ns=column("time", np.int64),
        duration=column("duration", np.float32),
        self_time=column("self_time", np.float32),
        span_id=column("span_id", np.uint64),
        kind=column("kind", np.uint8),
        status=column("status", np.uint8),
        enters=column("enters", np.bool_),
        cell_record=np.array([c[0] for c in cells], np.int32),
        cell_key=np.array([c[1] for c in cells], np.int32),
        cell_number=np.array([c[2] for c in cells], np.float64),
        cell_hash=np.array([hashed(repr(c[2])) for c in cells], np.uint64),
    )


class _Rows:
    """The columns of one chain, filled depth first."""

    def __init__(self, symbols: Symbols, tenant: str, root: Node, start: int, trace: int) -> None:
        self.symbols, self.trace, self.start = symbols, trace, start
        self.tenant = symbols.tenants.add(hashed(tenant), tenant)
        self.event: list[int] = []
        self.instance: list[int] = []
        self.parent: list[int] = []
        self.time: list[int] = []
        self.duration: list[int] = []
        self.self_time: list[int] = []
        self.span_id: list[int] = []
        self.kind: list[int] = []
        self.status: list[int] = []
        self.enters: list[bool] = []
        self.cells: list[tuple[int, int, float]] = []
        self._add(root, NONE, start, int((root.ms or 0) * 1e6), None)
        self.end = max(map(add, self.time, self.duration))
        hashes = symbols.events.hash
        self.flow = symbols.flows.add(
            hashed(tenant, int(hashes[self.event[0]])),
            f"{root.service} {root.name}",
            tenant=self.tenant,
            event=self.event[0],
        )
        entries = [e for e, enters in zip(self.event, self.enters, strict=True) if enters]
        steps = [e for number, e in enumerate(entries) if number == 0 or entries[number - 1] != e]
        text = " > ".join(symbols.events.text[e] for e in steps)
        self.path = symbols.paths.add(hashed(*(int(hashes[e]) for e in steps)), text, flow=self.flow)
        self.sequence = hashed(*(int(hashes[e]) for e in self.event))

    def _add(self, node: Node, parent: int, start: int, length: int, caller: str | None) -> None:
        """Appends `node` and what stands below it; `caller` is the parent's service."""
        service, is_log = node.service or caller or "", node.ms is None
        row, symbols = len(self.event), self.symbols
        service_id = symbols.services.add(hashed(self.tenant, service), service, tenant=self.tenant)
        instance = node.instance or f"{service}-1"
        key = hashed(service_id, node.name, is_log)
        kind = 0 if is_log else _KINDS[node.kind or _kind(node, service, caller)]
        self.event.append(symbols.events.add(key, node.name, service=service_id, is_log=int(is_log)))
        self.instance.append(symbols.instances.add(hashed(service_id, instance), instance, service=service_id))
        self.parent.append(parent)
        self.time.append(start)
        self.span_id.append(self.span_id[parent] if is_log else hashed(self.trace, row))
        self.status.append(node.status)
        self.kind.append(kind)
        self.enters.append(not is_log and (kind in _ENTRIES or caller != service))
        if node.cells:
            self.cells += [(row, key, number) for key, number in node.cells.items()]
        self.duration.append(length)
        self.self_time.append(length)
        if node.children:
            covered, reached = 0, start
            for child, child_start, child_length in _placed(node, start, length):
                self._add(child, row, child_start, child_length, service)
                begin, end = max(child_start, reached), min(child_start + child_length, start + length)
                if end > begin:
                    covered, reached = covered + end - begin, end
            self.self_time[row] = length - covered


def _kind(node: Node, service: str, caller: str | None) -> str:
    if caller != service:
        return "server"
    return "client" if any(child.service not in {None, service} for child in node.children) else "internal"


def _placed(node: Node, start: int, length: int) -> list[tuple[Node, int, int]]:
    """The children with their start times and lengths in ns, by start: evenly spaced unless `at_ms` says otherwise."""
    lengths = [int((child.ms or 0) * 1e6) for child in node.children]
    gap = max(length - sum(lengths), 0) // (len(lengths) + 1)
    out, cursor = [], start
    for child, taken in zip(node.children, lengths, strict=True):
        cursor += gap
        out.append((child, cursor if child.at_ms is None else start + int(child.at_ms * 1e6), taken))
        cursor += taken
    return sorted(out, key=itemgetter(1))
