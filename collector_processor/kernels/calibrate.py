"""Conformal p-values of whole batches against sorted calibration rings, and the rings' upkeep.

How it works. A ring holds the last N calibration scores of one (row, column): row = flow or tenant, column = detector,
the last column = the fused score. It is kept twice: in order of arrival (what to forget next) and sorted (what to
compare with). A p-value is the exceedance rank (1 + #{score >= x}) / (n + 1); beyond the greatest score a generalised
Pareto tail goes on from 1 / (n + 1), so that the far ones still differ. Its shape is fitted by probability-weighted
moments (Hosking and Wallis 1987) and pulled towards a slightly heavy tail: 30 points say little about a shape. The
fused score, -ln of a mean of p-values, has an exponential tail however dependent those are. No tail falls off faster
than by the nat, and that of a detector which states a probability never below what it states.
"""

from __future__ import annotations

import math

import numpy as np
from numba import uint64

from collector_processor.kernels.jit import allocating_helper, allocating_kernel, helper, kernel

P_MIN = 1e-30  # smallest p-value; keeps -ln p and its sums finite
COLD, POOLED, OWN = 0, 1, 2  # what a fused p-value rests on: nothing, the tenant's pool, the flow's own history
PRIOR = 20.0  # scores that a ring is imagined to hold besides its own: those that a detector in nats gives by chance
SHAPE_PRIOR = 0.1  # of the Pareto tail; weighs as much as SHAPE_PRIOR_POINTS observed excesses
SHAPE_PRIOR_POINTS = 20
SHAPE_MAX = 0.5
ANCHOR = 3  # the fused score's exponential tail goes on from this rank: where one greatest score lies is mostly chance
TAIL_POINTS_MIN = 10
SCALE_MIN = 1.0  # least tail scale: scores are nats, and few equal ones do not make every other one impossible


