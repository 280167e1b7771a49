"""The lanes of the system: what was seen inside spans, how often, and how surprising each is.

How it works. `kernels/lanes.py` finds the lanes of chains by hash; an unseen hash is resolved here (loops collapsed) to
a *row*. A row's events are counted into an n-gram model when it was part of normal chains: at first at once, later in
portions of a fifth, so that what is common costs nothing. The value of a row is the surprise of its most surprising
event. It is computed when the row is first seen and anew whenever lanes of the same head were learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from collector_processor.kernels import lanes as kernels
from collector_processor.kernels.table import LookupTable, move_two
from collector_processor.model import F64, I32, I64, NONE, Bool, ChainBatch, Symbols
from detectors.familiarity import grown
from detectors.sequence_transformer.transformer import Lanes, Transformer

PORTION = 0.2  # of what was counted before: less is not yet counted
NGRAMS_MAX = 1 << 21  # slots of the n-gram table
FIRST_SIGHTS = 64  # occurrences of unknown lanes that are entered before the others are looked up again
LENGTH_MAX = 512  # events of a lane that are judged
VOCABULARY_MAX = 1024  # events that the Transformer weighs against each other
COLUMNS: dict[str, type] = {
    "head": np.int32,
    "kind": np.uint8,
    "start": np.int64,
    "length": np.int64,
    "good": np.float64,
    "bad": np.float64,
    "counted": np.float64,
    "first_ns": np.int64,
    "last_ns": np.int64,
    "value": np.float64,
    "worst": np.int32,  # position of the most surprising event; the length: the end
}


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane: its head (TOP: none), kind and events."""

    head: int
    kind: int
    events: I32


class Found(NamedTuple):
    """The lanes of a batch: rows of chain c are `lane[offsets[c] : offsets[c + 1]]`; after the last there may be
    room."""

    lane: I32
    offsets: I64


class Counts:
    """The n-gram table: open addressing, grown up to NGRAMS_MAX slots; then nothing new is counted."""

    def __init__(self) -> None:
        self.keys, self.count, self.kinds = np.zeros(4096, np.uint64), np.zeros(4096), np.zeros(4096)
        self.used = np.zeros(1, np.int64)

    def reserve(self, events: int) -> None:
        """Room for lanes with so many events, ends included."""
        new = 2 * kernels.ORDERS * events
        while 2 * (int(self.used[0]) + new) > self.keys.size and self.keys.size < NGRAMS_MAX:
            size = 2 * self.keys.size
            keys, count, kinds = np.zeros(size, np.uint64), np.zeros(size), np.zeros(size)
            move_two(self.keys, self.count, self.kinds, keys, count, kinds)
            self.keys, self.count, self.kinds = keys, count, kinds

    def learn(self, lane: Lane, weight: float) -> None:
        """Adds `lane` so many times."""
        size = lane.events.size
        self.reserve(size + 1)
        table = (self.keys, self.count, self.kinds, self.used)
        kernels.learn_lane(lane.events, 0, size, lane.head, lane.kind, weight, *table)

    def surprisals(self, lane: Lane, uniform: float, model: F64) -> F64:
        """float64[events + 1], nats; `model` [events + 1]: the Transformer's P, negative without one."""
        size = lane.events.size
        out = np.empty(size + 1)
        table = (self.keys, self.count, self.kinds)
        kernels.surprisals(lane.events, 0, size, lane.head, lane.kind, uniform, model, *table, out)
        return out


