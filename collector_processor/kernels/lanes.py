"""Lanes: what happens directly inside a span, as two sequences, its logs and its calls; and an n-gram model of them.

How it works. Whole chains have far too many orders: branches run side by side, and clocks of logs and spans differ.
What one span logs, and what it calls, comes in few. A lane's key is a hash over its events in order (a repeat counts
once), so that one pass over a chain's records finds every lane; only an unseen key is looked at outside. The n-gram
model backs off from (head, last two) over (head, last), (head) and (last) to all events, each level weighted by how
many different events followed its context (Witten and Bell 1991), down to a base distribution that the caller gives.
Only the first level counts occurrences. Another one counts the contexts above it in which an event followed (Kneser and
Ney 1995): to have seen the same thing five thousand times at one place is no reason to think that nothing else ever
comes there, and counted again at every level it would be that reason five times over.
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
from collector_processor.kernels.sequence import collapse
from collector_processor.kernels.table import slot_of
from collector_processor.kernels.wire import mix

LOGS, CALLS = 0, 1  # kinds of lane
TOP = -1  # head of the lane of records that stand inside no span
NO_EVENT = -9
BEGIN, END = -2, -3  # pseudo-events before and after a lane
ORDERS = 5
_ABOVE = (0, 0, 1, 1, 3)  # the order that backs off to each
EVICTED = 2  # model.Outcome
# What the hash of a context of each order begins with: so far apart that no small id makes one equal another.
_SALTS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)


@kernel
def lanes_of(event, parent, kind, offsets, table_keys, table_lanes, digest, last, lane, lane_offsets, unknown):
    """Fills in the lanes of every chain: lane[lane_offsets[c] : lane_offsets[c + 1]], -1 where it is unknown.

    Of the first unknown ones, as many as there is room for, fills `unknown` int64[:, 3] with chain, slot, kind, and
    gives their number. A slot is the row of the head within its chain, or the chain's length for the top. `digest` and
    `last` [slots, 2] are scratch: 0 and NO_EVENT between calls.
    """
    missing = 0
    found = 0
    for c in range(offsets.size - 1):
        lo = offsets[c]
        n = offsets[c + 1] - lo
        top_logs = 0
        top_calls = 0
        for r in range(lo, lo + n):
            s = parent[r] - lo if parent[r] >= lo else n
            k = LOGS if kind[r] == 0 else CALLS
            if s == n:
                top_logs += k == LOGS
                top_calls += k == CALLS
            if last[s, k] != event[r]:
                last[s, k] = event[r]
                digest[s, k] = mix(digest[s, k], uint64(event[r] + 1))
        lane_offsets[c] = found
        for s in range(n + 1):
            if s < n and kind[lo + s] == 0:
                continue
            head = event[lo + s] if s < n else TOP
            for k in range(2):
                key = mix(digest[s, k], uint64(2 * (head + 2) + k)) | uint64(1)
                digest[s, k], last[s, k] = 0, NO_EVENT
                if s == n and (top_calls < 2 if k == CALLS else top_logs < 1):  # a lone root is no lane
                    continue
                i = slot_of(table_keys, key)
                lane[found] = table_lanes[i] if table_keys[i] != 0 else -1
                if table_keys[i] == 0 and missing < len(unknown):
                    unknown[missing, 0] = c
                    unknown[missing, 1] = s
                    unknown[missing, 2] = k
                    missing += 1
                found += 1
    lane_offsets[offsets.size - 1] = found
    return missing


@helper
def key_of(events, head, kind):
    """The table key of a lane, as `lanes_of` makes it."""
    digest = uint64(0)
    last = NO_EVENT
    for e in events:
        if e != last:
            last = e
            digest = mix(digest, uint64(e + 1))
    return mix(digest, uint64(2 * (head + 2) + kind)) | uint64(1)


@allocating_kernel
def lanes_at(event, parent, kind, offsets, unknown, most):
    """The unknown lanes that `lanes_of` found: table key uint64[n], head int32[n], where the events of each begin,
    int64[n + 1], and its events one after the other, int32, with loops collapsed, at most `most`."""
    longest = 0
    for c in range(offsets.size - 1):
        longest = max(longest, offsets[c + 1] - offsets[c])
    events, spare = np.empty(longest, np.int32), np.empty((2, longest), np.int32)
    keys, head, start = np.empty(len(unknown), np.uint64), np.empty(len(unknown), np.int32), [0]
    pool = np.empty(4 * longest, np.int32)
    for i in range(len(unknown)):
        lo, hi = offsets[unknown[i, 0]], offsets[unknown[i, 0] + 1]
        slot, of = unknown[i, 1], unknown[i, 2]
        top = slot == hi - lo
        n = 0
        for r in range(lo, hi):
            inside = parent[r] < lo if top else parent[r] == lo + slot
            if inside and (kind[r] == 0) == (of == LOGS):
                events[n] = event[r]
                n += 1
        head[i] = TOP if top else event[lo + slot]
        keys[i] = key_of(events[:n], head[i], of)
        spare[:, :n] = 0
        n = min(collapse(events[:n], spare[0, :n], spare[1, :n]), most)
        if start[i] + n > pool.size:
            pool = np.concatenate((pool, np.empty(pool.size, np.int32)))
        for j in range(n):
            pool[start[i] + j] = events[j]
        start.append(start[i] + n)
    return keys, head, np.array(start), pool[: start[-1]]


@allocating_kernel
def append_lanes(
    new, head, kind, times, start, events, row, used, heads, kinds, first_seen, starts, lengths, pool, model
):  # fmt: skip
    """Enters the lanes `new` of those that `lanes_at` gives as rows from `row` on, with events in the pool from `used`
    on. There is a place in the pool for the end of each; `model` knows nothing of any place."""
    for i in new:
        n = start[i + 1] - start[i]
        heads[row], kinds[row], first_seen[row] = head[i], kind[i], times[i]
        starts[row], lengths[row] = used, n
        for j in range(n):
            pool[used + j] = events[start[i] + j]
        model[used : used + n + 1] = -1.0
        used += n + 1
        row += 1


@helper
def greatest(lane, lane_offsets, lane_value, value, worst):
    """Fills in, per chain, the greatest value of its lanes, and the lane that has it (-1: no lane)."""
    for c in range(value.size):
        value[c] = 0.0
        worst[c] = -1
        for k in range(lane_offsets[c], lane_offsets[c + 1]):
            if worst[c] < 0 or lane_value[lane[k]] > value[c]:
                worst[c] = lane[k]
                value[c] = lane_value[lane[k]]


@kernel
def score(
    lane, lane_offsets, lane_value, outcome, flow, histogram, width, young, p_max, value_min, value, worst, p
):  # fmt: skip
    """Fills in `greatest` per chain, 0 for one that a cap cut short, and its `rank` p. Whether a chain is unusual by
    both."""
    greatest(lane, lane_offsets, lane_value, value, worst)
    for c in range(value.size):
        if outcome[c] == EVICTED:
            value[c] = 0.0
    rank(flow, value, histogram, width, young, p)
    for c in range(value.size):
        if p[c] <= p_max and value[c] >= value_min:
            return True
    return False


@allocating_kernel
def count_lanes(lane, lane_offsets, normal, times, good, bad, seen, counted, portion, due):
    """Adds the lanes of each chain to `good` (normal chains) or `bad`, and notes when each was last seen.

    Fills `due` with those, ascending, whose `good` has outgrown what was `counted` of it by more than `portion`. Gives
    their number, and whether nothing was counted yet of one of them.
    """
    for c in range(normal.size):
        for k in range(lane_offsets[c], lane_offsets[c + 1]):
            row = lane[k]
            seen[row] = max(seen[row], times[c])
            if normal[c]:
                good[row] += 1.0
            else:
                bad[row] += 1.0
    outgrown = np.zeros(due.size, np.bool_)
    for k in range(lane_offsets[-1]):
        row = lane[k]
        outgrown[row] = good[row] > (1.0 + portion) * counted[row]
    n = 0
    any_new = False
    for row in range(due.size):
        if outgrown[row]:
            due[n] = row
            n += 1
            any_new |= counted[row] == 0.0
    return n, any_new


@expanded
def context(order, head, kind, before, last):
    """Key of a context; orders from the most to the least specific. Never 0; bit 1 marks what counts occurrences."""
    if order == 0:
        h = mix(mix(mix(uint64(_SALTS[0]), uint64(head + 4)), uint64(before + 4)), uint64(last + 4))
    elif order == 1:
        h = mix(mix(uint64(_SALTS[1]), uint64(head + 4)), uint64(last + 4))
    elif order == 2:
        h = mix(uint64(_SALTS[2]), uint64(head + 4))
    elif order == 3:
        h = mix(uint64(_SALTS[3]), uint64(last + 4))
    else:
        h = uint64(_SALTS[4])
    return (mix(h, uint64(kind + 1)) & ~uint64(3)) | (uint64(3) if order == 0 else uint64(1))


@expanded
def follower(key, event):
    """Key of `event` in the context `key`."""
    return (mix(key, uint64(event + 4)) & ~uint64(3)) | (key & uint64(3))


@allocating_kernel
def learn_lane(pool, start, length, head, kind, weight, keys, count, kinds, used):
    """Adds a lane `weight` times. `count` of a context: its occurrences, or the contexts above it in which something
    followed; `kinds`: how many different events followed.

    A table that is half full takes nothing new.
    """
    before, last = BEGIN, BEGIN
    new = np.zeros(ORDERS, np.bool_)
    for k in range(length + 1):
        event = pool[start + k] if k < length else END
        new[:] = False
        for order in range(ORDERS):
            if order > 0 and not new[_ABOVE[order]]:
                continue
            key = context(order, head, kind, before, last)
            following = follower(key, event)
            i = slot_of(keys, key)
            j = slot_of(keys, following)
            if (keys[i] == 0 or keys[j] == 0) and 2 * (used[0] + 2) > keys.size:
                continue
            if keys[i] == 0:
                keys[i] = key
                used[0] += 1
                j = slot_of(keys, following)
            if keys[j] == 0:
                keys[j] = following
                used[0] += 1
                kinds[i] += 1.0
                new[order] = True
            added = weight if order == 0 else 1.0
            count[i] += added
            count[j] += added
        before, last = last, event


@allocating_helper
def rows_of_heads(rows, head, out):
    """Fills `out`, which has room for every row, with those that have the head of one of `rows`; their number."""
    greatest = 0
    for r in rows:
        greatest = max(greatest, head[r])
    wanted = np.zeros(greatest + 2, np.bool_)  # TOP, which is -1, is the last
    for r in rows:
        wanted[head[r]] = True
    n = 0
    for r in range(out.size):
        if head[r] <= greatest and wanted[head[r]]:
            out[n] = r
            n += 1
    return n


@allocating_kernel
def learn_lanes(rows, pool, start, length, head, kind, good, counted, keys, count, kinds, used, alike):
    """Adds what each of `rows` was seen more often than was counted so far. Fills `alike`, which has room for every
    row, with those that have the head of one of `rows`; gives their number."""
    for r in rows:
        learn_lane(pool, start[r], length[r], head[r], kind[r], good[r] - counted[r], keys, count, kinds, used)
        counted[r] = good[r]
    return rows_of_heads(rows, head, alike)


@kernel
def surprisals(pool, start, length, head, kind, uniform, model, keys, count, kinds, out):
    """out[k] = -ln P(event k | what came before), with the end as the last event.

    `uniform` stands below the lowest level; model[start + k], another model's P (negative: none), counts as much as the
    two levels that know nothing of the head.
    """
    before, last = BEGIN, BEGIN
    for k in range(length + 1):
        event = pool[start + k] if k < length else END
        p = uniform
        for back in range(ORDERS):
            if back == 2 and model[start + k] >= 0.0:
                p = 0.5 * (p + model[start + k])
            key = context(ORDERS - 1 - back, head, kind, before, last)
            i = slot_of(keys, key)
            if keys[i] == 0 or count[i] <= 0.0:
                continue
            j = slot_of(keys, follower(key, event))
            here = count[j] if keys[j] != 0 else 0.0
            p = (here + kinds[i] * p) / (count[i] + kinds[i])
        out[k] = -math.log(max(p, 1e-12))
        before, last = last, event


@kernel
def value_lanes(rows, pool, start, length, head, kind, uniform, model, keys, count, kinds, value, worst, room):
    """The greatest surprisal of each of `rows` and where it is; `room` is scratch of the longest lane + 1."""
    for r in rows:
        surprisals(pool, start[r], length[r], head[r], kind[r], uniform, model, keys, count, kinds, room)
        worst[r] = 0
        for k in range(1, length[r] + 1):
            if room[k] > room[worst[r]]:
                worst[r] = k
        value[r] = room[worst[r]]


@helper
def rank(flow, value, histogram, width, young, p):
    """p[c] = share of the flow's histogram at or above each value; beyond the greatest it falls by the nat."""
    bins = histogram.shape[1]
    for c in range(flow.size):
        own = min(bins - 1, int(value[c] / width))
        total = 0.0
        above = 0.0
        reached = 0
        for b in range(bins - 1, -1, -1):
            total += histogram[flow[c], b]
            if reached == 0 and total > 0.5:
                reached = b
            if b == own:
                above = total
        excess = max(0.0, value[c] - width * (reached + 1))
        p[c] = min(1.0, (above + 0.5) / (total + 1.0) * math.exp(-excess)) if total >= young else 1.0


