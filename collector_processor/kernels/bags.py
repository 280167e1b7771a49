"""Kernels over bags: the distinct events of a chain with a level each, ascending by event; and over attribute values.

How it works. A level is 1 + the half-octave of a count (1, 2, 3, 4-5, 6-7, 8-11, ...: 1, 3, 4, 5, 6, 7, ...), so that
one round more of a long loop makes no other bag. Two bags differ by the weighted sum of differences of levels. Divided
by the weighted sum of the greater levels that is Bray and Curtis' distance; divided by its root, as here, neither short
chains nor long ones are far apart by nature, for independent deviations add up like the root.
"""

from __future__ import annotations

import math

import numpy as np
from numba import uint64

from collector_processor.kernels.jit import (
    allocating_helper,
    allocating_kernel,
    expanded,
    helper,
    kernel,
    summing_kernel,
)
from collector_processor.kernels.table import find, put, slot_of
from collector_processor.kernels.wire import finish, mix

EVICTED = 2  # model.Outcome


@allocating_kernel
def bag(events, counted, distinct, level):
    """Fills in the distinct ones of one chain's events, ascending, and the level of each; gives their number. `counted`
    is zero for all, and again after."""
    n = _count(events, counted, distinct)
    distinct[:n].sort()
    for i in range(n):
        level[i] = _level(counted[distinct[i]])
        counted[distinct[i]] = 0
    return n


@kernel
def _count(events, counted, distinct):
    """Counts each of `events` in `counted`, and fills `distinct` with them, each once; gives their number."""
    n = 0
    for event in events:
        if counted[event] == 0:
            distinct[n] = event
            n += 1
        counted[event] += 1
    return n


@helper
def _level(count):
    return min(255, 1 + int(2.0 * math.log2(float(count))))


@kernel
def bag_key(flow, event, level):
    """Key of a bag of a flow, whatever the order of its events; never 0."""
    key = uint64(0)
    for i in range(event.size):
        key += finish(mix(mix(uint64(0), uint64(event[i] + 1)), uint64(level[i])))
    return mix(key, uint64(flow + 1)) | uint64(1)


@kernel
def known_bags(
    first, event, offsets, flow, sequence, counted, distinct, level, bag_keys, bag_rows, table_keys, table_rows, rows
):  # fmt: skip
    """Fills in the rows of chains from `first` on, up to one whose bag is new.

    A chain's row stands in the table under its sequence, else under its bag; what is found by that is entered in the
    table, which has room. Gives the chain whose bag is new, -1 when there is none, and how many sequences were entered.
    `counted` as in `bag`; `distinct` and `level` are scratch of the same size."""
    entered = 0
    for c in range(first, rows.size):
        key = max(sequence[c], uint64(1))
        rows[c] = find(table_keys, table_rows, key)
        if rows[c] >= 0:
            continue
        n = _count(event[offsets[c] : offsets[c + 1]], counted, distinct)
        for i in range(n):
            level[i] = _level(counted[distinct[i]])
            counted[distinct[i]] = 0
        rows[c] = find(bag_keys, bag_rows, bag_key(flow[c], distinct[:n], level[:n]))
        if rows[c] < 0:
            return c, entered
        put(table_keys, table_rows, key, rows[c])
        entered += 1
    return -1, entered


@kernel
def deviations(event, level, pool_event, pool_level, start, length, rows, weight, out):
    """out[r] = deviation of the bag (event, level) from each of `rows`."""
    for r in range(rows.size):
        a = start[rows[r]]
        end = a + length[rows[r]]
        i = 0
        apart = 0.0
        together = 0.0
        while i < event.size or a < end:
            if a >= end or (i < event.size and event[i] < pool_event[a]):
                share = weight[event[i]] * level[i]
                apart += share
                together += share
                i += 1
            elif i >= event.size or pool_event[a] < event[i]:
                share = weight[pool_event[a]] * pool_level[a]
                apart += share
                together += share
                a += 1
            else:
                x = float(level[i])
                y = float(pool_level[a])
                apart += weight[event[i]] * abs(x - y)
                together += weight[event[i]] * max(x, y)
                i += 1
                a += 1
        out[r] = apart / math.sqrt(together) if together > 0.0 else 0.0


