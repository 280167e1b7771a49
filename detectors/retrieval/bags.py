"""The core of normal chains: distinct bags of events per flow, and what lies between a new bag and the nearest ones.

How it works. A chain's events are counted on half-octave levels; equal bags are one row, so the core is deduplicated by
construction. A chain's sequence hash finds its row in a table; only an unseen sequence is counted, and only an unseen
bag is compared: first by level differences weighted by how rare an event is (IDF), then, with the few nearest, allowing
an event to stand for a similar one that the other side lacks (token-level max-sim), so that a reworded log line is a
small step. What remains says which event is farthest from everything known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from collector_processor.kernels import bags as kernels
from collector_processor.kernels.table import LookupTable, find
from collector_processor.model import F64, I32, I64, NONE, U8, Bool, ChainBatch, Symbols
from detectors.familiarity import Familiarity, grown
from detectors.retrieval.embedding import EventVectors

NEAREST = 4  # candidates that are compared by max-sim
SEQUENCES_MAX = 131_072  # entries of the cache from sequence to row
ROWS_MAX = 1 << 30  # rows are bounded by `rows_max` and what one epoch brings: nothing is ever to be forgotten
WEIGHTS_GROWTH = 1.05  # chains by which the core grows before weights are computed anew


@dataclass(frozen=True, slots=True)
class Nearest:
    """How far a bag is from the core."""

    distance: float  # 0-1: 0 equal, 1 nothing in common
    deviation: float  # what chains of any length are compared by
    row: int = NONE  # the nearest bag
    event: int = NONE  # what is farthest from everything known
    extra: bool = True  # it is there and not known, else it is known and missing (or differs in number)


class BagTable:
    """Rows of distinct bags, with `familiarity` rows of the same numbers."""

    def __init__(
        self, symbols: Symbols, familiarity: Familiarity, vectors: EventVectors, rows_max: int, compared_max: int
    ) -> None:
        self.symbols, self.familiarity, self.vectors = symbols, familiarity, vectors
        self.rows_max, self.compared_max = rows_max, compared_max
        self.size = 0
        self.ids = LookupTable(ROWS_MAX)  # key of a bag -> its row
        self.rows_of_flow: dict[int, list[int]] = {}
        self.of_sequence = LookupTable(SEQUENCES_MAX)
        self.start, self.length = np.zeros(64, np.int64), np.zeros(64, np.int64)
        self.event, self.level = np.zeros(1024, np.int32), np.zeros(1024, np.uint8)
        self.used = 0
        self.seen_in = np.zeros(256)  # normal chains per event
        self.chains = 0.0
        self.weight = np.ones(256)
        self._make_scratch()
        self.weighted_at = 0.0  # `chains` when weights were computed

    def rows(self, batch: ChainBatch) -> I32:
        """int32[n]: the row of each chain; new bags are added in the order of the batch."""
        if len(self.symbols.events) > self.weight.size:
            self._reserve_events(len(self.symbols.events))
        rows = np.empty(len(batch), np.int32)
        table, chain = self.of_sequence, 0
        table.make_room(rows.size)
        columns = (batch.event, batch.offsets, batch.flow, batch.sequence, self.counted, self.distinct, self.levels)
        while True:
            bags = (self.ids.keys, self.ids.values)
            chain, entered = kernels.known_bags(chain, *columns, *bags, table.keys, table.values, rows)
            table.used += entered
            if chain < 0:
                return rows
            self._add_bag_of(batch, chain)

    def _reserve_events(self, events: int) -> None:
        known = self.weight.size
        self.seen_in = grown(self.seen_in, events)
        self.weight = grown(self.weight, events)
        self._make_scratch()
        self.weight[known:] = self._weight_of(np.zeros(self.weight.size - known))

    def _make_scratch(self) -> None:
        """Room of the kernel, for every event: the counts are zero between calls."""
        self.counted = np.zeros(self.weight.size, np.int32)
        self.distinct, self.levels = np.empty(self.weight.size, np.int32), np.empty(self.weight.size, np.uint8)

    def _weight_of(self, seen_in: F64) -> F64:
        return np.asarray(np.log((1.0 + self.chains) / (1.0 + seen_in)) + 1.0)

    def _add_bag_of(self, batch: ChainBatch, chain: int) -> None:
        events = batch.event[batch.offsets[chain] : batch.offsets[chain + 1]]
        size = kernels.bag(events, self.counted, self.distinct, self.levels)
        of_chain = int(batch.flow[chain]), int(batch.closed_ns[chain])
        self.add(*of_chain, self.distinct[:size], self.levels[:size])

    def add(self, flow: int, now_ns: int, event: I32, level: U8) -> int:
        """The row of this bag, added when new."""
        key = kernels.bag_key(flow, event, level)
        found = find(self.ids.keys, self.ids.values, np.uint64(key))
        if found >= 0:
            return int(found)
        row = self.familiarity.add(flow, now_ns)
        self.ids.put(key, row)
        self.size = row + 1
        self.start, self.length = grown(self.start, self.size), grown(self.length, self.size)
        self.event, self.level = grown(self.event, self.used + event.size), grown(self.level, self.used + event.size)
        self.start[row], self.length[row] = self.used, event.size
        self.event[self.used : self.used + event.size] = event
        self.level[self.used : self.used + event.size] = level
        self.used += event.size
        self.rows_of_flow.setdefault(flow, []).append(row)
        return row

    def bag(self, row: int) -> tuple[I32, U8]:
        """(events ascending, levels) of a row."""
        part = slice(int(self.start[row]), int(self.start[row] + self.length[row]))
        return self.event[part], self.level[part]

    def nearest(self, row: int) -> Nearest:
        """The distance of `row` to the known bags of its flow; 1 when there are none.

        Events that only one of two bags has may stand for similar ones that only the other has.
        """
        known, lacking = self.familiarity.row, np.empty(self.weight.size, np.int32)
        rows = (row, known["flow"], known["good"], known["bad"], self.size, self.compared_max)
        bags = (self.event, self.level, self.start, self.length, self.weight, NEAREST)
        self.vectors.reserve(self.weight.size)
        while True:
            vectors = (self.vectors.vectors, self.vectors.row_of)
            missing, other, (distance, deviation, event, extra) = kernels.closest(*rows, *bags, *vectors, lacking)
            if not missing:
                break
            self.vectors.make(lacking[:missing].tolist(), self.symbols.events.text)
            lacking = lacking[:0]  # those that the vectors had no room for are done without
        if other == NONE:
            events, level = self.bag(row)
            return Nearest(1.0, float(np.sqrt((self.weight[events] * level).sum())))
        return Nearest(distance, deviation, int(other), int(event), bool(extra))

    def learn(self, rows: I32, batch: ChainBatch, normal: Bool, odd: F64) -> bool:
        """Counts chains; True when a bag became known, or stopped being so, or weights changed."""
        changed = self.familiarity.learn(rows, batch, normal, odd)
        self.chains += kernels.count_events(
            rows, normal, batch.outcome, self.event, self.start, self.length, self.seen_in
        )
        if self.chains > WEIGHTS_GROWTH * self.weighted_at:
            self.weight = self._weight_of(self.seen_in)
            self.weighted_at = self.chains
            changed = True
        return changed

    def fade(self, factor: float) -> None:
        """Forgets a little of what was counted."""
        self.familiarity.fade(factor)
        self.seen_in *= factor
        self.chains *= factor
        self.weighted_at *= factor

    def evict(self) -> bool:
        """Keeps the later half when the table is too full; True when it did."""
        if self.size <= self.rows_max:
            return False
        known = self.familiarity
        order = np.lexsort((np.arange(self.size), -known.view("good"), -known.view("last_ns")))
        kept: I64 = np.sort(order[: self.rows_max // 2])
        state = self.snapshot()
        self._restore_rows(state, kept, known.view("flow")[kept].tolist(), known.view("first_ns")[kept].tolist())
        known.keep(kept)
        return True

    def snapshot(self) -> dict[str, Any]:
        return {
            "start": self.start[: self.size].copy(),
            "length": self.length[: self.size].copy(),
            "event": self.event[: self.used].copy(),
            "level": self.level[: self.used].copy(),
            "seen_in": self.seen_in.copy(),
            "weight": self.weight.copy(),
            "chains": self.chains,
            "weighted_at": self.weighted_at,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot; the familiarity has been restored before."""
        known = self.familiarity
        rows = np.arange(state["start"].size)
        self._restore_rows(state, rows, known.view("flow").tolist(), known.view("first_ns").tolist())
        self.seen_in, self.weight = np.array(state["seen_in"], np.float64), np.array(state["weight"], np.float64)
        self._make_scratch()
        self.chains, self.weighted_at = float(state["chains"]), float(state["weighted_at"])

    def _restore_rows(self, state: dict[str, Any], kept: I64, flow: list[int], first_ns: list[int]) -> None:
        """Rows `kept` of a snapshot, renumbered."""
        known, self.familiarity = self.familiarity, Familiarity(self.familiarity.young, self.familiarity.odd_scale)
        self.size = self.used = 0
        self.ids.clear()
        self.rows_of_flow.clear()
        self.of_sequence.clear()
        for new, old in enumerate(kept.tolist()):
            part = slice(int(state["start"][old]), int(state["start"][old] + state["length"][old]))
            event, level = np.array(state["event"][part], np.int32), np.array(state["level"][part], np.uint8)
            self.add(flow[new], first_ns[new], event, level)
        self.familiarity = known
