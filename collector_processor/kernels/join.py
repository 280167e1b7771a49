"""The chain table in arrays: records are appended to open chains.

How it works. A chain is a row of `chains` (a structured array); `slots` is an open-addressing table from its key to
that row. Its records are a linked list through `pool`. Freed rows of both are linked into free lists, so memory follows
the number of open chains and not the traffic. A chain takes no record whose time is not before its deadline; how chains
that are due leave the table is told in `kernels/emit.py`.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np
from numba import config, int64, uint64

from collector_processor.kernels.closed import holds
from collector_processor.kernels.decode import (
    END,
    EVENT,
    KIND,
    PARENT,
    RESOURCE,
    SPAN,
    STATUS,
    TIME,
    TRACE_HI,
    TRACE_LO,
)
from collector_processor.kernels.jit import expanded, helper, inlined, kernel
from collector_processor.kernels.tree import (
    EVENT_BITS,
)
from collector_processor.kernels.wire import finish, mix

CHAIN = np.dtype(
    [
        ("hi", np.uint64),  # key: trace id, mixed with the tenant; for parked logs (0, hash of the business key)
        ("lo", np.uint64),
        ("opened", np.int64),  # engine time of the first and of the last record
        ("last", np.int64),
        ("business", np.uint64),  # hash of the last business key seen on a span
        ("head", np.int32),  # first record in the pool, -1 none; next free row of a free one
        ("count", np.int32),
        ("root", np.int32),  # event id of the root span, -1 not seen yet
        ("tenant", np.int32),  # -1 for a free row
        ("gap", np.float32),  # longest time between two arrivals, ns
        ("parked", np.int32),  # 1: logs that wait for a chain with their business key
    ],
    align=True,
)
RECORD = np.dtype(
    [
        ("next", np.int32),
        ("event", np.uint32),  # event id | kind << 21 | status << 24
        ("time", np.int64),
        ("span", np.uint64),
        ("parent", np.uint64),  # of a log: its identity
        ("duration", np.float32),
        ("instance", np.int32),
        ("cells", np.int32),  # first attribute value in `cells`, -1 none
    ],
    align=True,
)
CELL = np.dtype([("next", np.int32), ("key", np.int32), ("number", np.float64), ("hash", np.uint64)], align=True)
KEY = np.dtype((np.uint64, 3))  # of `by_key`, see `append`
HUGE_FROM = 4 << 20  # bytes from which on pages may be huge, as numpy has it
FREE = np.iinfo(np.int64).max  # deadline of a row that holds no chain
COMPLETE, TIMEOUT, EVICTED = 0, 1, 2  # model.Outcome

# Columns of `state` int64[STATE]: what the kernels count and carry from call to call.
CHAINS_TOP = 0  # rows of `chains` ever used
CHAINS_FREE = 1  # head of the free list of chains, -1 empty
POOL_TOP = 2
POOL_FREE = 3
CHAINS_OPEN = 4  # chains in the table, parked ones included
RECORDS_OPEN = 5
PARKED_OPEN = 6
LATE_SPANS = 7
LATE_LOGS = 8
OVERSIZE = 9  # records of a chain that is at its limit
JOINED_TRACE = 10  # logs joined by trace id
JOINED_KEY = 11  # logs joined by business key
ORPHANS = 12  # logs that nothing joins
DUPLICATE_SPANS = 13
CELLS_TOP = 14
CELLS_FREE = 15
CELLS_OPEN = 16
CELLS_DROPPED = 17
DUPLICATE_LOGS = 18
SEED = 19  # of the tables of chains: who sends does not know it, so nobody can choose ids that crowd one place
CLOSED_HELD = 20  # closed chains that are remembered
CLOSED_GENERATION = 21  # in which those that are closed now are entered
CLOSED_FORGOTTEN = 22  # closed chains that were forgotten before their time
STATE = 23


def rows_of(kind: np.dtype[Any], n: int) -> Any:
    """An array for n rows of CHAIN, RECORD, CELL or KEY; zeros, so that no snapshot holds what lay in memory before. It
    has pages of its own, which take memory when they are written: `np.zeros` may be given memory that has been used,
    and fills it. What runs uncompiled reads fields as attributes too."""
    pages = mmap.mmap(-1, max(1, n * kind.itemsize), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if n * kind.itemsize >= HUGE_FROM:
        with contextlib.suppress(AttributeError, OSError):  # of systems that know no huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    rows = np.frombuffer(pages, kind, n)
    return rows.view(np.recarray) if config.DISABLE_JIT and kind.names else rows


@expanded
def hash_of(state, hi, lo):
    """A key's hash, in both tables, that of open and that of closed chains."""
    return finish(mix(mix(uint64(state[SEED]), hi), lo))


