"""The records of one closed chain as a tree: sorted, copies dropped, linked, walked depth first, self times.

How it works. A chain's records are rows of a pool (`RECORD` of kernels/join.py); here they are an array of such rows,
`order`, sorted by (time, logs after spans, content of the event, identity). What follows speaks of *positions* in that
order. The caller owns all arrays, at least as long as the chain has records, so that one set serves a whole batch.

`pool[k].event` holds the event id in its lowest EVENT_BITS bits, above them three bits of span kind (0: a log).
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.jit import inlined, kernel
from collector_processor.kernels.wire import finish

EVENT_BITS = 21
EVENT_MASK = (1 << EVENT_BITS) - 1


@inlined
def less(pool, hashes, a, b):
    """Whether record a stands before record b: by time, spans before logs, event content, identity."""
    if pool[a].time != pool[b].time:
        return pool[a].time < pool[b].time
    ea, eb = pool[a].event, pool[b].event
    log_a, log_b = ((ea >> EVENT_BITS) & 7) == 0, ((eb >> EVENT_BITS) & 7) == 0
    if log_a != log_b:
        return log_b
    ha, hb = hashes[ea & EVENT_MASK], hashes[eb & EVENT_MASK]
    if ha != hb:
        return ha < hb
    if pool[a].span != pool[b].span:
        return pool[a].span < pool[b].span
    if pool[a].parent != pool[b].parent:
        return pool[a].parent < pool[b].parent
    return pool[a].duration < pool[b].duration


@kernel
def sort_records(pool, hashes, order, times, scratch, scratch_times, n):
    """Sorts order[:n] (rows of the pool) and times[:n] in place: insertion sort while short, else merges of sorted
    runs.

    Times stand beside the rows and are compared here; a call per comparison would cost more than the comparison."""
    run = 16
    for lo in range(0, n, run):
        for i in range(lo + 1, min(lo + run, n)):
            time = times[i]
            row = order[i]
            j = i
            while j > lo and times[j - 1] >= time:
                if times[j - 1] == time and not less(pool, hashes, row, order[j - 1]):
                    break
                times[j] = times[j - 1]
                order[j] = order[j - 1]
                j -= 1
            times[j] = time
            order[j] = row
    while run < n:
        for lo in range(0, n - run, 2 * run):
            mid = lo + run
            hi = min(lo + 2 * run, n)
            if times[mid - 1] < times[mid]:
                continue  # the two runs already stand in order
            for k in range(lo, mid):
                scratch[k] = order[k]
                scratch_times[k] = times[k]
            i, j, k = lo, mid, lo
            while i < mid and j < hi:
                left, right = scratch_times[i], times[j]
                is_right = right < left
                if right == left:
                    is_right = less(pool, hashes, order[j], scratch[i])
                times[k] = right if is_right else left
                order[k] = order[j] if is_right else scratch[i]
                j += is_right
                i += not is_right
                k += 1
            while i < mid:
                order[k] = scratch[i]
                times[k] = scratch_times[i]
                i += 1
                k += 1
        run *= 2


@inlined
def find_span(table, mask, span, pool, order):
    """Position in `order` of the span with this id, -1 none. table holds position + 1, 0 empty."""
    i = int64(finish(span) & uint64(mask))
    while table[i] != 0:
        if pool[order[table[i] - 1]].span == span:
            return int64(table[i] - 1)
        i = (i + 1) & mask
    return int64(-1)


@kernel
def unite(pool, order, n, table, mask):
    """Drops copies from the sorted order[:n] and enters each span in `table`. Returns how many records stay, how many
    spans were copies, and how many logs."""
    for i in range(mask + 1):
        table[i] = 0
    kept, spans, logs = 0, 0, 0
    for i in range(n):
        k = order[i]
        if (pool[k].event >> EVENT_BITS) & 7 == 0:
            if kept > 0:
                j = order[kept - 1]
                if pool[j].time == pool[k].time and pool[j].event == pool[k].event and pool[j].parent == pool[k].parent:
                    if pool[j].span == pool[k].span:
                        logs += 1
                        continue
            order[kept] = k
            kept += 1
            continue
        at = int64(finish(pool[k].span) & uint64(mask))
        copy = False
        while table[at] != 0:
            j = order[table[at] - 1]
            if pool[j].span == pool[k].span and (pool[j].event ^ pool[k].event) & (7 << EVENT_BITS) == 0:
                copy = True
                break
            at = (at + 1) & mask
        if copy:
            spans += 1
            continue
        order[kept] = k
        kept += 1
        table[at] = kept
    return kept, spans, logs


@kernel
def link_tree(pool, order, n, table, mask, parent, first_child, next_sibling):
    """Fills parent (position or -1) and the child lists, children by position. Returns (root position or -1, first
    top).

    A log goes under the span that emitted it, without one under the root. Tops are linked through next_sibling."""
    root = -1
    for i in range(n):
        first_child[i] = -1
        k = order[i]
        if root < 0 and (pool[k].event >> EVENT_BITS) & 7 != 0 and pool[k].parent == 0:
            root = i
    top = -1
    for i in range(n - 1, -1, -1):
        k = order[i]
        p = int64(-1)
        if (pool[k].event >> EVENT_BITS) & 7 == 0:
            if pool[k].span != 0:
                p = find_span(table, mask, pool[k].span, pool, order)
            if p < 0:
                p = int64(root)
        elif pool[k].parent != 0 and pool[k].parent != pool[k].span:
            p = find_span(table, mask, pool[k].parent, pool, order)
        parent[i] = p
        if p >= 0:
            next_sibling[i] = first_child[p]
            first_child[p] = i
        else:
            next_sibling[i] = top
            top = i
    return root, top


@kernel
def depth_first(n, top, first_child, next_sibling, parent, stack, place, walk):
    """walk[j] = position of the j-th record depth first; place is its inverse. Positions that only a ring of parents
    holds are cut loose and walked last."""
    for i in range(n):
        place[i] = -1
    j = 0
    depth = 0
    start = top
    cut = 0
    while True:
        i = start
        while i >= 0 or depth > 0:
            if i < 0:
                depth -= 1
                i = next_sibling[stack[depth]]
                continue
            if place[i] >= 0:  # a ring that was cut open: its first member is reached again
                i = next_sibling[i]
                continue
            place[i] = j
            walk[j] = i
            j += 1
            stack[depth] = i
            depth += 1
            i = first_child[i]
        if j == n:
            return
        while place[cut] >= 0:
            cut += 1
        parent[cut] = -1
        next_sibling[cut] = -1
        start = cut


@kernel
def self_times(pool, order, n, walk, parent, covered, reach, out):
    """out[i] float32 per position: the span's duration less the union of its children within it.

    Children come by start time in `walk`, so one pass with a `reach` per parent is enough."""
    for i in range(n):
        covered[i] = 0
        reach[i] = pool[order[i]].time
    for j in range(n):
        i = walk[j]
        k = order[i]
        p = parent[i]
        if p < 0 or (pool[k].event >> EVENT_BITS) & 7 == 0:
            continue
        end = pool[order[p]].time + int64(pool[order[p]].duration)
        a = max(pool[k].time, reach[p])
        b = min(pool[k].time + int64(pool[k].duration), end)
        if b > a:
            covered[p] += b - a
            reach[p] = b
    for i in range(n):
        out[i] = max(np.float32(0.0), pool[order[i]].duration - np.float32(covered[i]))
