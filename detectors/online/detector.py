"""Slow elements: operations by their self time, calls by the time between caller and callee, pooled per service.

How it works. Histograms, windows and tails live in arrays that `kernels/elements.py` works on; this file owns them.
`score` looks surprises up in tables frozen since the last boundary and adds them to the current epoch's column of a
ring of 90 s. `advance` judges the ring: an element whose sum is too improbable even without its greatest epoch becomes
a finding. `learn` adds durations to the histograms when the quarantine is over, except where an alarm was about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collector_processor.config import Config, OnlineConfig
from collector_processor.kernels import elements as kernel
from collector_processor.kernels.table import LookupTable, find_many
from collector_processor.model import (
    F32,
    I32,
    I64,
    NONE,
    U64,
    Bool,
    ChainBatch,
    Findings,
    Kind,
    Level,
    Symbols,
    no_findings,
)
from detectors.protocol import Scores

NS = 1_000_000_000
CHAIN_NS_MAX = 10e9  # what a chain's time is taken for at most when shares of it are asked for: a batch may take hours
POOLS = {kernel.INTO: 0, kernel.WITHIN: 1, kernel.OUT_OF: 2}
MEAN_0, DISPERSION_0, WEIGHT_0 = 0.3, 1.0, 20.0  # of surprises, believed before anything is seen


@dataclass(slots=True)
class Observations:
    """One row an observation; see `kernels.elements.observe`."""

    key: U64
    value: F32
    row: I32
    chain: I32
    group: Any
    near: I32
    far: I32


class Elements:
    """The arrays of all elements. Slots are given in order of first learning; beyond `limit` no more are given."""

    PER_SLOT: ClassVar[dict[str, tuple[type, tuple[int, ...]]]] = {
        "key": (np.uint64, ()),
        "histogram": (np.float32, (kernel.BINS,)),
        "table": (np.float32, (kernel.BINS,)),
        "seen": (np.float32, ()),
        "middle": (np.int32, ()),
        "typical": (np.float32, ()),
        "group": (np.uint8, ()),
        "near": (np.int32, ()),
        "far": (np.int32, ()),
        "sums": (np.float64, (4,)),
        "mean": (np.float32, ()),
        "dispersion": (np.float32, ()),
        "level": (np.float32, ()),
        "alarmed_ns": (np.int64, ()),
    }

    def __init__(self, limit: int, services: int) -> None:
        self.limit = limit
        self.used = 0
        self.overflowed = 0
        self.lookup = LookupTable(2 * limit)
        self.arrays: dict[str, Any] = {
            name: np.zeros((64, *shape), dtype) for name, (dtype, shape) in self.PER_SLOT.items()
        }
        self.residual = np.zeros((kernel.GROUPS, 2 * kernel.BINS), np.float64)
        self.absolute = np.zeros((kernel.GROUPS, kernel.BINS), np.float64)
        self.pools = np.full((3, services), NONE, np.int32)

    def add(self, key: int, group: int, near: int, far: int) -> int:
        """A slot for `key`, NONE when all are taken."""
        if self.used >= self.limit:
            self.overflowed += 1
            return NONE
        slot = self.used
        if slot == self.arrays["key"].shape[0]:
            self.arrays = {name: np.concatenate([a, np.zeros_like(a)]) for name, a in self.arrays.items()}
        self.used += 1
        a = self.arrays
        a["key"][slot], a["group"][slot], a["near"][slot], a["far"][slot] = key, group, near, far
        a["mean"][slot], a["dispersion"][slot] = MEAN_0, DISPERSION_0
        a["alarmed_ns"][slot] = np.iinfo(np.int64).min
        self.lookup.put(key, slot)
        return slot

    def add_pool(self, which: int, kind: int, service: int) -> None:
        """A slot for one of the three pools of a service, unless it has one."""
        if self.pools[which, service] < 0:
            out_of = kind == kernel.OUT_OF
            self.pools[which, service] = self.add(
                kind | service, 0, NONE if out_of else service, service if out_of else NONE
            )

    def snapshot(self) -> dict[str, Any]:
        return {
            "overflowed": self.overflowed,
            "slots": {name: array[: self.used].copy() for name, array in self.arrays.items()},
            "residual": self.residual.copy(),
            "absolute": self.absolute.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        slots = state["slots"]
        self.used = int(slots["key"].size)
        self.overflowed = int(state["overflowed"])
        size = 64
        while size < self.used:
            size *= 2
        for name, (dtype, shape) in self.PER_SLOT.items():
            self.arrays[name] = np.zeros((size, *shape), dtype)
            self.arrays[name][: self.used] = slots[name]
        self.lookup.clear()
        self.pools[:] = NONE
        for slot, key in enumerate(self.arrays["key"][: self.used].tolist()):
            self.lookup.put(key, slot)
            which = POOLS.get(key & kernel.KIND)
            if which is not None:
                self.pools[which, key & ~kernel.KIND] = slot
        self.residual = np.array(state["residual"], np.float64)
        self.absolute = np.array(state["absolute"], np.float64)


class Online:
    """The detector `online`. See the module."""

    name = "online"

    def __init__(self, config: Config, symbols: Symbols) -> None:
        self.config: OnlineConfig = config.detectors.online
        self.symbols = symbols
        self.epoch_ns = int(config.engine.epoch_s * NS)
        self.columns = max(2, round(self.config.window_s / config.engine.epoch_s))
        self.elements = Elements(self.config.elements_max, config.decode.services_max)
        self.column = 0
        self.boundary_ns: int | None = None
        self.window = {
            name: np.zeros((64, self.columns), np.float64 if name in {"sum", "hit_ns"} else np.int32)
            for name in ("sum", "n", "hits", "hit_ns")
        }
        self._tables()

    def _tables(self) -> None:
        """What follows from the histograms of whole groups."""
        e = self.elements
        self.residual_table = np.zeros((kernel.GROUPS, 2 * kernel.BINS))
        self.cold_table = np.zeros((kernel.GROUPS, kernel.BINS))
        self.cold_typical = np.zeros(kernel.GROUPS)
        for group in range(kernel.GROUPS):
            kernel.survival(e.residual[group], self.config.prior, self.residual_table[group])
            kernel.survival(e.absolute[group], self.config.prior, self.cold_table[group])
            total = e.absolute[group].sum()
            middle = int(np.searchsorted(np.cumsum(e.absolute[group]), total / 2)) if total else kernel.BINS // 2
            self.cold_typical[group] = np.exp(kernel.LOWEST + (middle + 0.5) * kernel.WIDTH)

    def _observations(self, batch: ChainBatch) -> Observations:
        m = batch.records
        o = Observations(
            np.empty(2 * m, np.uint64),
            np.empty(2 * m, np.float32),
            np.empty(2 * m, np.int32),
            np.empty(2 * m, np.int32),
            np.empty(2 * m, np.uint8),
            np.empty(2 * m, np.int32),
            np.empty(2 * m, np.int32),
        )
        n = kernel.observe(
            *(batch.offsets, batch.event, batch.kind, batch.parent, batch.time_ns, batch.duration, batch.self_time),
            self.symbols.events.column("service"),
            *(o.key, o.value, o.row, o.chain, o.group, o.near, o.far),
        )
        return Observations(*(getattr(o, name)[:n] for name in Observations.__slots__))

    def score(self, batch: ChainBatch) -> Scores:
        if not batch.records:
            return Scores(np.zeros(len(batch)), no_findings())
        o, e, w = self._observations(batch), self.elements, self.window
        n = o.key.size
        value, surprise, slot = np.zeros((len(batch), 3)), np.empty(n, np.float32), np.empty(n, np.int32)
        chain_ns = np.clip((batch.end_ns - batch.start_ns).astype(np.float64), 1e6, CHAIN_NS_MAX)
        a = e.arrays
        kernel.judge(
            *(n, o.key, o.value, o.chain, o.group, o.near, o.far, chain_ns, self.column),
            *(e.lookup.keys, e.lookup.values, e.pools, a["table"], a["typical"], a["seen"], self.config.learn_min),
            *(self.cold_table, self.cold_typical, a["level"], self.config.material_share),
            *(w["sum"], w["n"], w["hits"], w["hit_ns"], self.config.hit, value, surprise, slot),
        )
        self.parts = value
        return Scores(value[:, 0] + 0.25 * value[:, 1] + value[:, 2], self._chain_findings(o, surprise, slot))

    def _chain_findings(self, o: Observations, surprise: F32, slot: I32) -> Findings:
        """The most surprising elements of each chain, at most `findings_max` a chain."""
        rows = np.flatnonzero(surprise >= self.config.chain_surprise)
        if not rows.size:
            return no_findings()
        rows = rows[np.lexsort((rows, -surprise[rows], o.chain[rows]))]
        first = np.searchsorted(o.chain[rows], o.chain[rows])
        rows = rows[np.arange(rows.size) - first < self.config.findings_max]
        out = no_findings(rows.size)
        typical = self.elements.arrays["typical"][slot[rows]]
        typical = np.where(slot[rows] >= 0, typical, self.cold_typical[o.group[rows]])
        called = o.far[rows] >= 0
        out["chain"] = o.chain[rows]
        out["kind"] = np.where(called, Kind.SLOW_CALL, Kind.SLOW_OPERATION)
        out["level"] = np.where(called, Level.EDGE, Level.OPERATION)
        out["service"], out["caller"] = o.near[rows], o.far[rows]
        key = o.key[rows].astype(np.int64)
        out["event"] = np.where(called, key & 0xFFFFF, key - 1)
        out["p"] = np.exp(-surprise[rows].astype(np.float64))
        out["expected"], out["actual"] = typical / NS, o.value[rows] / NS
        out["detail"] = o.row[rows]
        return out

    def advance(self, now_ns: int) -> Findings:
        e, w = self.elements, self.window
        a, used = e.arrays, e.used
        out, total, count = np.zeros(used, np.float32), np.zeros(used, np.float32), np.zeros(used, np.float32)
        kernel.evidence(used, w["sum"], w["n"], a["mean"], a["dispersion"], out, total, count)
        a["level"][:used] = np.minimum(out, kernel.SURPRISE_MAX)
        a["alarmed_ns"][:used][out >= self.config.hold] = now_ns
        findings = self._window_findings(np.flatnonzero(out >= self.config.report), out)
        self._turn(now_ns)
        return findings

    def _window_findings(self, slots: I64, out: F32) -> Findings:
        e, w = self.elements, self.window
        a = e.arrays
        rows = no_findings(slots.size)
        key = a["key"][slots].astype(np.int64)
        kind = key & kernel.KIND
        hits = w["hits"][slots].sum(1)
        rows["kind"] = np.where((kind == kernel.CALL) | (kind == kernel.INTO), Kind.SLOW_CALL, Kind.SLOW_OPERATION)
        rows["kind"][kind == kernel.OUT_OF] = Kind.SLOW_CALL
        rows["level"] = np.where(kind == kernel.CALL, Level.EDGE, np.where(kind == 0, Level.OPERATION, Level.SERVICE))
        rows["service"] = np.where(kind == kernel.OUT_OF, NONE, a["near"][slots])
        rows["caller"] = a["far"][slots]
        rows["event"] = np.where(kind == kernel.CALL, key & 0xFFFFF, np.where(kind == 0, key - 1, NONE))
        rows["p"] = np.maximum(np.exp(-out[slots].astype(np.float64)), 1e-300)
        rows["expected"] = a["typical"][slots] / NS
        rows["actual"] = w["hit_ns"][slots].sum(1) / np.maximum(hits, 1) / NS
        rows["detail"] = slots
        return rows

    def _turn(self, now_ns: int) -> None:
        """Opens the column of the epoch that starts at `now_ns`, learning the spread of surprises from what leaves."""
        e, w = self.elements, self.window
        a, used = e.arrays, e.used
        steps = 1
        if self.boundary_ns is not None:
            steps = max(1, (now_ns - self.boundary_ns) // self.epoch_ns)
        self.boundary_ns = now_ns
        for _ in range(min(steps, self.columns)):
            self.column = (self.column + 1) % self.columns
            alarmed = a["alarmed_ns"][:used] >= now_ns - self.columns * self.epoch_ns
            kernel.learn_column(
                *(used, self.column, w["sum"], w["n"], alarmed, self.config.kept, 16.0),
                *(a["sums"], a["mean"], a["dispersion"], MEAN_0, DISPERSION_0, WEIGHT_0),
            )
            for array in w.values():
                array[:, self.column] = 0

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        o, e = self._observations(batch), self.elements
        slot = np.empty(o.key.size, np.int32)
        if find_many(e.lookup.keys, e.lookup.values, o.key, slot):
            self._new_slots(o, slot)
        touched = np.zeros(e.used, np.bool_)
        a = e.arrays
        kernel.learn(
            *(o.key.size, slot, o.value, o.chain, o.group, normal, a["alarmed_ns"], batch.closed_ns),
            *(a["histogram"], a["seen"], a["middle"], e.residual, e.absolute, touched),
        )
        self._tables()
        kernel.refresh(
            *(np.flatnonzero(touched), a["histogram"], a["seen"], a["group"], self.residual_table, self.config.shrink),
            *(a["middle"], a["typical"], a["table"]),
        )

    def _new_slots(self, o: Observations, slot: I32) -> None:
        """Slots for elements never learned before, and for the pools of their services."""
        e = self.elements
        missing = np.flatnonzero(slot < 0)
        _, first, inverse = np.unique(o.key[missing], return_index=True, return_inverse=True)
        given = np.full(first.size, NONE, np.int32)
        for k in np.argsort(first).tolist():
            i = missing[first[k]]
            near, far = int(o.near[i]), int(o.far[i])
            given[k] = e.add(int(o.key[i]), int(o.group[i]), near, far)
            if far >= 0:
                e.add_pool(0, kernel.INTO, near)
                e.add_pool(2, kernel.OUT_OF, far)
            else:
                e.add_pool(1, kernel.WITHIN, near)
        slot[missing] = given[inverse]
        more = e.arrays["key"].shape[0] - self.window["n"].shape[0]
        if more:
            for name, array in self.window.items():
                self.window[name] = np.concatenate([array, np.zeros((more, self.columns), array.dtype)])

    def evidence(self, finding: np.void) -> dict[str, Any]:
        return {"expected": float(finding["expected"]), "actual": float(finding["actual"])}

    def version(self) -> str:
        return "elements-1"

    def describe_state(self) -> str | None:
        if self.elements.used:
            return None
        return "no chain has waited out its quarantine yet, so nothing is known about any operation or call"

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "elements": self.elements.snapshot(),
            "column": self.column,
            "boundary_ns": self.boundary_ns,
            "window": {name: array[: self.elements.used].copy() for name, array in self.window.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.elements.restore(state["elements"])
        self.column, self.boundary_ns = int(state["column"]), state["boundary_ns"]
        used, size = self.elements.used, self.elements.arrays["key"].shape[0]
        for name, array in state["window"].items():
            self.window[name] = np.zeros((size, self.columns), array.dtype)
            self.window[name][:used] = array
        self._tables()


def build(config: Config, symbols: Symbols) -> Online:
    """The detector as the registry makes it."""
    return Online(config, symbols)
