"""Values of attributes that were never seen before at an operation where new values hardly ever come.

How it works. A *field* is an attribute of an operation (the user of `Approve`, the currency of `debit`). Per field the
share of new values is tracked; a field of ids has many and is never judged, nor are its values kept. Per flow the share
of chains with a new value in a judged field is tracked: that is how improbable one is. Fields and values are hashes in
bounded tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.kernels import bags as kernels
from collector_processor.kernels.table import move_keys, move_two, slot_of
from collector_processor.model import F64, I32, Bool, ChainBatch
from detectors.familiarity import grown

MEMORY = 1000.0  # values of a field over which its share of new ones is averaged
COUNT_MIN = 20.0  # values of a field before it is judged
FRESH_MAX = 0.05  # greatest share of new values of a field that is judged
ARRAYS = ("field_keys", "count", "fresh", "value_keys", "used", "chains", "with_new")
CLOSED_ABOVE = 0.3  # share of new values from which on a field's values are not kept


class Values:
    """Fields and their values; `values_max` bounds the values kept."""

    def __init__(self, values_max: int, young: int) -> None:
        self.values_max, self.young = values_max, young
        self.chains, self.with_new = np.zeros(16), np.zeros(16)  # per flow, the last thousand or so
        self.field_keys = np.zeros(1024, np.uint64)
        self.count = np.zeros(1024)
        self.fresh = np.zeros(1024)
        self.value_keys = np.zeros(4096, np.uint64)
        self.used = np.zeros(2, np.int64)

    def score(self, batch: ChainBatch) -> tuple[F64, I32]:
        """Per chain: p of having a new value where new ones are rare, 1 without one; the rarest such cell, else -1."""
        worst = self._worst(batch)
        self._reserve(int(batch.flow.max()) + 1)
        chains, with_new = self.chains[batch.flow], self.with_new[batch.flow]
        judged = (worst >= 0) & (chains >= self.young)
        return np.where(judged, (with_new + 0.5) / (chains + 1.0), 1.0), np.where(judged, worst, -1).astype(np.int32)

    def _worst(self, batch: ChainBatch) -> I32:
        """int32[n]: the cell of each chain whose value is new in the field with the fewest new ones, -1 for none."""
        least, worst = np.ones(len(batch)), np.full(len(batch), -1, np.int32)
        kernels.score_values(
            *(batch.chain_of()[batch.cell_record], batch.event[batch.cell_record], batch.cell_key, batch.cell_hash),
            *(self.field_keys, self.count, self.fresh, self.value_keys, COUNT_MIN, FRESH_MAX, least, worst),
        )
        return worst

    def _reserve(self, flows: int) -> None:
        self.chains, self.with_new = grown(self.chains, flows), grown(self.with_new, flows)

    def field(self, event: int, attribute: int) -> tuple[float, float]:
        """(values seen, share of new ones) of a field."""
        slot = int(slot_of(self.field_keys, kernels.field_key(np.int64(event), np.int64(attribute))))
        return float(self.count[slot]), float((self.fresh[slot] + 0.5) / (self.count[slot] + 1.0))

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        """Takes in the cells of normal chains."""
        self._reserve(int(batch.flow.max()) + 1)
        kernels.count_new(batch.flow, normal, self._worst(batch), self.chains, self.with_new, MEMORY)
        cells = np.flatnonzero(normal[batch.chain_of()[batch.cell_record]])
        if cells.size == 0:
            return
        self._grow(cells.size)
        kernels.learn_values(
            *(batch.event[batch.cell_record[cells]], batch.cell_key[cells], batch.cell_hash[cells], self.field_keys),
            *(self.count, self.fresh, self.value_keys, MEMORY, CLOSED_ABOVE, self.used),
        )

    def _grow(self, cells: int) -> None:
        """Room for `cells` more of each while the bounds allow."""
        while 2 * (self.used[0] + cells) > self.field_keys.size and self.field_keys.size < 2 * self.values_max:
            size = 2 * self.field_keys.size
            keys, count, fresh = np.zeros(size, np.uint64), np.zeros(size), np.zeros(size)
            move_two(self.field_keys, self.count, self.fresh, keys, count, fresh)
            self.field_keys, self.count, self.fresh = keys, count, fresh
        while 2 * (self.used[1] + cells) > self.value_keys.size and self.value_keys.size < 2 * self.values_max:
            larger = np.zeros(2 * self.value_keys.size, np.uint64)
            move_keys(self.value_keys, larger)
            self.value_keys = larger

    def snapshot(self) -> dict[str, Any]:
        return {name: getattr(self, name).copy() for name in ARRAYS}

    def restore(self, state: dict[str, Any]) -> None:
        for name in ARRAYS:
            setattr(self, name, np.array(state[name]))
