"""The canonical paths of every flow: their operations, how often each ran normally, and their transitions.

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
from collector_processor.model import I32, I64, NONE, ChainBatch, Symbols, content_hash

CLIENT, PRODUCER = 4, 5  # ChainBatch.kind
START, END = -2, -3  # ends of a path, as pseudo-operations of its transitions
COLUMNS = {
    "flow": np.int32, "key": np.uint64, "signature": np.uint64, "start": np.int64, "length": np.int64,
    "good": np.float64, "bad": np.float64, "ratio": np.float64, "first_ns": np.int64, "last_ns": np.int64,
    "seen": np.int64, "novel": np.bool_,
}  # fmt: skip


def grown(array: Any, size: int, fill: float = 0) -> Any:
    """`array` with room for `size` rows (doubling), new ones filled with `fill`."""
    if array.shape[0] >= size:
        return array
    room = max(size, 2 * array.shape[0])
    return np.concatenate([array, np.full((room - array.shape[0], *array.shape[1:]), fill, array.dtype)])


class PathTable:
    """Rows of canonical paths and their transitions; see the columns above.

    `good` and `bad` count chains that were normal and that were judged anomalous; `ratio` is the share of the row at
    this time of the week over its share overall; `seen` counts the chains scored since it was last taken;
    `novel`: it first came when its flow was no longer young.
    """

    def __init__(self, symbols: Symbols, rows_max: int, length_max: int) -> None:
        self.symbols = symbols
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

    def caller_of(self, row: int, position: int) -> tuple[int, int]:
        """What called the operation at `position`: the module entry above it, and its client span; NONE without one."""
        at = self.column["start"][row] + position
        return int(self.callers[at]), int(self.clients[at])

    def rows(self, batch: ChainBatch) -> I32:
        """int32[n]: the row of each chain; new paths are added in the order of the batch."""
        if len(self.symbols.paths) > self.of_path.size:
            self.of_path = grown(self.of_path, len(self.symbols.paths), NONE)
        rows: I32 = self.of_path[batch.path]
        if rows.size and rows.min() < 0:
            for chain in np.flatnonzero(rows < 0).tolist():
                rows[chain] = self._row_on_sight(batch, chain)
        return rows

    def _row_on_sight(self, batch: ChainBatch, chain: int) -> int:
        path = int(batch.path[chain])
        known = int(self.of_path[path]) if path else self.of_sequence.get(int(batch.sequence[chain]), NONE)
        if known >= 0:
            return known
        lo, hi = int(batch.offsets[chain]), int(batch.offsets[chain + 1])
        parent = np.where(batch.parent[lo:hi] >= 0, batch.parent[lo:hi] - lo, NONE)
        asks = (batch.kind[lo:hi] == CLIENT) | (batch.kind[lo:hi] == PRODUCER)
        events, callers, clients, silent = kernels.steps(batch.event[lo:hi], parent, batch.enters[lo:hi], asks)
        length = min(self.length_max, kernels.collapse(events, callers, clients))
        row = self.add(int(batch.flow[chain]), events[:length], callers[:length], clients[:length])
        if self.column["first_ns"][row] == 0:
            self.column["first_ns"][row] = batch.closed_ns[chain]
        if silent.size and row not in self.unanswered:
            self.unanswered[row] = tuple(np.unique(silent).tolist())
        if path:
            self.of_path[path] = row
        else:
            self.of_sequence[int(batch.sequence[chain])] = row
        return row

    def add(self, flow: int, events: I32, callers: I32, clients: I32) -> int:
        """The row of this canonical path, added when new."""
        hashes = self.symbols.events.hash[events]
        key = content_hash(int(self.symbols.flows.hash[flow]), hashes.tobytes())
        found = self.ids.get(key)
        if found is not None:
            return found
        row = self.size
        self.size += 1
        for name in self.column:
            self.column[name] = grown(self.column[name], self.size)
        self.pool = grown(self.pool, self.used + events.size)
        self.callers = grown(self.callers, self.used + events.size)
        self.clients = grown(self.clients, self.used + events.size)
        self.pool[self.used : self.used + events.size] = events
        self.callers[self.used : self.used + events.size] = callers
        self.clients[self.used : self.used + events.size] = clients
        column = self.column
        column["flow"][row] = flow
        column["key"][row] = key
        column["signature"][row] = signature(hashes)
        column["start"][row], column["length"][row] = self.used, events.size
        column["ratio"][row] = 1.0
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

    def surprise(self, row: int) -> tuple[float, int]:
        """Greatest -ln P(next | step) over the path, and the position of `next` (the length: the end)."""
        worst, at = kernels.surprise(
            row, self.transition_start, self.transition_length, self.transition, self.transition_count,
            self.origin, self.origin_count,
        )  # fmt: skip
        return float(worst), int(at)

    def candidates(self, row: int, rows: I64) -> I64:
        """Those of `rows` that hold every operation of `row` (by signature) and more steps, and were normal before."""
        column = self.column
        mask = (column["signature"][row] & ~column["signature"][rows]) == 0
        mask &= (column["length"][rows] > column["length"][row]) & (column["good"][rows] >= column["bad"][rows])
        mask &= column["good"][rows] > 0
        return np.asarray(rows[mask], np.int64)

    def containing(self, row: int, rows: I64) -> tuple[Any, Any, Any]:
        """Kernel `containing` for the operations of `row`."""
        return kernels.containing(  # type: ignore[no-any-return]
            self.operations(row), self.pool, self.column["start"], self.column["length"], rows
        )

    def flow_rows(self, flow: int) -> I64:
        """int64: the rows of `flow`."""
        return np.array(self.rows_of_flow.get(flow, ()), np.int64)

    def decay(self, factor: float) -> None:
        """Forgets a little of what was counted; a path once seen stays known."""
        good = self.view("good")
        good[good > 0] = np.maximum(good[good > 0] * factor, 0.5)
        self.view("bad")[:] *= factor
        self.transition_count *= factor
        self.origin_count *= factor

    def evict(self) -> I64 | None:
        """Keeps the later half when the table is too full. Answers the kept rows (old numbers) or None."""
        if self.size <= self.rows_max:
            return None
        order = np.lexsort((self.view("key"), -self.view("good"), -self.view("last_ns")))
        kept: I64 = np.sort(order[: self.rows_max // 2])
        state = self.snapshot()
        fresh = PathTable(self.symbols, self.rows_max, self.length_max)
        state["kept"] = kept
        fresh.restore(state)
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
        columns = state["columns"]
        kept = np.asarray(state.get("kept", np.arange(columns["flow"].size)))
        renumbered = np.full(columns["flow"].size + 1, NONE, np.int32)  # the last entry answers for NONE
        for old in kept.tolist():
            part = slice(int(columns["start"][old]), int(columns["start"][old] + columns["length"][old]))
            steps = (np.asarray(state[name][part], np.int32) for name in ("pool", "callers", "clients"))
            renumbered[old] = self.add(int(columns["flow"][old]), *steps)
        for old, event in np.asarray(state["unanswered"], np.int64).tolist():
            row = int(renumbered[old])
            if row >= 0:
                self.unanswered[row] = (*self.unanswered.get(row, ()), event)
        for name in ("good", "bad", "ratio", "first_ns", "last_ns", "seen", "novel"):
            self.view(name)[:] = columns[name][kept]
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