class LaneTable:
    """Rows of lanes and the models behind their values."""

    def __init__(self, symbols: Symbols, transformer: Transformer | None, rows_max: int) -> None:
        self.symbols, self.transformer, self.rows_max = symbols, transformer, rows_max
        self.clear()
        self.counts = Counts()
        self.vocabulary = np.zeros(0, np.int32)  # events of learned lanes, as of the last boundary
        self._make_scratch(1024)
        self._unknown = np.empty((FIRST_SIGHTS, 3), np.int64)  # scratch too

    def clear(self) -> None:
        """No rows."""
        self.size = self.used = 0
        self.ids: dict[tuple[int, int, bytes], int] = {}  # head, kind, events
        self.rows_of_head: dict[int, list[int]] = {}
        self.known = LookupTable(8 * self.rows_max)  # rows by the hash of a lane as it came, loops and all
        self.column: dict[str, Any] = {name: np.zeros(64, kind) for name, kind in COLUMNS.items()}
        self.pool = np.zeros(1024, np.int32)
        self.model = np.zeros(1024)  # the Transformer's P of each event of the pool and of each end; -1 without one

    def view(self, name: str) -> Any:
        """The column `name` of all rows."""
        return self.column[name][: self.size]

    def lane(self, row: int) -> Lane:
        """Head, kind and events of a row."""
        start = int(self.column["start"][row])
        events = self.pool[start : start + int(self.column["length"][row])]
        return Lane(int(self.column["head"][row]), int(self.column["kind"][row]), events)

    def find(self, batch: ChainBatch) -> Found:
        """The lanes of every chain; new ones are added in the order of the batch, and valued."""
        known, columns = self.size, (batch.event, batch.parent, batch.kind, batch.offsets)
        if batch.records >= self._last.shape[0]:
            self._make_scratch(2 * batch.records)
        scratch = self._digest, self._last
        found = Found(np.empty(2 * (batch.records + len(batch)), np.int32), np.empty(len(batch) + 1, np.int64))
        unknown = self._unknown
        while missing := kernels.lanes_of(*columns, self.known.keys, self.known.values, *scratch, *found, unknown):
            # Most of what is unknown in a batch is the same few lanes again: enter some, and look again.
            self._enter(batch, unknown[:missing])
            unknown = np.empty((2 * len(unknown), 3), np.int64)
        if self.size > known:
            self.value_new(known)
        return found

    def _make_scratch(self, slots: int) -> None:
        """Room of the kernel, for a chain of fewer records than that."""
        self._digest, self._last = np.zeros((slots, 2), np.uint64), np.full((slots, 2), kernels.NO_EVENT, np.int32)

    def _enter(self, batch: ChainBatch, unknown: I64) -> None:
        """Remembers the rows of lanes that `lanes_of` did not know."""
        columns = (batch.event, batch.parent, batch.kind, batch.offsets)
        keys, head, start, events = kernels.lanes_at(*columns, unknown, LENGTH_MAX)
        self.known.put_many(keys, self.add(head, unknown[:, 2].copy(), start, events, batch.closed_ns[unknown[:, 0]]))

    def add(self, head: I32, kind: Any, start: I64, events: I32, times: I64) -> I32:
        """The rows of lanes, added when new: lane i has events[start[i] : start[i + 1]]."""
        rows = np.empty(head.size, np.int32)
        new: list[int] = []
        raw, bounds = events.tobytes(), (start * events.itemsize).tolist()
        for i, (of_head, of_kind) in enumerate(zip(head.tolist(), kind.tolist(), strict=True)):
            following = self.size + len(new)
            row = self.ids.setdefault((of_head, of_kind, raw[bounds[i] : bounds[i + 1]]), following)
            if row == following:
                new.append(i)
                self.rows_of_head.setdefault(of_head, []).append(row)
            rows[i] = row
        if new:
            self._append(np.array(new), head, kind, times, start, events)
        return rows

    def _append(self, new: I64, head: I32, kind: Any, times: I64, start: I64, events: I32) -> None:
        first, used = self.size, self.used
        self.size += new.size
        self.used += int((start[new + 1] - start[new] + 1).sum())
        if self.size > self.column["head"].size:
            self.column = {name: grown(values, self.size) for name, values in self.column.items()}
        self.pool, self.model = grown(self.pool, self.used), grown(self.model, self.used)
        kernels.append_lanes(
            *(new, head, kind, times, start, events, first, used),
            *(self.column[name] for name in ("head", "kind", "first_ns", "start", "length")),
            *(self.pool, self.model),
        )

    def value_new(self, first: int) -> None:
        """Asks the Transformer about the rows from `first` on and values them."""
        new, column = slice(first, self.size), self.column
        if self.transformer is not None and self.size > first:
            place = int(column["start"][first])
            lanes = (column["head"][new], column["kind"][new], column["start"][new] - place, column["length"][new])
            events = self.pool[place : self.used]
            self.model[place : self.used] = self.transformer.probabilities(Lanes(*lanes, events), self.vocabulary)
        self.revalue(np.arange(first, self.size))

    def value_all(self) -> None:
        """Values every row by the present models: the Transformer is another one."""
        self.model[: self.used] = -1.0
        self.value_new(0)

    def revalue(self, rows: I64) -> None:
        """Computes the values of `rows` anew."""
        column, table = self.column, (self.counts.keys, self.counts.count, self.counts.kinds)
        kernels.value_lanes(
            *(rows, self.pool, column["start"], column["length"], column["head"], column["kind"]),
            *(1.0 / (self.vocabulary.size + 2.0), self.model, *table, column["value"], column["worst"]),
            np.empty(LENGTH_MAX + 1),
        )

    def surprisals(self, row: int) -> F64:
        """float64[events + 1]: -ln P of each event and of the end."""
        lane, start = self.lane(row), int(self.column["start"][row])
        uniform = 1.0 / (self.vocabulary.size + 2.0)
        return self.counts.surprisals(lane, uniform, self.model[start : start + lane.events.size + 1])

    def learn(self, found: Found, batch: ChainBatch, normal: Bool) -> None:
        """Counts the lanes of normal chains (of the others as `bad`), and values anew what that changes."""
        column, due = self.column, np.empty(self.size, np.int64)
        count, any_new = kernels.count_lanes(
            *(*found, normal, batch.closed_ns, column["good"], column["bad"], column["last_ns"]),
            *(column["counted"], PORTION, due),
        )
        if count:
            self._count(due[:count], any_new)

    def _count(self, rows: I64, any_new: bool) -> None:
        """Brings the n-gram table up to date with `rows`, and values anew the lanes of their heads."""
        column, alike = self.column, np.empty(self.size, np.int64)
        if any_new:
            self._prepare(rows[column["counted"][rows] == 0.0])
        count = kernels.learn_lanes(
            *(rows, self.pool, column["start"], column["length"], column["head"], column["kind"], column["good"]),
            *(column["counted"], self.counts.keys, self.counts.count, self.counts.kinds, self.counts.used, alike),
        )
        self.revalue(alike[:count])

    def _prepare(self, new: I64) -> None:
        """Room in the n-gram table, and a place in the vocabulary, for what comes with lanes that are new to it."""
        starts, lengths = self.column["start"][new].tolist(), self.column["length"][new].tolist()
        self.counts.reserve(sum(lengths) + len(lengths))
        if self.vocabulary.size < VOCABULARY_MAX:
            events = set[int]()
            for start, length in zip(starts, lengths, strict=True):
                events.update(self.pool[start : start + length].tolist())
            more = sorted(events.difference(self.vocabulary.tolist()))[: VOCABULARY_MAX - self.vocabulary.size]
            if more:
                self.vocabulary = np.sort(np.concatenate([self.vocabulary, np.array(more, np.int32)]))

    def fade(self, factor: float) -> None:
        """Forgets a little of what was counted."""
        for name in ("good", "bad", "counted"):
            self.view(name)[:] *= factor
        kernels.fade_counts(self.counts.keys, self.counts.count, factor)

    def adopt(self, age_s: float, repeats: int) -> None:
        """Makes normal what came in anomalous chains only and yet kept coming for `age_s`."""
        good, bad = self.view("good"), self.view("bad")
        waiting = np.flatnonzero((bad >= repeats) & (good < bad))
        age = self.view("last_ns")[waiting] - self.view("first_ns")[waiting]
        adopted = waiting[age >= age_s * 1e9]
        if adopted.size:
            good[adopted] += bad[adopted]
            bad[adopted] = 0.0
            self._count(adopted, any_new=True)

    def evict(self) -> None:
        """Keeps the later half of the rows when there are too many."""
        if self.size <= self.rows_max:
            return
        order = np.lexsort((np.arange(self.size), -self.view("good"), -self.view("last_ns")))
        self._restore_rows(self.snapshot(), np.sort(order[: self.rows_max // 2]))

    def snapshot(self) -> dict[str, Any]:
        filled = np.flatnonzero(self.known.keys)
        return {
            "columns": {name: self.view(name).copy() for name in self.column},
            "pool": self.pool[: self.used].copy(),
            "model": self.model[: self.used].copy(),
            "hashes": self.known.keys[filled],
            "hash_rows": self.known.values[filled],
            "vocabulary": self.vocabulary.copy(),
            "ngrams": {name: getattr(self.counts, name).copy() for name in ("keys", "count", "kinds", "used")},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._restore_rows(state, np.arange(state["columns"]["head"].size))
        self.vocabulary = np.array(state["vocabulary"], np.int32)
        for name, values in state["ngrams"].items():
            setattr(self.counts, name, np.array(values))

    def _restore_rows(self, state: dict[str, Any], kept: I64) -> None:
        """Rows `kept` of a snapshot, renumbered."""
        self.clear()
        columns = state["columns"]
        start, length = columns["start"][kept], np.asarray(columns["length"][kept], np.int64)
        whole = [np.arange(lo, lo + n + 1) for lo, n in zip(start.tolist(), length.tolist(), strict=True)]
        places = np.concatenate([np.zeros(0, np.int64), *whole])  # in the pool, ends included
        events = np.delete(np.asarray(state["pool"], np.int32)[places], np.cumsum(length + 1) - 1)
        head, kind = np.asarray(columns["head"][kept], np.int32), columns["kind"][kept].astype(np.int64)
        self.add(head, kind, np.append(0, np.cumsum(length)), events, np.asarray(columns["first_ns"][kept], np.int64))
        self.model[: self.used] = state["model"][places]
        for name in ("good", "bad", "counted", "last_ns", "value", "worst"):
            self.view(name)[:] = columns[name][kept]
        renumbered = np.full(columns["head"].size, NONE, np.int32)
        renumbered[kept] = np.arange(kept.size)
        rows = renumbered[state["hash_rows"]]
        self.known.put_many(np.asarray(state["hashes"], np.uint64)[rows >= 0], rows[rows >= 0])
