"""Kernels over bags: the distinct events of a chain with a level each, ascending by event; and over attribute values.

How it works. A level is 1 + the half-octave of a count (1, 2, 3, 4-5, 6-7, 8-11, ...: 1, 3, 4, 5, 6, 7, ...), so that
one round more of a long loop makes no other bag. Two bags differ by the weighted sum of differences of levels. Divided
by the weighted sum of the greater levels that is Bray and Curtis' distance; divided by its root, as here, neither short
chains nor long ones are far apart by nature, for independent deviations add up like the root.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, uint64

from collector_processor.kernels.wire import finish, mix


@njit(cache=True, nogil=True)
def bag(events):
    """(distinct events ascending, level of each) of one chain's events."""
    ordered = np.sort(events)
    out = np.empty(ordered.size, np.int32)
    level = np.empty(ordered.size, np.uint8)
    n = 0
    i = 0
    while i < ordered.size:
        j = i
        while j < ordered.size and ordered[j] == ordered[i]:
            j += 1
        out[n] = ordered[i]
        level[n] = min(255, 1 + int(2.0 * math.log2(float(j - i))))
        n += 1
        i = j
    return out[:n], level[:n]


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def count_events(rows, event, start, length, seen_in):
    """Adds 1 to `seen_in` of each event of each chain's row."""
    for c in range(rows.size):
        for k in range(start[rows[c]], start[rows[c]] + length[rows[c]]):
            seen_in[event[k]] += 1.0


@njit(cache=True, nogil=True)
def slot_of(keys, key):
    """Index of `key` in an open-addressing table, or of the empty slot where it would go."""
    mask = uint64(keys.size - 1)
    i = finish(key) & mask
    while keys[i] != 0 and keys[i] != key:
        i = (i + uint64(1)) & mask
    return i


@njit(inline="always")
def field_key(event, attribute):
    """Key of an attribute of an event; never 0."""
    return (uint64(event) << uint64(8) | uint64(attribute)) + uint64(1)


@njit(inline="always")
def value_key(field, value):
    """Key of a value of that attribute; never 0."""
    return mix(field, value) | uint64(1)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def count_new(flow, normal, worst, chains, with_new, memory):
    """Per flow, decaying: normal chains, and those with a new value (`worst` >= 0)."""
    for c in range(flow.size):
        if normal[c]:
            f = flow[c]
            chains[f] = chains[f] * (1.0 - 1.0 / memory) + 1.0
            with_new[f] = with_new[f] * (1.0 - 1.0 / memory) + (1.0 if worst[c] >= 0 else 0.0)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def rehash(keys, count, fresh, new_keys, new_count, new_fresh):
    """Enters the fields of one table in a larger one."""
    for i in range(keys.size):
        if keys[i] != 0:
            j = slot_of(new_keys, keys[i])
            new_keys[j] = keys[i]
            new_count[j] = count[i]
            new_fresh[j] = fresh[i]


@njit(cache=True, nogil=True)
def rehash_set(keys, new_keys):
    """Enters the keys of one set in a larger one."""
    for i in range(keys.size):
        if keys[i] != 0:
            new_keys[slot_of(new_keys, keys[i])] = keys[i]
