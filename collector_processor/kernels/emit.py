"""Chains leave the chain table: which ones are due, in which order, and their records as ragged columns.

How it works. A chain is due when its deadline has passed; being due depends on engine time alone, so a record that
comes after the deadline is late whether or not anybody has called `collect` in between. `emit` puts a chain's records
in order (`kernels/tree.py`) and writes them depth first, so that the order of arrival leaves no trace in the result;
the rows that it frees go back into the free lists of the table (`kernels/join.py`).
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.closed import enter
from collector_processor.kernels.jit import allocating_helper, allocating_kernel, helper, inlined, kernel
from collector_processor.kernels.join import (
    CELLS_FREE,
    CELLS_OPEN,
    CLOSED_FORGOTTEN,
    CLOSED_GENERATION,
    CLOSED_HELD,
    COMPLETE,
    DUPLICATE_LOGS,
    DUPLICATE_SPANS,
    EVICTED,
    ORPHANS,
    POOL_FREE,
    RECORDS_OPEN,
    TIMEOUT,
    free_chain,
    hash_of,
)
from collector_processor.kernels.table import find, find_many
from collector_processor.kernels.tree import (
    EVENT_BITS,
    EVENT_MASK,
    depth_first,
    link_tree,
    self_times,
    sort_records,
    unite,
)
from collector_processor.kernels.wire import mix


@kernel
def collect(deadlines, top, now, out):
    """Rows of the chains that are due at `now`, into out. Returns how many."""
    n = 0
    for s in range(top):
        if deadlines[s] <= now:
            out[n] = s
            n += 1
    return n


@kernel
def sort_few(due, deadlines, chains, salts, tenant_hash):
    """Sorts a few chains in place by deadline, trace id and tenant. salts, tenant_hash uint64[tenants]."""
    for i in range(1, due.size):
        row = due[i]
        deadline, tenant, lo = deadlines[row], chains[row].tenant, chains[row].lo
        hi = chains[row].hi ^ salts[tenant]
        j = i
        while j > 0:
            other = due[j - 1]
            if deadlines[other] < deadline:
                break
            if deadlines[other] == deadline:
                its_hi = chains[other].hi ^ salts[chains[other].tenant]
                if its_hi < hi or (its_hi == hi and chains[other].lo < lo):
                    break
                if its_hi == hi and chains[other].lo == lo and tenant_hash[chains[other].tenant] <= tenant_hash[tenant]:
                    break
            due[j] = other
            j -= 1
        due[j] = row


@kernel
def set_waits(gaps, seen, seen_min, slack, more, least, most, initial, waits):
    """The quiet time to wait for each root event: `slack` times twice the longest usual gap and `more` ns, within
    bounds; `initial` for one seen less often than `seen_min`. Arrays as in `learn_wait`; waits int64[events]."""
    for e in range(gaps.size):
        wait = min(max(slack * (2.0 * gaps[e] + more), least), most)
        waits[e] = int64(wait if seen[e] >= seen_min else initial)


@inlined
def learn_wait(root, gap, estimate, seen):
    """Longest usual time between two arrivals of a flow, per root event: rises at once half way to a longer gap, sinks
    by 0.2 % a chain. root: event id (-1 skipped), gap ns; estimate float64, seen int64 [events]."""
    if root < 0:
        return
    seen[root] += 1
    if gap > estimate[root]:
        estimate[root] += 0.5 * (gap - estimate[root])
    else:
        estimate[root] += 0.002 * (gap - estimate[root])


@inlined
def path_key(path, flow):
    """What a path is looked up by: its hash within the flow of that content hash."""
    return path ^ (flow | uint64(1))


@kernel
def find_paths(hashes, flow, flow_hash, table_keys, table_ids, keys, path):
    """Fills `keys` with what paths are looked up by, and `path` with their ids, -1 for a new one."""
    for c in range(hashes.size):
        keys[c] = path_key(hashes[c], flow_hash[flow[c]])
    find_many(table_keys, table_ids, keys, path)


@kernel
def fitting(due, first, chains, chains_max, records_max):
    """(end, records, longest chain): of the chains `due` as many from `first` on as a batch holds, at least one."""
    last, records, longest = first, 0, 0
    while last < due.size and last - first < chains_max:
        count = chains[due[last]]["count"]
        if last > first and records + count > records_max:
            break
        records += count
        longest = max(longest, count)
        last += 1
    return last, records, longest


@allocating_kernel
def emit(
    due, evicted, hashes, event_service, salts, age_max, slots, chains, deadlines, pool, cells, closed, state, gaps,
    seen, outlier, flow_of, flow_hash, path_keys, path_ids, chain_int, chain_time, chain_hash, outcome, offsets,
    record_int, record_time, record_float, record_span, record_byte, cell_int, cell_number, cell_hash,
):  # fmt: skip
    """Writes the chains `due` out in that order, forgets them and frees their records.

    hashes uint64[events]: content hash of each event. event_service int32[events]. salts uint64[tenants]. gaps, seen:
    as in `learn_wait`. outlier int64: records of the longest chain. flow_of int32[events], flow_hash uint64[flows], and
    the table of paths by `path_key`: names known so far.

    Out, per chain: chain_int int32[5, n] (tenant, root's row or -1, entry event, flow, path, both -1 when unknown),
    chain_time int64[4, n] (start, end, when it was due, last arrival), chain_hash uint64[4, n] (trace id hi, lo,
    path, sequence), outcome uint8[n] (model.Outcome), offsets int64[n + 1]. Per record: record_int int32[3, m]
    (event, instance, parent row), record_time int64[m], record_float float32[2, m] (duration, self time),
    record_span uint64[m], record_byte uint8[3, m] (kind, status, 1 when the span enters a module). Per attribute
    value: cell_int int32[2, k] (row, key), cell_number float64[k], cell_hash uint64[k]. Returns (records, attribute
    values, chains of unknown path) written. Parked chains must not be among `due`."""
    size = 8
    while size < 2 * outlier:
        size *= 2
    table = np.zeros(size, np.int32)
    room = np.empty((6, outlier), np.int32)
    scratch, parent, first_child, next_sibling, place, walk = room[0], room[1], room[2], room[3], room[4], room[5]
    long_room, alone = np.empty((2, outlier), np.int64), np.empty(outlier, np.float32)
    covered, reach = long_room[0], long_room[1]
    rows, arrival = np.empty(record_time.size, np.int32), np.empty(record_time.size, np.int64)
    list_records(due, chains, pool, rows, arrival)
    listed = 0
    m = 0
    n_cells = 0
    unknown = 0
    offsets[0] = 0
    for c in range(due.size):
        s = due[c]
        n = chains[s].count
        order, times = rows[listed : listed + n], arrival[listed : listed + n]
        listed += n
        total = n
        mask = 7
        while mask + 1 < 2 * n:
            mask = 2 * mask + 1
        sort_records(pool, hashes, order, times, scratch, reach, n)
        n, spans, logs = unite(pool, order, n, table, mask)
        state[DUPLICATE_SPANS] += spans
        state[DUPLICATE_LOGS] += logs
        root, top = link_tree(pool, order, n, table, mask, parent, first_child, next_sibling)
        depth_first(n, top, first_child, next_sibling, parent, scratch, place, walk)
        self_times(pool, order, n, walk, parent, covered, reach, alone)
        path = uint64(1469598103934665603)
        sequence = uint64(1469598103934665603)
        before = -1
        entry = -1
        start = pool[order[0]].time
        finish_time = start
        for j in range(n):
            i = walk[j]
            k = order[i]
            event = int64(pool[k].event & EVENT_MASK)
            kind = (pool[k].event >> EVENT_BITS) & 7
            p = parent[i]
            sequence = mix(sequence, hashes[event])
            finish_time = max(finish_time, pool[k].time + int64(pool[k].duration))
            enters = False
            if kind != 0:
                enters = p < 0 or kind == 3 or kind == 6
                if not enters:
                    enters = event_service[pool[order[p]].event & EVENT_MASK] != event_service[event]
                if enters and event != before:
                    path = mix(path, hashes[event])
                    before = event
                if entry < 0:
                    entry = event
            record_int[0, m + j] = event
            record_int[1, m + j] = pool[k].instance
            record_int[2, m + j] = m + place[p] if p >= 0 else -1
            record_time[m + j] = pool[k].time
            record_float[0, m + j] = pool[k].duration
            record_float[1, m + j] = alone[i]
            record_span[m + j] = pool[k].span
            record_byte[0, m + j] = kind
            record_byte[1, m + j] = pool[k].event >> (EVENT_BITS + 3)
            record_byte[2, m + j] = enters
            v = pool[k].cells
            while v >= 0:
                cell_int[0, n_cells] = m + j
                cell_int[1, n_cells] = cells[v].key
                cell_number[n_cells] = cells[v].number
                cell_hash[n_cells] = cells[v].hash
                n_cells += 1
                v = cells[v].next
        if root >= 0:
            entry = int64(pool[order[root]].event & EVENT_MASK)
        elif entry < 0:
            entry = int64(pool[order[0]].event & EVENT_MASK)
        path = mix(path, uint64(entry >= 0))
        flow = flow_of[entry]
        chain_int[0, c] = chains[s].tenant
        chain_int[1, c] = m + place[root] if root >= 0 else -1
        chain_int[2, c] = entry
        chain_int[3, c] = flow
        chain_int[4, c] = find(path_keys, path_ids, path_key(path, flow_hash[flow])) if flow >= 0 else -1
        unknown += chain_int[4, c] < 0
        chain_time[0, c] = start
        chain_time[1, c] = finish_time
        chain_time[2, c] = deadlines[s]
        chain_time[3, c] = chains[s].last
        chain_hash[0, c] = chains[s].hi ^ salts[chains[s].tenant]
        chain_hash[1, c] = chains[s].lo
        chain_hash[2, c] = path
        chain_hash[3, c] = sequence
        in_time = chains[s].root >= 0 and deadlines[s] < chains[s].opened + age_max
        outcome[c] = EVICTED if evicted else (COMPLETE if in_time else TIMEOUT)
        learn_wait(chains[s].root, chains[s].gap, gaps, seen)
        m += n
        offsets[c + 1] = m
        h = hash_of(state, chains[s].hi, chains[s].lo)
        entered = enter(closed, state[CLOSED_HELD], state[CLOSED_GENERATION], h)
        state[CLOSED_HELD] += entered
        state[CLOSED_FORGOTTEN] += 1 - entered
        free_records(pool, cells, state, chains[s].head, total)
        free_chain(slots, chains, deadlines, state, s)
    return m, n_cells, unknown


@allocating_helper
def list_records(due, chains, pool, rows, times):
    """The records of each of `due`, one chain after the other: their rows in the pool and their times.

    A chain's list leads from record to record, which mostly lie in no cache: lists are followed side by side, so that
    the processor waits for many at once. They run from the last arrival to the first, and that is nearly sorted
    backwards."""
    at, end, begin = np.empty(due.size, np.int32), np.empty(due.size, np.int64), 0
    for c in range(due.size):
        at[c] = chains[due[c]].head
        begin += chains[due[c]].count
        end[c] = begin
    left = due.size
    while left:
        left = 0
        for c in range(due.size):
            k = at[c]
            if k >= 0:
                end[c] -= 1
                rows[end[c]] = k
                times[end[c]] = pool[k].time
                at[c] = pool[k].next
                left += 1


@helper
def free_records(pool, cells, state, head, n):
    """Puts a chain's list of n records, and their attribute values, back into the free lists."""
    if head < 0:
        return
    k = head
    while True:
        v = pool[k].cells
        while v >= 0:
            after = cells[v].next
            cells[v].next = state[CELLS_FREE]
            state[CELLS_FREE] = v
            state[CELLS_OPEN] -= 1
            v = after
        if pool[k].next < 0:
            break
        k = pool[k].next
    pool[k].next = state[POOL_FREE]
    state[POOL_FREE] = head
    state[RECORDS_OPEN] -= n


@kernel
def drop_parked(due, slots, chains, deadlines, pool, cells, state):
    """Takes the parked chains out of `due` (in place): their logs are orphans. Returns the number of chains that
    stay."""
    kept = 0
    for c in range(due.size):
        s = due[c]
        if chains[s].parked:
            state[ORPHANS] += chains[s].count
            free_records(pool, cells, state, chains[s].head, chains[s].count)
            free_chain(slots, chains, deadlines, state, s)
        else:
            due[kept] = s
            kept += 1
    return kept