@allocating_kernel
def count_values(lane, lane_offsets, lane_value, flow, normal, histogram, width, memory):
    """Adds the values of normal chains to their flows' histograms, of which a little fades with each epoch's chains."""
    value, worst = np.empty(flow.size), np.empty(flow.size, np.int32)
    greatest(lane, lane_offsets, lane_value, value, worst)
    came = np.zeros(histogram.shape[0])
    for c in range(flow.size):
        if normal[c]:
            came[flow[c]] += 1.0
    for f in range(came.size):
        if came[f] > 0.0:
            histogram[f] *= math.exp(-came[f] / memory)
    for c in range(flow.size):
        if normal[c]:
            histogram[flow[c], min(histogram.shape[1] - 1, int(value[c] / width))] += 1.0


@kernel
def fade_counts(keys, count, factor):
    """Forgets a little of the occurrences; what was ever seen to follow stays."""
    for i in range(keys.size):
        if keys[i] & uint64(2):
            count[i] *= factor


@summing_kernel
def product(queries, k, vectors, row):
    """The scalar product of two rows, added up in whatever order the processor is fastest at."""
    total = 0.0
    for i in range(queries.shape[1]):
        total += queries[k, i] * vectors[row, i]
    return total


@allocating_kernel
def tokens_of(parts, head, kind, start, pool, features, is_head, of_calls, tokens):
    """Fills `tokens` float32[n, length, features] with what the Transformer reads of each of `parts` int64[k, 4] (lane,
    first event, end, what counts): the head's features, marked as such in the columns `is_head` and `of_calls`, and
    those of the events. `features` float32[events, features]; `tokens` is zero."""
    for k in range(len(parts)):
        lane, first, end = parts[k, 0], parts[k, 1], parts[k, 2]
        if head[lane] != TOP:
            tokens[k, 0] = features[head[lane]]
        tokens[k, 0, is_head] = 1.0
        tokens[k, 0, of_calls] = kind[lane] == CALLS
        for i in range(first, end):
            tokens[k, 1 + i - first] = features[pool[start[lane] + i]]


