"""Records -> chains: the open chains of all tenants, when each is complete, and their columns once they are.

How it works. The kernels (kernels/join.py) keep chains and records in arrays; this class owns the arrays, makes room
before each payload, decides who is evicted when there is none, learns how long each flow has to be waited for, and
names paths and flows on first sight. The arrays are as large as the limits allow, but memory is taken only for what has
ever been used.

Completion: `deadline = last arrival + wait` once the root was seen, `+ idle` while it was not, and never more than the
greatest age after the first arrival. Waits are per root operation and change only in `learn` (at an epoch's end), so
which chain is closed when depends on arrival times alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.config import JoinConfig
from collector_processor.join.closed import Closed
from collector_processor.kernels import join as kernel
from collector_processor.kernels.emit import collect, drop_parked, emit, find_paths, fitting, set_waits, sort_few
from collector_processor.kernels.table import LookupTable, find_many
from collector_processor.model import (
    I32,
    NONE,
    U64,
    ChainBatch,
    RecordBatch,
    Signal,
    Symbols,
    content_hash,
)

SECOND = 1_000_000_000
BATCH_CHAINS = 4096  # chains of one ChainBatch at the most
BATCH_RECORDS = 1 << 18
FEW = 64  # chains that insertion sorts faster than numpy does
LEARNED_AFTER = 200  # chains of a flow before its own wait counts
EVICT_SHARE = 0.01  # chains that go at once when a limit is reached
DEFAULT_TENANT = "default"
TABLES = (
    (kernel.CHAINS_TOP, kernel.CHAINS_FREE),
    (kernel.POOL_TOP, kernel.POOL_FREE),
    (kernel.CELLS_TOP, kernel.CELLS_FREE),
)
LOGS = Signal.LOGS  # looking up a member of an enum takes longer than comparing with it


class Joiner:
    """Open chains. `append` and `close` are pure functions of the state and their arguments."""

    def __init__(self, config: JoinConfig, symbols: Symbols, attributes: tuple[str, ...], seed: int = 0) -> None:
        """attributes: the keys that cells of a RecordBatch index (`Decoder.attributes`), business keys first. seed: a
        secret that keeps tenants' trace ids apart and the table of chains even, whatever ids senders choose."""
        self.config = config
        self.symbols = symbols
        self.evicted: dict[str, int] = {}
        self._n_business = len(config.business_keys)
        self._step = max(1, min(config.chains_max, config.records_max) // 4)  # a request may be larger than the room
        wanted = {name: index for index, name in enumerate(config.attributes)}
        self._attribute_of = np.array([wanted.get(name, NONE) for name in attributes] + [NONE], np.int32)
        self._limits = np.array(
            [config.idle_s * SECOND, config.age_max_s * SECOND, config.chain_records_max], np.float64
        ).astype(np.int64)
        self._chains = kernel.rows_of(kernel.CHAIN, config.chains_max)
        self._deadlines = np.empty(config.chains_max, np.int64)
        self._pool = kernel.rows_of(kernel.RECORD, config.records_max)
        self._cells = kernel.rows_of(kernel.CELL, config.records_max if config.attributes else 1)
        self._slots = np.zeros(4096, np.int32)
        self._room = 0  # so many records fit for certain, each with a chain of its own; what is closed since is more
        self._closed = Closed(config.closed_remembered_max, int(config.closed_remembered_s * SECOND))
        self._by_key = kernel.rows_of(kernel.KEY, config.chains_max)
        self._state = np.zeros(kernel.STATE, np.int64)
        self._seed = seed
        self._state[kernel.CLOSED_GENERATION] = self._closed.generation
        self._state[kernel.SEED] = np.array(seed, np.uint64).astype(np.int64)
        self._state[[kernel.CHAINS_FREE, kernel.POOL_FREE, kernel.CELLS_FREE]] = -1
        self._salts = np.zeros(0, np.uint64)
        events = symbols.events.limit
        self._waits = np.full(events, int(config.wait_initial_s * SECOND), np.int64)
        self._gap = np.zeros(events, np.float64)
        self._seen = np.zeros(events, np.int64)
        self._slack = 1.0  # grows while records come late
        self._late_before = 0
        self._closed_before = 0
        self._closed_chains = 0
        self._path_keys = LookupTable(4 * symbols.paths.limit)
        self._flow_of = np.full(events, NONE, np.int32)

    # -- what is open ------------------------------------------------------------------------------------------------

    @property
    def open_chains(self) -> int:
        """Chains in the table, without logs that wait for a business key."""
        return int(self._state[kernel.CHAINS_OPEN] - self._state[kernel.PARKED_OPEN])

    @property
    def open_records(self) -> int:
        """Records held, waiting logs among them."""
        return int(self._state[kernel.RECORDS_OPEN])

    def counters(self) -> dict[str, int]:
        """Totals since the start. Each record is in a closed chain, open, late, an orphan, a copy, or over its
        limit."""
        state = self._state
        return {
            "late_spans": int(state[kernel.LATE_SPANS]),
            "late_logs": int(state[kernel.LATE_LOGS]),
            "oversize": int(state[kernel.OVERSIZE]),
            "joined_trace": int(state[kernel.JOINED_TRACE]),
            "joined_business_key": int(state[kernel.JOINED_KEY]),
            "orphans": int(state[kernel.ORPHANS]),
            "duplicate_spans": int(state[kernel.DUPLICATE_SPANS]),
            "duplicate_logs": int(state[kernel.DUPLICATE_LOGS]),
            "cells_dropped": int(state[kernel.CELLS_DROPPED]),
            "closed_forgotten": int(state[kernel.CLOSED_FORGOTTEN]) + self._closed.forgotten,
        }

    # -- records in --------------------------------------------------------------------------------------------------

    def append(self, batch: RecordBatch, now_ns: int) -> list[ChainBatch]:
        """Adds a payload's records. Returns the chains that went to make room: due ones first, else evicted ones."""
        gone: list[ChainBatch] = []
        step, n = self._step, len(batch.rows)
        for first in range(0, n, step):
            part = batch if n <= step else batch.part(first, first + step)
            size = len(part.rows)
            if size > self._room:
                gone += self._make_room(size, now_ns)
            self._room -= size
            if part.tenant >= self._salts.size:
                self._draw_salts(part.tenant)
            kernel.append(
                part.rows,
                size,
                part.signal == LOGS,
                part.tenant,
                self._salts,
                now_ns,
                part.cell_row,
                part.cell_key,
                part.cell_number,
                part.cell_hash,
                self._n_business,
                self._attribute_of,
                self._slots,
                self._chains,
                self._deadlines,
                self._pool,
                self._cells,
                self._closed.table,
                self._by_key,
                self._waits,
                self._limits,
                self._state,
            )
        return gone

    def _draw_salts(self, tenant: int) -> None:
        """Settles what each tenant up to this one adds to the keys of its chains."""
        for name in self.symbols.tenants.text[self._salts.size : tenant + 1]:
            salt = 0 if name == DEFAULT_TENANT else content_hash("salt", self._seed, name)
            self._salts = np.append(self._salts, np.uint64(salt))

    def _make_room(self, n: int, now_ns: int) -> list[ChainBatch]:
        """Sees to it that n chains and n records fit."""
        chains = self._state.item(kernel.CHAINS_OPEN)
        if 2 * (chains + n) > self._slots.size:
            need = 4 * (chains + n)
            self._slots = np.zeros(1 << (need - 1).bit_length(), np.int32)
            kernel.rebuild_slots(self._slots, self._chains, self._deadlines, self._state)
        gone: list[ChainBatch] = []
        if self._left() < n:
            gone = self.close(now_ns)
            while self._left() < n and self._state[kernel.CHAINS_OPEN]:
                gone += self._evict(n, now_ns)
        self._room = min(self._left(), self._slots.size // 2 - self._state.item(kernel.CHAINS_OPEN))
        return gone

    def _left(self) -> int:
        """How many more chains of one record each the limits allow."""
        chains, records = self._state.item(kernel.CHAINS_OPEN), self._state.item(kernel.RECORDS_OPEN)
        return min(self.config.chains_max - chains, self.config.records_max - records)

    def _evict(self, n: int, now_ns: int) -> list[ChainBatch]:
        """Closes chains of the tenant that holds most records, those longest without an arrival first."""
        open_rows = np.flatnonzero(self._deadlines[: self._state[kernel.CHAINS_TOP]] != kernel.FREE).astype(np.int32)
        open_chains = self._chains[open_rows]
        held = np.bincount(open_chains["tenant"], weights=open_chains["count"])
        candidates = open_rows[open_chains["tenant"] == int(held.argmax())]
        order = np.lexsort((*self._keys(candidates), self._chains["last"][candidates]))
        go = candidates[order[: max(n, int(EVICT_SHARE * len(open_rows)))]]
        reason = "chains" if self._state[kernel.CHAINS_OPEN] + n > self.config.chains_max else "records"
        self.evicted[reason] = self.evicted.get(reason, 0) + len(go)
        self._deadlines[go] = now_ns
        return self._emit(go, evicted=True)

    # -- chains out --------------------------------------------------------------------------------------------------

    def close(self, now_ns: int) -> list[ChainBatch]:
        """The chains due at `now_ns`, in the order in which they became due (ties by key)."""
        top = self._state.item(kernel.CHAINS_TOP)
        due = np.empty(top, np.int32)
        due = due[: collect(self._deadlines, top, now_ns, due)]
        return self._emit(due, evicted=False) if due.size else []

    def _keys(self, rows: I32) -> tuple[U64, U64, U64]:
        """What chains with the same time are ordered by, the last first: trace id, then tenant; never the seed."""
        chains = self._chains[rows]
        tenant = chains["tenant"]
        if rows.size:
            self._draw_salts(int(tenant.max()))
        return self.symbols.tenants.hash[tenant], chains["lo"], chains["hi"] ^ self._salts[tenant]

    def next_deadline(self) -> int | None:
        """The latest deadline of an open chain, None when none is open: by then all of them are due."""
        deadlines = self._deadlines[: self._state[kernel.CHAINS_TOP]]
        deadlines = deadlines[deadlines != kernel.FREE]
        return int(deadlines.max()) if deadlines.size else None

    def is_due(self, now_ns: int) -> bool:
        """Whether an open chain is due at `now_ns`."""
        return bool((self._deadlines[: self._state[kernel.CHAINS_TOP]] <= now_ns).any())

    def _emit(self, due: I32, evicted: bool) -> list[ChainBatch]:
        due = due[: drop_parked(due, self._slots, self._chains, self._deadlines, self._pool, self._cells, self._state)]
        if self._salts.size < len(self.symbols.tenants):
            self._draw_salts(len(self.symbols.tenants) - 1)
        if due.size <= FEW:
            sort_few(due, self._deadlines, self._chains, self._salts, self.symbols.tenants.hash)
        else:
            due = due[np.lexsort((*self._keys(due), self._deadlines[due]))]
        batches = self._emit_batches(due, evicted)
        if not self._state.item(kernel.CHAINS_OPEN):
            self._begin_at_the_front()
        return batches

    def _emit_batches(self, due: I32, evicted: bool) -> list[ChainBatch]:
        batches = []
        first = 0
        while first < due.size:
            last, records, longest = fitting(due, first, self._chains, BATCH_CHAINS, BATCH_RECORDS)
            batches.append(self._emit_batch(due[first:last], records, longest, evicted))
            first = last
        return batches

    def _begin_at_the_front(self) -> None:
        """Nothing is open: which rows were used by whom is forgotten, so that a peak does not make later looks long,
        and the state does not depend on how often somebody looked."""
        for top, free in TABLES:
            self._state[top], self._state[free] = 0, -1

    def _emit_batch(self, due: I32, records: int, longest: int, evicted: bool) -> ChainBatch:
        symbols, table = self.symbols, self._path_keys
        n, cells = due.size, self._state.item(kernel.CELLS_OPEN)
        chain_int, chain_time, chain_hash = (
            np.empty((5, n), np.int32),
            np.empty((4, n), np.int64),
            np.empty((4, n), np.uint64),
        )
        outcome, offsets = np.empty(n, np.uint8), np.empty(n + 1, np.int64)
        record_int, record_time = np.empty((3, records), np.int32), np.empty(records, np.int64)
        record_float, record_span = np.empty((2, records), np.float32), np.empty(records, np.uint64)
        record_byte = np.empty((3, records), np.uint8)
        cell_int, cell_number = np.empty((2, cells), np.int32), np.empty(cells, np.float64)
        cell_hash = np.empty(cells, np.uint64)
        self._closed.reserve(self._state.item(kernel.CLOSED_HELD), n)
        m, k, unknown = emit(
            *(due, evicted, symbols.events.hash, symbols.events.column("service"), self._salts, self._limits[1]),
            *(self._slots, self._chains, self._deadlines, self._pool, self._cells, self._closed.table),
            *(self._state, self._gap, self._seen, max(1, longest)),
            *(self._flow_of, symbols.flows.hash, table.keys, table.values),
            *(chain_int, chain_time, chain_hash, outcome, offsets),
            *(record_int, record_time, record_float, record_span, record_byte, cell_int, cell_number, cell_hash),
        )
        self._closed_chains += n
        if k < cells:  # others stay open; a batch may be kept for long, and need not hold their room
            cell_int, cell_number, cell_hash = cell_int[:, :k].copy(), cell_number[:k].copy(), cell_hash[:k].copy()
        tenant, root, entry, flow, path = chain_int
        trace_hi, trace_lo, path_hash, sequence = chain_hash
        start_ns, end_ns, closed_ns, arrived_ns = chain_time
        event, instance, parent = record_int[:, :m]
        duration, self_time = record_float[:, :m]
        kind, status, enters = record_byte[:, :m]
        batch = ChainBatch(
            symbols=symbols,
            tenant=tenant,
            trace_hi=trace_hi,
            trace_lo=trace_lo,
            flow=flow,
            path=path,
            sequence=sequence,
            start_ns=start_ns,
            end_ns=end_ns,
            closed_ns=closed_ns,
            arrived_ns=arrived_ns,
            outcome=outcome,
            root=root,
            offsets=offsets,
            event=event,
            instance=instance,
            parent=parent,
            time_ns=record_time[:m],
            duration=duration,
            self_time=self_time,
            span_id=record_span[:m],
            kind=kind,
            status=status,
            enters=enters.view(np.bool_),
            cell_record=cell_int[0],
            cell_key=cell_int[1],
            cell_number=cell_number,
            cell_hash=cell_hash,
        )
        if unknown:
            self._name_flows(batch, entry)
            self._name_paths(batch, path_hash)
        return batch

    # -- names on first sight ----------------------------------------------------------------------------------------

    def _name_flows(self, batch: ChainBatch, entry: I32) -> None:
        """Fills batch.flow with the flows of chains that begin with the operations `entry`."""
        symbols = self.symbols
        services = symbols.events.column("service")
        for row in np.flatnonzero(batch.flow < 0).tolist():
            event = int(entry[row])
            if self._flow_of[event] >= 0:
                continue
            text = f"{symbols.services.text[services[event]]} {symbols.events.text[event]}"
            key = content_hash("flow", int(symbols.events.hash[event]))
            self._flow_of[event] = symbols.flows.add(key, text, tenant=int(batch.tenant[row]), event=event)
        batch.flow[:] = self._flow_of[entry]

    def _name_paths(self, batch: ChainBatch, hashes: U64) -> None:
        """Fills batch.path; a path is interned within its flow."""
        table, keys = self._path_keys, np.empty_like(hashes)
        find_paths(hashes, batch.flow, self.symbols.flows.hash, table.keys, table.values, keys, batch.path)
        paths = self.symbols.paths
        texts = self.symbols.events.text
        first: dict[int, int] = {}
        for chain in np.flatnonzero(batch.path == NONE).tolist():
            first.setdefault(int(keys[chain]), chain)
        for key, chain in first.items():
            rows = slice(int(batch.offsets[chain]), int(batch.offsets[chain + 1]))
            events = batch.event[rows][batch.enters[rows]]
            steps = tuple(events[np.flatnonzero(np.diff(events, prepend=NONE))].tolist())
            shown = " > ".join(texts[step] for step in steps[:12]) + (" > …" if len(steps) > 12 else "")
            path = paths.add(key, shown, flow=int(batch.flow[chain]))
            if path == len(self.symbols.path_steps):
                self.symbols.path_steps.append(steps)
            table.put(key, path)
        find_many(table.keys, table.values, keys, batch.path)

    # -- at an epoch's end -------------------------------------------------------------------------------------------

    def forget(self, now_ns: int) -> None:
        """Forgets chains that were closed long ago."""
        self._state[kernel.CLOSED_HELD] = self._closed.turn(self._state.item(kernel.CLOSED_HELD), now_ns)
        self._state[kernel.CLOSED_GENERATION] = self._closed.generation

    def learn(self) -> None:
        """Takes over what the epoch has taught about waiting: twice the longest usual gap of the flow, more while more
        than one record in a thousand chains comes late."""
        late = self._state.item(kernel.LATE_SPANS) + self._state.item(kernel.LATE_LOGS)
        closed = self._closed_chains - self._closed_before
        if not closed and late == self._late_before:
            return
        if late - self._late_before > 0.001 * closed:
            self._slack = min(8.0, self._slack * 1.5)
        else:
            self._slack = max(1.0, self._slack * 0.99)
        self._late_before, self._closed_before = late, self._closed_chains
        known = len(self.symbols.events)
        least, most = self.config.wait_min_s * SECOND, self.config.wait_max_s * SECOND
        initial = min(most, self._slack * self.config.wait_initial_s * SECOND)
        set_waits(
            *(self._gap[:known], self._seen, LEARNED_AFTER, self._slack, 0.5 * SECOND),
            *(float(least), float(most), float(initial), self._waits),
        )
        if self._waits.item(-1) != int(initial):
            self._waits[known:] = int(initial)

    # -- snapshot ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything as arrays; only rows that were ever used."""
        top, pool, cells = (int(self._state[k]) for k in (kernel.CHAINS_TOP, kernel.POOL_TOP, kernel.CELLS_TOP))
        known = len(self.symbols.events)
        keyed = np.flatnonzero(self._by_key[:, 0])
        return {
            "version": 3,
            "state": self._state.copy(),
            "chains": self._chains[:top].view(np.uint8).copy(),
            "deadlines": self._deadlines[:top].copy(),
            "pool": self._pool[:pool].view(np.uint8).copy(),
            "cells": self._cells[:cells].view(np.uint8).copy(),
            "closed": self._closed.snapshot(),
            "by_key_rows": keyed,
            "by_key": self._by_key[keyed],
            "waits": self._waits[:known].copy(),
            "gap": self._gap[:known].copy(),
            "seen": self._seen[:known].copy(),
            "waits_rest": int(self._waits[-1]),
            "slack": self._slack,
            "late_before": self._late_before,
            "closed_before": self._closed_before,
            "closed_chains": self._closed_chains,
            "evicted": dict(self.evicted),
            "flow_of": self._flow_of[:known].copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot.

        Raises:
            ValueError: a snapshot of another version, or of larger limits than the present config's."""
        if state["version"] != 3:
            raise ValueError(f"join snapshot version {state['version']} is not 3")
        chains = np.array(state["chains"], np.uint8).view(kernel.CHAIN)
        pool = np.array(state["pool"], np.uint8).view(kernel.RECORD)
        cells = np.array(state["cells"], np.uint8).view(kernel.CELL)
        if chains.size > self._chains.size or pool.size > self._pool.size or cells.size > self._cells.size:
            raise ValueError("join snapshot holds more than the configured limits")
        self._state = np.array(state["state"], np.int64)
        self._chains[: chains.size] = chains
        self._deadlines[: chains.size] = state["deadlines"]
        self._pool[: pool.size] = pool
        self._cells[: cells.size] = cells
        self._closed.restore(state["closed"])
        self._by_key[:] = 0
        self._by_key[state["by_key_rows"]] = state["by_key"]
        known = len(state["waits"])
        self._waits[:] = state["waits_rest"]
        self._waits[:known] = state["waits"]
        self._gap[:known] = state["gap"]
        self._seen[:known] = state["seen"]
        self._flow_of[:known] = state["flow_of"]
        self._slack = float(state["slack"])
        self._late_before = int(state["late_before"])
        self._closed_before = int(state["closed_before"])
        self._closed_chains = int(state["closed_chains"])
        self.evicted = {str(k): int(v) for k, v in state["evicted"].items()}
        self._path_keys.clear()
        self._salts = np.zeros(0, np.uint64)
        self._room = 0
        need = 2 * max(2048, int(self._state[kernel.CHAINS_OPEN]))
        self._slots = np.zeros(1 << (need - 1).bit_length(), np.int32)
        kernel.rebuild_slots(self._slots, self._chains, self._deadlines, self._state)