@expanded
def home_of(slots, state, hi, lo):
    """Index in `slots` at which the search for a key begins."""
    return hash_of(state, hi, lo) & uint64(slots.size - 1)


@expanded
def find_slot(slots, chains, state, hi, lo):
    """Index in `slots` at which the key stands, or at which it would be entered (slots hold row + 1, 0 empty)."""
    mask = uint64(slots.size - 1)
    i = home_of(slots, state, hi, lo)
    while True:
        s = slots[i]
        if s == 0 or (chains[s - 1].hi == hi and chains[s - 1].lo == lo):
            return int64(i)
        i = (i + uint64(1)) & mask


@helper
def remove_slot(slots, chains, state, at):
    """Takes the entry at `at` out of the table, moving later ones of its run back (no tombstones)."""
    mask = int64(slots.size - 1)
    hole = at
    i = (at + 1) & mask
    while slots[i] != 0:
        home = int64(home_of(slots, state, chains[slots[i] - 1].hi, chains[slots[i] - 1].lo))
        if ((i - home) & mask) >= ((i - hole) & mask):
            slots[hole] = slots[i]
            hole = i
        i = (i + 1) & mask
    slots[hole] = 0


@kernel
def rebuild_slots(slots, chains, deadlines, state):
    """Enters every open chain in an empty table."""
    for s in range(state[CHAINS_TOP]):
        if deadlines[s] != FREE:
            slots[find_slot(slots, chains, state, chains[s].hi, chains[s].lo)] = s + 1


@inlined
def open_chain(slots, chains, deadlines, state, at, hi, lo, tenant, now):
    """A new chain in slot `at`; the caller has made sure that a row is free."""
    s = state[CHAINS_FREE]
    if s >= 0:
        state[CHAINS_FREE] = chains[s].head
    else:
        s = state[CHAINS_TOP]
        state[CHAINS_TOP] += 1
    state[CHAINS_OPEN] += 1
    slots[at] = s + 1
    chains[s].hi = hi
    chains[s].lo = lo
    chains[s].opened = now
    chains[s].last = now
    chains[s].business = 0
    chains[s].head = -1
    chains[s].count = 0
    chains[s].root = -1
    chains[s].tenant = tenant
    chains[s].gap = 0
    chains[s].parked = 0
    return s


@helper
def free_chain(slots, chains, deadlines, state, s):
    """Takes chain s out of the table and its row into the free list; its records are the caller's."""
    remove_slot(slots, chains, state, find_slot(slots, chains, state, chains[s].hi, chains[s].lo))
    state[CHAINS_OPEN] -= 1
    state[PARKED_OPEN] -= chains[s].parked
    chains[s].tenant = -1
    chains[s].head = state[CHAINS_FREE]
    state[CHAINS_FREE] = s
    deadlines[s] = FREE


@expanded
def store(pool, state, chains, s, rows, r):
    """Copies row r to the pool and links it to chain s; the caller has made sure that a record is free."""
    k = state[POOL_FREE]
    if k >= 0:
        state[POOL_FREE] = pool[k].next
    else:
        k = state[POOL_TOP]
        state[POOL_TOP] += 1
    state[RECORDS_OPEN] += 1
    start = int64(rows[r, TIME])
    pool[k].next = chains[s].head
    pool[k].event = np.uint32(
        rows[r, EVENT] | (rows[r, KIND] << uint64(EVENT_BITS)) | (rows[r, STATUS] << uint64(EVENT_BITS + 3))
    )
    pool[k].time = start
    pool[k].span = rows[r, SPAN]
    pool[k].parent = rows[r, PARENT]
    pool[k].duration = np.float32(max(int64(0), int64(rows[r, END]) - start))
    pool[k].instance = np.int32(rows[r, RESOURCE])
    pool[k].cells = -1
    chains[s].head = k
    chains[s].count += 1
    return k


@inlined
def store_cell(cells, pool, state, k, key, number, value):
    """Keeps an attribute value of record k; dropped and counted when there is no room."""
    i = state[CELLS_FREE]
    if i >= 0:
        state[CELLS_FREE] = cells[i].next
    elif state[CELLS_TOP] < cells.size:
        i = state[CELLS_TOP]
        state[CELLS_TOP] += 1
    else:
        state[CELLS_DROPPED] += 1
        return
    state[CELLS_OPEN] += 1
    cells[i].next = pool[k].cells
    cells[i].key = key
    cells[i].number = number
    cells[i].hash = value
    pool[k].cells = i


