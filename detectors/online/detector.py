"""Slow elements: operations by their self time, calls by the time between caller and callee, pooled per service and
per instance of it.

How it works. `score` looks surprises up in tables frozen since the last boundary and adds them to the current epoch of
a window per element (`kernels/windows.py`). `advance` judges the windows: an element whose sum is too improbable,
whatever its greatest epoch held, becomes a finding. `learn` adds durations to the histograms (`history.py`) when the
quarantine is over, except where an alarm was about them. `slices.py` looks at flows as a whole, minute by minute.

Keys of elements are packed: `kernels/elements.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.config import Config
from collector_processor.kernels import elements as kernel
from collector_processor.kernels.windows import Windows
from collector_processor.model import (
    FINDING,
    I64,
    NONE,
    Bool,
    ChainBatch,
    Findings,
    Kind,
    Level,
    Symbols,
    all_findings,
    no_findings,
)
from detectors.online.history import FLOW_CHAINS_MIN, History
from detectors.online.slices import Slices
from detectors.protocol import Scores, sampled

NS = 1_000_000_000
CHAIN_NS_MAX = 10e9  # a chain may take hours and yet be late by seconds
PRIOR = (0.6, 20.0, 0.6, 150.0, 0.5, 5.0)  # of surprises; see `windows.teach`
INSTANCES_SHARE = 8  # one in so many slots may be that of an instance: they come and go with every release
GONE_NS = 6 * 3600 * NS  # an instance that was not met for so long leaves its slot to another
POOLS = {kernel.INTO: 0, kernel.WITHIN: 1, kernel.OUT_OF: 2}
# As plain numbers: numpy is ten times slower with members of an enum.
SLOW_OPERATION, FLOW = int(Kind.SLOW_OPERATION), int(Level.FLOW)


class Online:
    """The detector `online`. See the module."""

    name = "online"
    learns_by_epoch = True  # medians move from one epoch to the next, and what is learned is seen from them

    def __init__(self, config: Config, symbols: Symbols) -> None:
        self.config = config.detectors.online
        self.symbols = symbols
        epoch_ns = int(config.engine.epoch_s * NS)
        columns = max(2, round(self.config.window_s / config.engine.epoch_s))
        self.windows = Windows(self.config.elements_max, columns, epoch_ns, PRIOR, self.config.kept, 0.0)
        self.history = History(self.config)
        self.slices = Slices(self.config.slice_s)
        self.pools = np.full((3, config.decode.services_max), NONE, np.int32)
        self.instances = np.full(symbols.instances.limit, NONE, np.int32)
        self.met_ns = np.zeros(symbols.instances.limit, np.int64)  # when a chain through each was closed last
        self.lacking: I64 = np.zeros(0, np.int64)  # instances that want a slot of their own and have none
        self.instances_known = 0  # of the symbols, as of when these were sought
        self.facts: dict[int, tuple[int, int]] = {}  # slow ones and all, of the windows last reported, by slot

    def score(self, batch: ChainBatch) -> Scores:
        if not batch.records:
            return Scores(np.zeros(len(batch)), no_findings())
        config, w, h = self.config, self.windows, self.history
        h.reserve_flows(len(self.symbols.flows))
        nats, findings = np.empty(len(batch)), np.empty(len(batch) * config.findings_max, FINDING)
        found = kernel.score(
            *(*self._columns(batch), batch.instance),
            *(h.flow_typical, config.material_share, config.material_ms * 1e6, CHAIN_NS_MAX, w.open()),
            *(w.lookup.keys, w.lookup.values, self.pools, self.instances, h.table, h.usual, h.typical, h.seen),
            config.learn_min,
            *(w.level, w.sums, w.usual, w.counts, w.hits, w.hit_values, w.hit_usual),
            *(config.hit, config.chain_surprise, config.hold, config.findings_max, nats, findings),
        )
        self.slices.observe(batch, nats)
        return Scores(nats, findings[:found])

    def _columns(self, batch: ChainBatch) -> tuple[Any, ...]:
        """What the kernels look at."""
        return (
            *(batch.offsets, batch.event, batch.kind, batch.parent, batch.time_ns, batch.duration, batch.self_time),
            *(batch.flow, batch.start_ns, batch.end_ns, self.symbols.events.column("service")),
        )

    def advance(self, now_ns: int) -> Findings:
        findings = self._window_findings(self.windows.judge(now_ns, self.config.hold, self.config.report))
        self.windows.turn(now_ns)
        slices = self.slices.advance(now_ns)
        return all_findings([findings, slices])

    def _window_findings(self, slots: I64) -> Findings:
        self.facts = {}
        if not slots.size:
            return no_findings()
        w, rows, seen_in = self.windows, np.empty(slots.size, FINDING), np.empty((slots.size, 3), np.int64)
        found = kernel.say_windows(
            *(slots, w.key, w.near, w.far, self.pools[POOLS[kernel.WITHIN]], w.exponents),
            *(w.hits, w.counts, w.hit_values, w.hit_usual, seen_in, rows),
        )
        self.facts = {slot: (slow, count) for slot, slow, count in seen_in[:found].tolist()}
        return rows[:found]

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        batch, normal = sampled(batch, normal)
        self.history.reserve_flows(len(self.symbols.flows))
        new = self._learn(batch, normal, every=True)
        if len(new):
            self._new_slots(new)
            self._learn(batch, normal, every=False)
        self._new_instances(batch)

    def _learn(self, batch: ChainBatch, normal: Bool, *, every: bool) -> I64:
        """Learns, unless elements have no slot and `every` one should; gives those. See `kernels.elements.learn`."""
        w, h = self.windows, self.history
        return kernel.learn(  # type: ignore[no-any-return]
            *(*self._columns(batch)[:-1], batch.closed_ns, self.symbols.events.column("service"), normal, every),
            *(w.lookup.keys, w.lookup.values, w.alarmed_ns, h.histogram, h.seen, h.fresh, h.middle, h.group),
            *(h.typical, h.table, h.usual, h.residual, h.residual_share, self.config.prior, self.config.shrink),
            *(h.flows, FLOW_CHAINS_MIN, h.flow_typical),
        )

    def _new_slots(self, new: I64) -> None:
        """Slots for elements never learned before, and for the pools of their services, in order of appearance."""
        first: dict[int, tuple[int, int, int]] = {}
        for key, *of in new.tolist():
            first.setdefault(key, tuple(of))
        for key, (near, far, group) in first.items():
            self._add(key, near, far, group)
            if far >= 0:
                self._add_pool(kernel.INTO, near)
                self._add_pool(kernel.OUT_OF, far)
            else:
                self._add_pool(kernel.WITHIN, near)

    def _add(self, key: int, near: int, far: int, group: int) -> int:
        slot = self.windows.add(key, near, far)
        if slot >= 0:
            self.history.reserve(slot + 1)
            self.history.group[slot] = group
        return slot

    def _add_pool(self, kind: int, service: int) -> None:
        """A slot for one of the three pools of a service, unless it has one."""
        pool = POOLS[kind]
        if self.pools[pool, service] < 0:
            out_of = kind == kernel.OUT_OF
            self.pools[pool, service] = self._add(
                kind | service, NONE if out_of else service, service if out_of else NONE, 0
            )

    def _new_instances(self, batch: ChainBatch) -> None:
        """Slots for instances of services that have several: new ones, then those of instances that are gone."""
        now_ns = int(batch.closed_ns.max(initial=0))
        self.met_ns[batch.instance] = now_ns
        if self.instances_known != len(self.symbols.instances):
            self._seek_lacking()
        met = self.lacking[np.isin(self.lacking, batch.instance)] if self.lacking.size else self.lacking
        if not met.size:
            return
        having = np.flatnonzero(self.instances != NONE)
        room = max(0, self.config.elements_max // INSTANCES_SHARE - having.size)
        service_of = self.symbols.instances.column("service")
        for instance in met[:room].tolist():
            self.instances[instance] = self._add(kernel.INSTANCE | instance, int(service_of[instance]), NONE, 0)
        gone = having[self.met_ns[having] < now_ns - GONE_NS][: max(0, met.size - room)]
        if gone.size:
            heirs = met[room : room + gone.size]
            slots = self.instances[gone]
            self.windows.hand_over(slots, heirs | kernel.INSTANCE, service_of[heirs], NONE)
            self.instances[gone], self.instances[heirs] = NONE, slots
        self._seek_lacking()

    def _seek_lacking(self) -> None:
        service_of = self.symbols.instances.column("service")
        self.instances_known = service_of.size
        lacks = (self.instances[: service_of.size] == NONE) & (np.bincount(service_of)[service_of] > 1)
        lacks[0] = False  # all those beyond the limit
        self.lacking = np.flatnonzero(lacks)

    def evidence(self, finding: np.void) -> dict[str, Any]:
        said: Any = finding.item()  # in the order of FINDING: to ask for its fields one by one takes much longer
        chain, _, _, level, flow, *_, expected, actual, slot = said
        if level == FLOW:
            text = self.slices.sentence(flow, self.symbols.flows.text[flow])
            return {"text": text} if text else {}
        out: dict[str, Any] = {"expected": expected, "actual": actual}
        if slot >= 0:
            out["history"] = int(self.history.seen[slot]) if slot < self.history.rows else 0
        if slot in self.facts and chain == NONE:
            slow, count = self.facts[slot]
            out |= {"slow": slow, "count": count, "window_s": self.config.window_s}
            out["text"] = self._sentence(said, slow, count)
        return out

    def _sentence(self, said: tuple[Any, ...], slow: int, count: int) -> str:
        """What a window finding says: `Calls into route: 1.9 s on the way, usually 12 ms (38 of 41 in 90 s)`."""
        services, events = self.symbols.services.text, self.symbols.events.text
        _, _, kind, _, _, callee, event, caller, instance, _, expected, actual, _ = said
        operation = events[event] if event != NONE else ""
        way = " on the way"
        if kind == SLOW_OPERATION:
            what, way = f"{f'{operation} in' if operation else 'Operations of'} {services[callee]}", " by themselves"
            if not operation and instance != NONE:
                what += f" on {self.symbols.instances.text[instance]}"
        elif callee == NONE:
            what = f"Calls out of {services[caller]}"
        elif caller == NONE:
            what = f"Calls into {services[callee]}"
        else:
            what = f"Calls from {services[caller]} to {services[callee]} {operation}".rstrip()
        slowness = f"{_seconds(actual)}{way}, usually {_seconds(expected)}"
        return f"{what}: {slowness} ({slow} of {count} in {self.config.window_s:.0f} s)"

    @property
    def overflowed(self) -> int:
        """How often an operation, a call or a service found no window of its own, or one no place in a slice."""
        return self.windows.overflowed + self.slices.overflowed

    def version(self) -> str:
        return "elements-1"

    def describe_state(self) -> str | None:
        if self.windows.used:
            return None
        return "no chain has waited out its quarantine yet, so nothing is known about any operation or call"

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "windows": self.windows.snapshot(),
            "history": self.history.snapshot(self.windows.used),
            "slices": self.slices.snapshot(),
            "facts": [[slot, *counts] for slot, counts in self.facts.items()],
            "met_ns": self.met_ns[: len(self.symbols.instances)].copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.windows.restore(state["windows"])
        self.history.restore(state["history"])
        self.slices.restore(state["slices"])
        self.facts = {int(slot): (int(slow), int(count)) for slot, slow, count in state["facts"]}
        known = len(self.symbols.instances)
        self.met_ns[:known] = state.get("met_ns", self.windows.boundary_ns)  # earlier versions did not note it
        self.pools[:] = self.instances[:] = NONE
        self.instances_known = 0
        for slot, key in enumerate(self.windows.key[: self.windows.used].astype(np.int64).tolist()):
            pool = POOLS.get(key & kernel.KIND)
            if key & kernel.KIND == kernel.INSTANCE:
                self.instances[key & ~kernel.KIND] = slot
            elif pool is not None:
                self.pools[pool, key & ~kernel.KIND] = slot


def _seconds(value: float) -> str:
    """A duration as people say it: `340 ms`, `1.2 s`."""
    return (
        f"{value * 1e3:.2g} ms" if value < 0.0995 else f"{value * 1e3:.0f} ms" if value < 0.9995 else f"{value:.3g} s"
    )


def build(config: Config, symbols: Symbols) -> Online:
    """The detector as the registry makes it."""
    return Online(config, symbols)
