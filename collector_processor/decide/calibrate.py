"""Scores of any unit -> p-values that mean the same for every detector and flow, and the fused score's own p-value.

How it works. Rolling conformal calibration: a score is ranked among the last N scores of normal chains of the same
flow (`kernels/calibrate.py` says how). A flow with little history is judged among all flows of its tenant, a tenant
with little history not at all (p = 1, level COLD). State changes in `learn` only, so within an epoch every batch is
judged by the same rings. Two things keep the rings honest: they are fed by what `Decider.clear` lets through, which
does not cut their tail off; and a busy flow feeds only a sample, chosen by content hash, so that a ring spans
minutes, not milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collector_processor.kernels import calibrate as kernels
from collector_processor.model import F64, I32, U8, Bool, ChainBatch

PER_CALL = 32  # calibration scores that a full ring takes at one epoch boundary
ROWS_FIRST = 16


@dataclass(slots=True)
class Calibrated:
    """What calibration says of n chains and d detectors."""

    p: F64  # [parts + d, n] p-value per component, and then per detector; 1 when there is no history
    fused: F64  # [n] S = 2 ln(sum of weight / sqrt p) over components with history, NaN without any
    p_fused: F64  # [n] p-value of S, 1 when cold
    level: U8  # [n] COLD, POOLED or OWN
    any_cold: bool = False  # whether a level is COLD


class Rings:
    """Calibration rings of `rows` x `columns`, grown on demand by row. Arrays as in `kernels/calibrate.py`."""

    def __init__(self, columns: int, size: int) -> None:
        self.arrived = np.zeros((0, columns, size))
        self.ordered = np.zeros((0, columns, size))
        self.count = np.zeros((0, columns), np.int32)
        self.head = np.zeros((0, columns), np.int32)
        self.tail = np.zeros((0, columns, 2))
        self.grow(1)

    def grow(self, rows: int) -> None:
        """Makes room for at least `rows` rows."""
        have = self.count.shape[0]
        if rows <= have:
            return
        more = max(rows, 2 * have, ROWS_FIRST) - have
        for name in ("arrived", "ordered", "count", "head", "tail"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((more, *old.shape[1:]), old.dtype)]))

    def forget(self, column: int) -> None:
        """Empties one column: its scores have changed their meaning."""
        self.count[:, column] = 0
        self.head[:, column] = 0

    def snapshot(self) -> dict[str, Any]:
        """The rings in order of arrival; what is sorted or fitted follows from them."""
        rows = int(np.flatnonzero(self.count.any(axis=1))[-1]) + 1 if self.count.any() else 0
        return {name: getattr(self, name)[:rows].copy() for name in ("arrived", "count", "head")}

    def restore(self, state: dict[str, Any]) -> None:
        rows = state["count"].shape[0]
        self.grow(rows)
        for name in ("arrived", "count", "head"):
            getattr(self, name)[:rows] = state[name]
        for row in range(rows):
            for column, n in enumerate(self.count[row].tolist()):
                self.ordered[row, column, :n] = np.sort(self.arrived[row, column, :n])
                if n >= 2:
                    shape_max = kernels.SHAPE_MAX if column + 1 < self.count.shape[1] else 0.0
                    self.tail[row, column] = kernels.fit_tail(self.ordered[row, column], n, shape_max)


class Calibrator:
    """Rings per flow and per tenant for the detectors `names` and for their fused score."""

    def __init__(
        self, names: Sequence[str], part: I32, weights: F64, history: int, history_min: int, stated: Sequence[str] = ()
    ) -> None:
        """`part` [d] is the component of each detector, `weights` [parts] the lambdas of the fused score; `history` and
        `history_min` as in `DecideConfig`; `stated`: the detectors whose values are -ln of a probability.
        """
        self.names = tuple(names)
        self.stated = np.array([name in stated for name in self.names], np.bool_)
        self.part = part
        self.weights = weights
        self.history_min = history_min
        self._size = history
        self._own = Rings(len(self.names) + 1, history)
        self._pool = Rings(len(self.names) + 1, history)

    def reserve(self, flows: int, tenants: int) -> None:
        """Room for so many flows and tenants; there is room for ROWS_FIRST from the start."""
        self._own.grow(flows)
        self._pool.grow(tenants)

    def calibrate(self, values: F64, flow: I32, tenant: I32) -> Calibrated:
        """p-values of `values` [d, n]; changes nothing. Negative flows are 0."""
        detectors, n = values.shape
        own, pool = self._own, self._pool
        p = np.empty((self.weights.size + detectors, n))
        out = Calibrated(p, np.empty(n), np.empty(n), np.empty(n, np.uint8))
        out.any_cold = kernels.score_chains(
            *(values, flow, tenant, self.part, self.stated, self.weights, self.history_min),
            *(own.ordered, own.count, own.tail, pool.ordered, pool.count, pool.tail),
            *(p, out.fused, out.p_fused, out.level),
        )
        return out

    def learn(self, values: F64, batch: ChainBatch, normal: Bool) -> None:
        """Feeds the rings with the normal rows of `values` [n, d + 1], the last column being S or NaN.

        Call it once an epoch boundary, with all chains that are due: a full ring takes about PER_CALL of them.
        """
        few = len(batch) <= PER_CALL  # of whom every ring takes all
        uniform = np.zeros(len(batch)) if few else uniform_hash(batch)
        for rings, row in ((self._own, batch.flow), (self._pool, batch.tenant)):
            kernels.learn_chains(
                *(values, row, normal, uniform, PER_CALL, self.part, self.weights, self.history_min),
                *(rings.arrived, rings.ordered, rings.count, rings.head, rings.tail),
            )

    def forget(self, name: str) -> None:
        """Starts the calibration of one detector anew, because its model has changed."""
        for rings in (self._own, self._pool):
            rings.forget(self.names.index(name))

    def history_of(self, flow: int) -> int:
        """How many calibration scores the fused score of `flow` rests on."""
        return int(self._own.count[flow, -1]) if 0 <= flow < self._own.count.shape[0] else 0

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "names": list(self.names),
            "part": self.part.copy(),
            "weights": self.weights.copy(),
            "own": self._own.snapshot(),
            "pool": self._pool.snapshot(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot. A detector that is new starts cold; other weights start the fused rings anew."""
        columns = [state["names"].index(name) if name in state["names"] else None for name in self.names]
        same = list(state["names"]) == list(self.names) and np.array_equal(state["part"], self.part)
        same = same and np.array_equal(state["weights"], self.weights)
        columns.append(len(state["names"]) if same else None)
        for rings, saved in ((self._own, state["own"]), (self._pool, state["pool"])):
            rings.restore(_resized({name: _columns(saved[name], columns) for name in saved}, self._size))


