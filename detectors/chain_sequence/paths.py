"""The canonical paths of every flow: their operations and transitions.

How it works. A path id of `Symbols` is turned, on first sight, into a *row*: its operations with loops collapsed, so
that a chain that asks for eleven stations instead of twelve is the same path. Rows are columns of numpy arrays;
operations and transition ids of all rows stand in one pool, so that counting a chain is one short loop in a compiled
kernel. A path that has no id of its own (the symbol list is full) is found by the chain's sequence hash. When the table
is full, the paths that were not seen for longest make room.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.kernels import sequence as kernels
from collector_processor.kernels.table import take
from collector_processor.model import I32, I64, NONE, Bool, ChainBatch, Symbols, content_hash
from detectors.familiarity import Familiarity, grown

START, END = -2, -3  # ends of a path, as pseudo-operations of its transitions
COLUMNS = {
    "key": np.uint64,
    "signature": np.uint64,
    "start": np.int64,
    "length": np.int64,
    "novel": np.bool_,
}


Held = tuple[int, int, float]  # what kernel `holder` gives


class PathTable:
    """Rows of canonical paths and their transitions.

    Columns by row: those of `Familiarity`, and `key` (content hash), `signature` (Bloom filter of its operations),
    `start` and `length` in the pool, `novel` (it first came when its flow was no longer young).
    """

    def __init__(self, symbols: Symbols, familiarity: Familiarity, rows_max: int, length_max: int) -> None:
        self.symbols = symbols
        self.familiarity = familiarity
        self.rows_max = rows_max
        self.length_max = length_max
        self.size = 0
        self.column: dict[str, Any] = {name: np.zeros(64, kind) for name, kind in COLUMNS.items()}
        self.of_path = np.full(256, NONE, np.int32)
        self.of_sequence: dict[int, int] = {}
        self.ids: dict[int, int] = {}
        self.rows_of_flow: dict[int, list[int]] = {}
        self.pool = np.zeros(1024, np.int32)
        self.callers = np.zeros(1024, np.int32)  # the module entry that it was called from, NONE at the top
        self.clients = np.zeros(1024, np.int32)  # the client or producer span that called it, NONE when there was none
        self.unanswered: dict[int, tuple[int, ...]] = {}  # calls of the row's first chain that no module was entered by
        self.used = 0
        self.transitions: dict[tuple[int, int, int], int] = {}
        self.origins: dict[tuple[int, int], int] = {}
        self.transition = np.zeros(1024, np.int32)
        self.transition_start = np.zeros(64, np.int64)
        self.transition_length = np.zeros(64, np.int64)
        self.transition_used = 0
        self.transition_count = np.zeros(256)
        self.origin = np.zeros(256, np.int32)
        self.origin_count = np.zeros(256)

    def view(self, name: str) -> Any:
        """The column `name` of all rows."""
        return self.column[name][: self.size]

    def operations(self, row: int) -> I32:
        """Event ids of the canonical path."""
        start = self.column["start"][row]
        return self.pool[start : start + self.column["length"][row]]

    def callers_of(self, row: int) -> list[int]:
        """What called each operation: the module entry above it; NONE at the top."""
        start = self.column["start"][row]
        return self.callers[start : start + self.column["length"][row]].tolist()  # type: ignore[no-any-return]

    def caller_of(self, row: int, position: int) -> tuple[int, int]:
        """What called the operation at `position`: the module entry above it, and its client span; NONE without one."""
        at = self.column["start"][row] + position
        return int(self.callers[at]), int(self.clients[at])

    def rows(self, batch: ChainBatch) -> I32:
        """int32[n]: the row of each chain; new paths are added in the order of the batch."""
        if len(self.symbols.paths) > self.of_path.size:
            self.of_path = grown(self.of_path, len(self.symbols.paths), NONE)
        rows = np.empty(len(batch), np.int32)
        if take(self.of_path, batch.path, rows):
            for chain in np.flatnonzero(rows < 0).tolist():
                rows[chain] = self._row_on_sight(batch, chain)
        return rows

    def _row_on_sight(self, batch: ChainBatch, chain: int) -> int:
        path = int(batch.path[chain])
        known = int(self.of_path[path]) if path else self.of_sequence.get(int(batch.sequence[chain]), NONE)
        if known >= 0:
            return known
        lo, hi = int(batch.offsets[chain]), int(batch.offsets[chain + 1])
        events, callers, clients, silent = np.empty((4, hi - lo), np.int32)
        length, unanswered = kernels.steps(
            lo, hi, batch.event, batch.parent, batch.kind, batch.enters, events, callers, clients, silent
        )
        length = min(self.length_max, length)
        of_chain = int(batch.flow[chain]), int(batch.closed_ns[chain])
        row = self.add(*of_chain, events[:length], callers[:length], clients[:length])
        if unanswered and row not in self.unanswered:
            self.unanswered[row] = tuple(sorted(set(silent[:unanswered].tolist())))
        if path:
            self.of_path[path] = row
        else:
            self.of_sequence[int(batch.sequence[chain])] = row
        return row

    def add(self, flow: int, now_ns: int, events: I32, callers: I32, clients: I32) -> int:
        """The row of this canonical path, added when new."""
        hashes = self.symbols.events.hash[events]
        key = content_hash(int(self.symbols.flows.hash[flow]), hashes.tobytes())
        found = self.ids.get(key)
        if found is not None:
            return found
        row = self.familiarity.add(flow, now_ns)
        self.size = row + 1
        if self.size > self.column["key"].size:
            self.column = {name: grown(values, self.size) for name, values in self.column.items()}
        self.pool = grown(self.pool, self.used + events.size)
        self.callers = grown(self.callers, self.used + events.size)
        self.clients = grown(self.clients, self.used + events.size)
        self.pool[self.used : self.used + events.size] = events
        self.callers[self.used : self.used + events.size] = callers
        self.clients[self.used : self.used + events.size] = clients
        column = self.column
        column["key"][row] = key
        column["signature"][row] = signature(hashes)
        column["start"][row], column["length"][row] = self.used, events.size
        column["novel"][row] = self.familiarity.flow["total"][flow] >= self.familiarity.young
        self.used += events.size
        self.ids[key] = row
        self.rows_of_flow.setdefault(flow, []).append(row)
        self._add_transitions(flow, row, events.tolist())
        return row

    def _add_transitions(self, flow: int, row: int, events: list[int]) -> None:
        steps = list(zip([START, *events], [*events, END], strict=True))
        ids = [self._transition(flow, a, b) for a, b in steps]
        self.transition = grown(self.transition, self.transition_used + len(ids))
        self.transition[self.transition_used : self.transition_used + len(ids)] = ids
        self.transition_start = grown(self.transition_start, row + 1)
        self.transition_length = grown(self.transition_length, row + 1)
        self.transition_start[row], self.transition_length[row] = self.transition_used, len(ids)
        self.transition_used += len(ids)

    def _transition(self, flow: int, step: int, following: int) -> int:
        found = self.transitions.get((flow, step, following))
        if found is not None:
            return found
        new = self.transitions[(flow, step, following)] = len(self.transitions)
        origin = self.origins.setdefault((flow, step), len(self.origins))
        self.transition_count = grown(self.transition_count, new + 1)
        self.origin = grown(self.origin, new + 1)
        self.origin_count = grown(self.origin_count, origin + 1)
        self.origin[new] = origin
        return new

    def probability(self, flow: int, step: int, following: int) -> float:
        """P(following | step) among the flow's normal chains, half a count for what was never seen."""
        origin = self.origins.get((flow, step))
        passed = 0.0 if origin is None else float(self.origin_count[origin])
        transition = self.transitions.get((flow, step, following))
        taken = 0.0 if transition is None else float(self.transition_count[transition])
        return (taken + 0.5) / (passed + 1.0)

    def nearest(self, row: int) -> tuple[int, int]:
        """Kernel `nearest` among the paths of the same flow."""
        column, known = self.column, self.familiarity.row
        return kernels.nearest(  # type: ignore[no-any-return]
            *(row, self.flow_rows(int(known["flow"][row])), self.pool, column["start"], column["length"]),
            *(column["key"], known["good"]),
        )

    def judge(self, row: int, rows: I64, gap: float) -> tuple[float, int, Held]:
        """Kernel `judge`: how surprising `row` is and where (the length: the end), and which of `rows` its operations
        are a broken-off part of."""
        column, known = self.column, self.familiarity.row
        return kernels.judge(  # type: ignore[no-any-return]
            *(row, self.pool, column["start"], column["length"], column["signature"], column["key"], rows, gap),
            *(known["flow"], known["good"], known["bad"], self.familiarity.flow["total"]),
            *(self.transition_start, self.transition_length, self.transition, self.transition_count),
            *(self.origin, self.origin_count),
        )

    def flow_rows(self, flow: int) -> I64:
        """int64: the rows of `flow`."""
        return np.array(self.rows_of_flow.get(flow, ()), np.int64)

    def learn(self, rows: I32, batch: ChainBatch, normal: Bool) -> bool:
        """Counts chains; True when a path became known, or stopped being so."""
        odd, good = np.zeros(self.size), self.familiarity.row["good"]
        kernels.count_transitions(
            *(rows, normal, batch.outcome, self.transition_start, self.transition_length),
            *(self.transition, self.transition_count, self.origin, self.origin_count, good, odd),
        )
        return self.familiarity.learn(rows, batch, normal, odd)

    def fade(self, factor: float) -> None:
        """Forgets a little of what was counted."""
        self.familiarity.fade(factor)
        self.transition_count *= factor
        self.origin_count *= factor

    def evict(self) -> I64 | None:
        """Keeps the later half when the table is too full. Answers the kept rows (old numbers) or None."""
        if self.size <= self.rows_max:
            return None
        known = self.familiarity
        order = np.lexsort((self.view("key"), -known.view("good"), -known.view("last_ns")))
        kept: I64 = np.sort(order[: self.rows_max // 2])
        state = self.snapshot()
        fresh = PathTable(self.symbols, Familiarity(known.young, known.odd_scale), self.rows_max, self.length_max)
        fresh._restore_rows(state, kept, known.view("flow")[kept], known.view("first_ns")[kept])
        known.keep(kept)
        fresh.familiarity = known
        self.__dict__.update(fresh.__dict__)
        return kept

    def snapshot(self) -> dict[str, Any]:
        return {
            "columns": {name: self.view(name).copy() for name in self.column},
            "pool": self.pool[: self.used].copy(),
            "callers": self.callers[: self.used].copy(),
            "clients": self.clients[: self.used].copy(),
            "unanswered": np.array([(row, e) for row, es in self.unanswered.items() for e in es]).reshape(-1, 2),
            "of_path": self.of_path.copy(),
            "sequence_key": np.fromiter(self.of_sequence.keys(), np.uint64, len(self.of_sequence)),
            "sequence_row": np.fromiter(self.of_sequence.values(), np.int32, len(self.of_sequence)),
            "transitions": np.array(list(self.transitions), np.int32).reshape(-1, 3),
            "transition_count": self.transition_count[: len(self.transitions)].copy(),
            "origins": np.array(list(self.origins), np.int32).reshape(-1, 2),
            "origin_count": self.origin_count[: len(self.origins)].copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot; the familiarity has been restored before."""
        known, self.familiarity = self.familiarity, Familiarity(self.familiarity.young, self.familiarity.odd_scale)
        rows = np.arange(state["columns"]["key"].size)
        self._restore_rows(state, rows, known.view("flow"), known.view("first_ns"))
        self.familiarity = known

    def _restore_rows(self, state: dict[str, Any], kept: I64, flow: I32, first_ns: I64) -> None:
        """Rows `kept` of a snapshot, renumbered; `flow` and `first_ns` [kept] of each."""
        columns = state["columns"]
        renumbered = np.full(columns["key"].size + 1, NONE, np.int32)  # the last entry answers for NONE
        for new, old in enumerate(kept.tolist()):
            part = slice(int(columns["start"][old]), int(columns["start"][old] + columns["length"][old]))
            steps = (np.asarray(state[name][part], np.int32) for name in ("pool", "callers", "clients"))
            renumbered[old] = self.add(int(flow[new]), int(first_ns[new]), *steps)
        self.view("novel")[:] = columns["novel"][kept]
        for old, event in np.asarray(state["unanswered"], np.int64).tolist():
            row = int(renumbered[old])
            if row >= 0:
                self.unanswered[row] = (*self.unanswered.get(row, ()), event)
        self.of_path = renumbered[np.asarray(state["of_path"], np.int64)].astype(np.int32)
        moved = renumbered[np.asarray(state["sequence_row"], np.int64)].tolist()
        keys = np.asarray(state["sequence_key"]).tolist()
        self.of_sequence = {key: row for key, row in zip(keys, moved, strict=True) if row >= 0}
        for steps, count in zip(state["transitions"].tolist(), state["transition_count"].tolist(), strict=True):
            transition = self.transitions.get(tuple(steps))
            if transition is not None:
                self.transition_count[transition] = count
        for step, count in zip(state["origins"].tolist(), state["origin_count"].tolist(), strict=True):
            origin = self.origins.get(tuple(step))
            if origin is not None:
                self.origin_count[origin] = count


def signature(hashes: Any) -> int:
    """A 64-bit Bloom filter of event hashes: a subset's bits are a subset of its superset's."""
    bits = np.bitwise_or.reduce(np.left_shift(np.uint64(1), hashes >> np.uint64(58))) if hashes.size else 0
    return int(bits)