@allocating_helper
def compared_rows(row, flow, good, bad, used, most, out):
    """Fills `out` with the known rows of the same flow but `row` itself, the most frequent ones when there are more
    than `most`; gives their number."""
    n = 0
    for r in range(used):
        if flow[r] == flow[row] and good[r] > 0.0 and bad[r] <= good[r] and r != row:
            out[n] = r
            n += 1
    if n > most:
        frequent = out[np.argsort(-good[out[:n]], kind="mergesort")[:most]]
        for i in range(most):
            out[i] = frequent[i]
        n = most
    return n


@allocating_helper
def nearest_rows(row, flow, good, bad, used, most, event, level, start, length, weight, few):
    """The `few` of `compared_rows` whose bags deviate least from that of `row`, the nearest first."""
    rows = np.empty(used, np.int64)
    rows = rows[: compared_rows(row, flow, good, bad, used, most, rows)]
    deviation = np.empty(rows.size)
    bag_of_row = slice(start[row], start[row] + length[row])
    deviations(event[bag_of_row], level[bag_of_row], event, level, start, length, rows, weight, deviation)
    return rows[np.argsort(deviation, kind="mergesort")[:few]]


@helper
def merged(a, a_end, b, b_end, event, level, both, mine, theirs):
    """Fills the events of two bags, ascending, and the level that each has in the one and the other; their number."""
    n = 0
    while a < a_end or b < b_end:
        left = a < a_end and (b >= b_end or event[a] <= event[b])
        right = b < b_end and (a >= a_end or event[b] <= event[a])
        both[n] = event[a] if left else event[b]
        mine[n] = level[a] if left else 0.0
        theirs[n] = level[b] if right else 0.0
        a += left
        b += right
        n += 1
    return n


@allocating_helper
def unembedded(row, rows, event, level, start, length, vector_of, out):
    """Fills `out` with the events that `compare` needs vectors of and that have none; gives their number."""
    size = 0
    for r in rows:
        size = max(size, length[row] + length[r])
    both = np.empty(size, np.int32)
    mine = np.empty(size)
    theirs = np.empty(size)
    found = 0
    for r in rows:
        n = merged(
            start[row], start[row] + length[row], start[r], start[r] + length[r], event, level, both, mine, theirs
        )
        more = 0
        less = 0
        for i in range(n):
            more += theirs[i] == 0.0
            less += mine[i] == 0.0
        if more == 0 or less == 0:
            continue
        for side in (theirs, mine):
            for i in range(n):
                if side[i] == 0.0 and vector_of[both[i]] < 0:
                    new = True
                    for k in range(found):
                        new = new and out[k] != both[i]
                    if new:
                        out[found] = both[i]
                        found += 1
    return found


@summing_kernel
def likeness(vectors, a, b):
    """0-1: how alike two unit vectors are; 0 when one is missing."""
    if a < 0 or b < 0:
        return 0.0
    total = np.float32(0.0)
    for d in range(vectors.shape[1]):
        total += vectors[a, d] * vectors[b, d]
    return min(max(float(total), 0.0), 1.0)


@allocating_helper
def soften(n, both, mine, theirs, vectors, vector_of, cost):
    """Multiplies the cost of an event that only one bag has by how unlike the most similar one is that only the other
    has."""
    near = np.zeros(n)
    for i in range(n):
        if theirs[i] == 0.0:
            for j in range(n):
                if mine[j] == 0.0:
                    alike = likeness(vectors, vector_of[both[i]], vector_of[both[j]])
                    near[i] = max(near[i], alike)
                    near[j] = max(near[j], alike)
    for i in range(n):
        cost[i] *= 1.0 - near[i]


@allocating_helper
def compare(row, other, event, level, start, length, weight, vectors, vector_of):
    """(distance, deviation, event farthest apart, whether `row` has more of it) of two bags; -1 for no event."""
    size = length[row] + length[other]
    both = np.empty(size, np.int32)
    mine = np.empty(size)
    theirs = np.empty(size)
    n = merged(
        start[row], start[row] + length[row], start[other], start[other] + length[other],
        event, level, both, mine, theirs,
    )  # fmt: skip
    cost = np.empty(n)
    total = 0.0
    for i in range(n):
        cost[i] = weight[both[i]] * abs(mine[i] - theirs[i])
        total += weight[both[i]] * max(mine[i], theirs[i])
    if total == 0.0:
        return 0.0, 0.0, -1, True
    soften(n, both, mine, theirs, vectors, vector_of, cost)
    apart = 0.0
    worst = 0
    for i in range(n):
        apart += cost[i]
        if cost[i] > cost[worst]:
            worst = i
    return apart / total, apart / math.sqrt(total), both[worst], mine[worst] > theirs[worst]