def uniform_hash(batch: ChainBatch) -> F64:
    """[n] numbers in 0-1 that depend on the content of each chain only (splitmix64 of trace id, sequence and start)."""
    out = np.empty(len(batch))
    kernels.spread_evenly(batch.trace_hi, batch.trace_lo, batch.sequence, batch.start_ns, out)
    return out


def drawn_hash(batch: ChainBatch) -> F64:
    """[n] numbers like those of `uniform_hash`, and independent of them: a sample drawn by these can be sampled again.

    The same number would let in none but those that audits let train.
    """
    out = np.empty(len(batch))
    kernels.spread_evenly(batch.trace_lo, batch.sequence, batch.end_ns.view(np.uint64), batch.start_ns, out)
    return out


def _columns(saved: Any, columns: list[int | None]) -> Any:
    """`saved` [rows, old columns, ...] with its columns rearranged; None gives an empty one."""
    out = np.zeros((saved.shape[0], len(columns), *saved.shape[2:]), saved.dtype)
    for new, old in enumerate(columns):
        if old is not None:
            out[:, new] = saved[:, old]
    return out


def _resized(saved: dict[str, Any], size: int) -> dict[str, Any]:
    """Saved rings with room for `size` scores each: the newest stay."""
    arrived, count, head = saved["arrived"], saved["count"], saved["head"]
    if arrived.shape[2] == size:
        return saved
    out = np.zeros((*arrived.shape[:2], size))
    for row, column in np.argwhere(count > 0):
        n = count[row, column]
        newest = np.roll(arrived[row, column, :n], -head[row, column] if n == arrived.shape[2] else 0)[-size:]
        out[row, column, : newest.size] = newest
    kept = np.minimum(count, size)
    return {"arrived": out, "count": kept, "head": kept % size}