@helper
def lower_bound(ordered, n, x):
    """The number of values below x among the first n of ascending `ordered`."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if ordered[uint64(middle)] < x:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def p_value(x, ordered, n, shape, scale, rank=1):
    """The p-value of x against the first n > 0 of ascending `ordered`, of which the tail goes on from the `rank`th
    greatest."""
    expected = PRIOR * math.exp(-max(x, 0.0))
    reached = n - lower_bound(ordered, n, x)
    if reached > 0:
        return (1.0 + reached + expected) / (n + 1.0 + PRIOR)
    rank = min(rank, n)
    excess = (x - ordered[n - rank]) / scale
    survival = math.exp(-excess) if shape < 1e-6 else (1.0 + shape * excess) ** (-1.0 / shape)
    return max((min(1.0, rank * survival) + expected) / (n + 1.0 + PRIOR), P_MIN)


@kernel
def fit_tail(ordered, n, shape_max):
    """Shape (0 to shape_max) and scale of the tail beyond the greatest of the first n >= 2 of ascending `ordered`."""
    k = min(max(TAIL_POINTS_MIN, n // 10), n - 1)
    threshold = ordered[n - k - 1]
    mean = 0.0
    weighted = 0.0
    for i in range(k):
        excess = ordered[n - k + i] - threshold
        mean += excess
        weighted += excess * (1.0 - (i + 0.65) / k)
    mean /= k
    weighted /= k
    shape = SHAPE_PRIOR
    if mean > 2.0 * weighted > 0.0:
        shape = 2.0 - mean / (mean - 2.0 * weighted)
    shape = (shape * k + SHAPE_PRIOR * SHAPE_PRIOR_POINTS) / (k + SHAPE_PRIOR_POINTS)
    shape = min(max(shape, 0.0), shape_max)
    scale = mean * (1.0 - shape) + shape * (ordered[n - 1] - threshold)
    return shape, max(scale, SCALE_MIN)


@allocating_kernel
def score_chains(
    values,
    flow,
    tenant,
    part,
    stated,
    weights,
    history_min,
    own_ordered,
    own_count,
    own_tail,
    pool_ordered,
    pool_count,
    pool_tail,
    p,
    fused,
    p_fused,
    level,
):
    """Fills p [parts + d, n], fused [n], p_fused [n] and level [n] for `values` [d, n]. Returns whether any level is
    COLD.

    `part` [d] is the component of each detector, `stated` [d] whether its value is -ln of a probability that it states,
    below which no extrapolation goes; `weights` [parts]. A component's p-value is the least p-value of its
    detectors times their number (Bonferroni), without those that have never said anything but 0; the fused score is -ln
    of their weighted mean of order -1/2. `*_ordered` [rows, d + 1, N], `*_count` [rows, d + 1], `*_tail` [rows, d + 1,
    2] (shape, scale). Negative flows and tenants are row 0.
    """
    detectors = values.shape[0]
    parts = weights.size
    any_cold = False
    p_part, p = p[:parts], p[parts:]
    heard = np.zeros(parts, np.bool_)
    speaking = np.zeros(parts, np.int64)
    for c in range(values.shape[1]):
        f = max(flow[c], 0)
        t = max(tenant[c], 0)
        heard[:] = False
        speaking[:] = 0
        p_part[:, c] = 1.0
        for k in range(detectors):
            x = values[k, c]
            n = own_count[f, k]
            if n >= history_min:
                silent = x == 0.0 and own_ordered[f, k, n - 1] == 0.0
                q = p_value(x, own_ordered[f, k], n, own_tail[f, k, 0], own_tail[f, k, 1])
            elif pool_count[t, k] >= history_min:
                n = pool_count[t, k]
                silent = x == 0.0 and pool_ordered[t, k, n - 1] == 0.0
                q = p_value(x, pool_ordered[t, k], n, pool_tail[t, k, 0], pool_tail[t, k, 1])
            else:
                p[k, c] = 1.0
                continue
            if stated[k]:
                q = max(q, math.exp(-max(x, 0.0)))
            heard[part[k]] = True
            p[k, c] = q
            if not silent:
                speaking[part[k]] += 1
                p_part[part[k], c] = min(p_part[part[k], c], q)
        whole = 0.0
        total = 0.0
        for a in range(parts):
            if heard[a]:
                p_part[a, c] = min(1.0, p_part[a, c] * max(1, speaking[a]))
                whole += weights[a]
                total += weights[a] / math.sqrt(p_part[a, c])
        k = detectors
        warm = whole > 0.0
        total = 2.0 * math.log(total / whole) if warm else np.nan
        fused[c] = total
        if warm and own_count[f, k] >= history_min:
            level[c] = OWN
            p_fused[c] = p_value(total, own_ordered[f, k], own_count[f, k], 0.0, own_tail[f, k, 1], ANCHOR)
        elif warm and pool_count[t, k] >= history_min:
            level[c] = POOLED
            p_fused[c] = p_value(total, pool_ordered[t, k], pool_count[t, k], 0.0, pool_tail[t, k, 1], ANCHOR)
        else:
            level[c] = COLD
            p_fused[c] = 1.0
            any_cold = True
    return any_cold


@kernel
def replace(ordered, n, old, new):
    """Takes one `old` out of the first n of ascending `ordered` and puts `new` in."""
    at = lower_bound(ordered, n, old)
    if new > old:
        end = lower_bound(ordered, n, new) - 1
        for i in range(at, end):
            ordered[uint64(i)] = ordered[uint64(i + 1)]
    else:
        end = at
        while end > 0 and ordered[uint64(end - 1)] > new:
            ordered[uint64(end)] = ordered[uint64(end - 1)]
            end -= 1
    ordered[uint64(end)] = new


@kernel
def insert(arrived, ordered, count, head, row, column, x):
    """Puts x into one ring; a full ring forgets its oldest score."""
    size = arrived.shape[2]
    n = count[row, column]
    at = head[row, column]
    if n < size:
        ordered[row, column, n] = np.inf
        replace(ordered[row, column], n + 1, np.inf, x)
        count[row, column] = n + 1
    else:
        replace(ordered[row, column], n, arrived[row, column, at], x)
    arrived[row, column, at] = x
    head[row, column] = (at + 1) % size


@allocating_helper
def refill_fused(arrived, ordered, count, head, row, part, weights, history_min, totals):
    """Gives an empty fused ring the fused scores that the detectors' rings imply, once those are long enough.

    Possible while the detectors' rings of the row hold the same chains at the same places. `totals` [N] is scratch.
    """
    detectors = count.shape[1] - 1
    n = count[row, 0]
    if count[row, detectors] > 0 or n < history_min or weights.sum() <= 0.0:
        return
    size = np.zeros(weights.size)
    for k in range(detectors):
        if ordered[row, k, n - 1] != 0.0:
            size[part[k]] += 1.0
        if count[row, k] != n or head[row, k] != head[row, 0]:
            return
    least = np.empty(weights.size)
    for i in range(n):
        least[:] = 1.0
        for k in range(detectors):
            reached = n - lower_bound(ordered[row, k], n, arrived[row, k, i])
            least[part[k]] = min(least[part[k]], reached / n)
        totals[i] = 0.0
        for a in range(weights.size):
            totals[i] += weights[a] / math.sqrt(min(1.0, least[a] * max(1.0, size[a])))
        totals[i] = 2.0 * math.log(totals[i] / weights.sum())
    first = head[row, 0] if n == arrived.shape[2] else 0
    for i in range(n):
        insert(arrived, ordered, count, head, row, detectors, totals[(first + i) % n])


@allocating_kernel
def share_kept(row, take, uniform, count, size, per_call):
    """Which of the taken chains stay when each row takes about `per_call` a call, or more while it fills up; [n].

    `uniform` [n] is a number in 0-1 that belongs to the chain, `count` [rows] how many the row holds, `size` its ring.
    """
    offered = np.zeros(count.size, np.int64)
    for c in range(row.size):
        if take[c]:
            offered[max(row[c], 0)] += 1
    kept = np.zeros(row.size, np.bool_)
    for c in range(row.size):
        r = max(row[c], 0)
        if take[c]:
            wanted = max(per_call, size - count[r])
            kept[c] = uniform[c] * offered[r] < wanted
    return kept


@allocating_kernel
def learn_chains(
    values,
    row,
    normal,
    uniform,
    per_call,
    part,
    weights,
    history_min,
    arrived,
    ordered,
    count,
    head,
    tail,
):
    """Puts the `normal` rows of `values` [n, d + 1], or the share of them that `share_kept` takes, into the rings of
    `row` [n], in order; NaN leaves a ring as it is."""
    columns = values.shape[1]
    take = share_kept(row, normal, uniform, count[:, 0], arrived.shape[2], per_call)
    touched = np.zeros(count.shape[0], np.bool_)
    for c in range(values.shape[0]):
        if not take[c]:
            continue
        r = max(row[c], 0)
        touched[r] = True
        for k in range(columns):
            if not math.isnan(values[c, k]):
                insert(arrived, ordered, count, head, r, k, values[c, k])
    totals = np.empty(arrived.shape[2])
    for r in range(touched.size):
        if not touched[r]:
            continue
        refill_fused(arrived, ordered, count, head, r, part, weights, history_min, totals)
        for k in range(columns):
            if count[r, k] >= 2:
                shape_max = SHAPE_MAX if k + 1 < columns else 0.0
                tail[r, k, 0], tail[r, k, 1] = fit_tail(ordered[r, k], count[r, k], shape_max)


@kernel
def spread_evenly(trace_hi, trace_lo, sequence, start_ns, out):
    """out[c] = a number in 0-1 by splitmix64 of what chain c is."""
    for c in range(out.size):
        x = trace_hi[c] ^ trace_lo[c] ^ sequence[c] ^ uint64(start_ns[c])
        x += uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
        out[c] = float((x ^ (x >> uint64(31))) >> uint64(11)) / 2.0**53


@allocating_kernel
def goes_through(offsets, event, service, services, out):
    """out[c] = whether chain c has an event of one of `services` (not empty, ascending)."""
    first = services[0]
    wanted = np.zeros(services[services.size - 1] - first + 1, np.bool_)
    for s in services:
        wanted[s - first] = True
    for c in range(out.size):
        out[c] = False
        for r in range(offsets[c], offsets[c + 1]):
            place = service[event[r]] - first
            if 0 <= place < wanted.size and wanted[place]:
                out[c] = True
                break