@allocating_kernel
def closest(
    row, flow, good, bad, used, most, event, level, start, length, weight, few, vectors, vector_of, lacking
):  # fmt: skip
    """(number of events, filled in `lacking`, that need a vector first; the one of `nearest_rows` that `compare` finds
    least deviating from `row`, -1 when there is none; and what it says of it).

    With no room in `lacking` it does with the vectors that there are.
    """
    rows = nearest_rows(row, flow, good, bad, used, most, event, level, start, length, weight, few)
    best = (1.0, 0.0, -1, True)
    if rows.size == 0:
        return 0, -1, best
    missing = unembedded(row, rows, event, level, start, length, vector_of, lacking) if lacking.size else 0
    at = -1
    for other in rows:
        if missing > 0:
            break
        found = compare(row, other, event, level, start, length, weight, vectors, vector_of)
        if at < 0 or found[1] < best[1]:
            best = found
            at = other
    return missing, at, best


@kernel
def count_events(rows, normal, outcome, event, start, length, seen_in):
    """Adds 1 to `seen_in` of each event of the rows of normal chains that no cap cut short; gives how many they are."""
    counted = 0
    for c in range(rows.size):
        if not normal[c] or outcome[c] == EVICTED:
            continue
        counted += 1
        for k in range(start[rows[c]], start[rows[c]] + length[rows[c]]):
            seen_in[event[k]] += 1.0
    return counted


@expanded
def field_key(event, attribute):
    """Key of an attribute of an event; never 0."""
    return (uint64(event) << uint64(8) | uint64(attribute)) + uint64(1)


@expanded
def value_key(field, value):
    """Key of a value of that attribute; never 0."""
    return mix(field, value) | uint64(1)


@kernel
def score_values(
    chain, event, attribute, value, field_keys, count, fresh, value_keys, count_min, fresh_max, least, worst
):  # fmt: skip
    """Per chain, of its fields with a new value the one where such are rarest: that share, and its cell.

    A field is judged when it was seen `count_min` times and new values are rarer than `fresh_max`.
    """
    for c in range(chain.size):
        key = field_key(event[c], attribute[c])
        f = slot_of(field_keys, key)
        if field_keys[f] == 0 or count[f] < count_min:
            continue
        chance = (fresh[f] + 0.5) / (count[f] + 1.0)
        if chance > fresh_max:
            continue
        v = slot_of(value_keys, value_key(key, value[c]))
        if value_keys[v] == 0 and chance < least[chain[c]]:
            least[chain[c]] = chance
            worst[chain[c]] = c


@kernel
def count_new(flow, normal, worst, chains, with_new, memory):
    """Per flow, decaying: normal chains, and those with a new value (`worst` >= 0)."""
    for c in range(flow.size):
        if normal[c]:
            f = flow[c]
            chains[f] = chains[f] * (1.0 - 1.0 / memory) + 1.0
            with_new[f] = with_new[f] * (1.0 - 1.0 / memory) + (1.0 if worst[c] >= 0 else 0.0)


@kernel
def learn_values(event, attribute, value, field_keys, count, fresh, value_keys, memory, fresh_max, used):
    """Counts values. used = [fields, values]; a table that is half full takes nothing new.

    The values of a field most of whose values are new (an id) are not kept.
    """
    for c in range(event.size):
        key = field_key(event[c], attribute[c])
        f = slot_of(field_keys, key)
        if field_keys[f] == 0:
            if 2 * (used[0] + 1) > field_keys.size:
                continue
            field_keys[f] = key
            used[0] += 1
        count[f] = count[f] * (1.0 - 1.0 / memory) + 1.0
        fresh[f] *= 1.0 - 1.0 / memory
        k = value_key(key, value[c])
        v = slot_of(value_keys, k)
        if value_keys[v] != 0:
            continue
        fresh[f] += 1.0
        closed = count[f] > 50.0 and fresh[f] > fresh_max * count[f]
        if not closed and 2 * (used[1] + 1) <= value_keys.size:
            value_keys[v] = k
            used[1] += 1