@allocating_kernel
def chances_of(parts, queries, vectors, vocabulary, start, length, pool, out):
    """`chances` for the counted positions of each of `parts`, whose answers are `queries` float32[n, length, D]. `out`
    has the places of `pool`: one for each event of a lane, and one for its end."""
    for k in range(len(parts)):
        lane, first, end, counted = parts[k]
        place, size = start[lane], length[lane]
        last = end + 1 if end == size else end
        events = pool[place : place + size]
        chances(queries[k], first, vectors, vocabulary, events, counted, last, out[place : place + size + 1])


@allocating_helper
def chances(queries, base, vectors, vocabulary, events, first, last, out):
    """out[first:last] = P of each of `events` and, after them, of the end, by a softmax of products with `queries`.

    Weighed against each other are `vocabulary` (ascending), `events` and the end; the vector of event e is
    vectors[e + 1], that of the end vectors[0]; queries[k] is what is expected at position base + k.
    """
    own = np.sort(events)
    candidates = np.empty(vocabulary.size + own.size + 1, np.int64)
    n = 0
    i = 0
    j = 0
    while i < vocabulary.size or j < own.size:
        if j >= own.size or (i < vocabulary.size and vocabulary[i] <= own[j]):
            event = vocabulary[i]
            i += 1
        else:
            event = own[j]
            j += 1
        if n == 0 or candidates[n - 1] != event + 1:
            candidates[n] = event + 1
            n += 1
    candidates[n] = 0
    n += 1
    products = np.empty(n)
    for k in range(first, last):
        wanted = events[k] + 1 if k < events.size else 0
        greatest = -1e300
        target = 0.0
        for c in range(n):
            products[c] = product(queries, k - base, vectors, candidates[c])
            greatest = max(greatest, products[c])
            if candidates[c] == wanted:
                target = products[c]
        total = 0.0
        for c in range(n):
            total += math.exp(products[c] - greatest)
        out[k] = max(math.exp(target - greatest) / total, 1e-12)