@kernel
def append(
    rows,
    n,
    is_log,
    tenant,
    salts,
    now,
    cell_row,
    cell_key,
    cell_number,
    cell_hash,
    n_business,
    attribute_of,
    slots,
    chains,
    deadlines,
    pool,
    cells,
    closed,
    by_key,
    waits,
    limits,
    state,
):
    """Appends rows[:n] of one payload to their chains.

    salts uint64[tenants]: what tells tenants apart in the key. closed: the table of kernels/closed.py. cell_*: the
    payload's cells, ascending by row; keys below n_business are business keys, and attribute_of int32[keys] says which
    are kept (-1 not). by_key (uint64[b, 3]: hash, chain key; direct-mapped) finds the chain of a business key. waits
    int64[events]: quiet time per root event. limits int64[3]: idle, greatest age, records a chain. The caller has made
    sure of n free chains and records."""
    c = 0
    salt = salts[tenant]
    idle, age_max, records_max = limits[0], limits[1], limits[2]
    for r in range(n):
        first = c
        while c < cell_row.size and cell_row[c] == r:
            c += 1
        hi = rows[r, TRACE_HI]
        lo = rows[r, TRACE_LO]
        linked = (hi | lo) != 0
        parked = False
        if linked:
            hi ^= salt
        else:
            hi, lo, parked = by_business_key(
                first, c, cell_key, cell_hash, n_business, salt, by_key, slots, chains, deadlines, state, now
            )
            if (hi | lo) == 0:
                state[ORPHANS] += 1
                continue
        at = find_slot(slots, chains, state, hi, lo)
        s = slots[at] - 1
        if (s >= 0 and deadlines[s] <= now) or (s < 0 and not parked and holds(closed, hash_of(state, hi, lo))):
            if is_log:
                state[LATE_LOGS] += 1
            else:
                state[LATE_SPANS] += 1
            continue
        if s < 0:
            s = open_chain(slots, chains, deadlines, state, at, hi, lo, tenant, now)
            if parked:
                chains[s].parked = 1
                state[PARKED_OPEN] += 1
        if chains[s].count >= records_max:
            state[OVERSIZE] += 1
            continue
        gap = now - chains[s].last
        if gap > chains[s].gap:
            chains[s].gap = gap
        chains[s].last = now
        stored = store(pool, state, chains, s, rows, r)
        for k in range(first, c):
            if cell_key[k] >= 0 and attribute_of[cell_key[k]] >= 0:
                store_cell(cells, pool, state, stored, attribute_of[cell_key[k]], cell_number[k], cell_hash[k])
        if is_log:
            if linked:
                state[JOINED_TRACE] += 1
            elif not parked:
                state[JOINED_KEY] += 1
        else:
            if rows[r, PARENT] == 0:
                chains[s].root = np.int32(rows[r, EVENT])
            for k in range(first, c):
                if 0 <= cell_key[k] < n_business and cell_hash[k] != chains[s].business:
                    chains[s].business = cell_hash[k]
                    claim(cell_hash[k], salt, s, by_key, slots, chains, deadlines, pool, state, now)
        wait = waits[chains[s].root] if chains[s].root >= 0 else idle
        deadlines[s] = min(chains[s].opened + age_max, now + wait)


@helper
def by_business_key(first, last, cell_key, cell_hash, n_business, salt, by_key, slots, chains, deadlines, state, now):
    """(hi, lo, parked): key of the open chain that a log without a trace id belongs to; else, where it names a business
    key by attribute, the key under which it waits for such a chain; else zeros."""
    wait_hash = uint64(0)
    for k in range(first, last):
        key = cell_key[k]
        if key >= n_business:
            continue
        h = cell_hash[k] ^ salt
        b = int64(finish(h) % uint64(by_key.shape[0]))
        if by_key[b, 0] == h:
            s = slots[find_slot(slots, chains, state, by_key[b, 1], by_key[b, 2])] - 1
            if s >= 0 and deadlines[s] > now:
                return by_key[b, 1], by_key[b, 2], False
        if wait_hash == 0 or key >= 0:
            wait_hash = h
    if wait_hash == 0:
        return uint64(0), uint64(0), False
    return uint64(0), wait_hash, True


@kernel
def claim(value, salt, s, by_key, slots, chains, deadlines, pool, state, now):
    """Chain s bears business key `value`: later logs find it, and those that were waiting for it are moved to it."""
    h = value ^ salt
    b = int64(finish(h) % uint64(by_key.shape[0]))
    by_key[b, 0] = h
    by_key[b, 1] = chains[s].hi
    by_key[b, 2] = chains[s].lo
    if state[PARKED_OPEN] == 0:
        return
    at = find_slot(slots, chains, state, uint64(0), h)
    w = slots[at] - 1
    if w < 0 or chains[w].parked == 0 or deadlines[w] <= now:
        return
    k = chains[w].head
    while pool[k].next >= 0:
        k = pool[k].next
    pool[k].next = chains[s].head
    chains[s].head = chains[w].head
    chains[s].count += chains[w].count
    state[JOINED_KEY] += chains[w].count
    free_chain(slots, chains, deadlines, state, w)
