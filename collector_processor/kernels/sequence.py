"""Kernels over ordered event ids: collapsing loops, finding a sequence inside others, counting what was learned.

How it works. A *row* is a distinct canonical path; its operations stand in one shared pool (`start`, `length`).
Everything here is a loop over rows or chains of a batch; what the numbers mean is decided in
`detectors/chain_sequence`.
"""

from __future__ import annotations

import math

import numpy as np

from collector_processor.kernels.jit import allocating_helper, allocating_kernel, expanded, helper, inlined, kernel

REPEAT_MAX = 64  # longest loop body that is collapsed
EVICTED = 2  # model.Outcome
CLIENT, PRODUCER = 4, 5  # ChainBatch.kind


@allocating_kernel
def steps(lo, hi, event, parent, kind, enters, events, callers, clients, silent):
    """The canonical path of the chain with the records `lo` to `hi`: its module entries, `collapse`d.

    Fills in, of each, its event, that of the entry above it or -1, and that of the client or producer span that called
    it or -1; and `silent`, the events of such spans from which no module was entered. Gives the numbers of both.
    """
    n = hi - lo
    above = np.full(n, -1, np.int32)  # the row of the nearest entry at or above each row
    answered = np.zeros(n, np.bool_)
    for r in range(n):
        p = parent[lo + r] - lo
        above[r] = r if enters[lo + r] else (above[p] if 0 <= p < r else -1)
        if enters[lo + r] and 0 <= p < n:
            answered[p] = True
    quiet = 0
    k = 0
    for r in range(n):
        p = parent[lo + r] - lo
        if enters[lo + r]:
            inside = 0 <= p < r
            events[k] = event[lo + r]
            callers[k] = event[lo + above[p]] if inside and above[p] >= 0 else -1
            clients[k] = event[lo + p] if inside and is_call(kind[lo + p]) else -1
            k += 1
        if is_call(kind[lo + r]) and not answered[r]:
            silent[quiet] = event[lo + r]
            quiet += 1
    return collapse(events[:k], callers[:k], clients[:k]), quiet


@inlined
def is_call(kind):
    """Whether a record of that kind is a span that calls others."""
    return kind == CLIENT or kind == PRODUCER


@kernel
def collapse(events, callers, clients):
    """Removes, in place, every direct repetition of a run of up to REPEAT_MAX events (`a b c b c b c d` -> `a b c d`).

    `callers` and `clients` move along with `events`. Returns the new length. One pass suffices: what is left after a
    removal is a state that was free of repetitions before.
    """
    n = 0
    for i in range(events.size):
        events[n] = events[i]
        callers[n] = callers[i]
        clients[n] = clients[i]
        n += 1
        for run in range(1, min(REPEAT_MAX, n // 2) + 1):
            same = True
            for k in range(1, run + 1):
                if events[n - k] != events[n - run - k]:
                    same = False
                    break
            if same:
                n -= run
                break
    return n


@helper
def common_beginning(query, pool, first, size):
    """How many events `query` and the path of `size` events from `first` on begin with alike."""
    limit = min(size, query.size)
    common = 0
    while common < limit and pool[first + common] == query[common]:
        common += 1
    return common


@kernel
def nearest(row, rows, pool, start, length, key, good):
    """The one of `rows` that was ever normal, is not `row` itself and has the longest beginning in common with it, -1
    when there is none; and how long that is. Of equal ones the more frequent, then that with the lesser `key`."""
    query = pool[start[row] : start[row] + length[row]]
    best = -1
    longest = 0
    for other in rows:
        if other == row or good[other] <= 0.0:
            continue
        common = common_beginning(query, pool, start[other], length[other])
        equal = best >= 0 and common == longest
        if best < 0 or common > longest or (equal and good[other] > good[best]):
            best, longest = other, common
        elif equal and good[other] == good[best] and key[other] < key[best]:
            best = other
    return best, longest


@allocating_helper
def containing(query, pool, start, length, rows):
    """Per row: (is `query` a proper subsequence of it, number of gaps in the leftmost match, common prefix)."""
    inside = np.zeros(rows.size, np.bool_)
    gaps = np.zeros(rows.size, np.int32)
    prefix = np.zeros(rows.size, np.int32)
    for r in range(rows.size):
        row = rows[r]
        size = length[row]
        first = start[row]
        common = common_beginning(query, pool, first, size)
        prefix[r] = common
        if size <= query.size:
            continue
        matched = common
        position = common
        broken = 0
        skipping = False
        while matched < query.size and size - position >= query.size - matched:
            if pool[first + position] == query[matched]:
                matched += 1
                skipping = False
            elif not skipping:
                skipping = True
                broken += 1
            position += 1
        if matched == query.size:
            inside[r] = True
            gaps[r] = broken + (1 if position < size and not skipping else 0)
    return inside, gaps, prefix


@allocating_helper
def candidates(row, rows, signature, length, good, bad):
    """Those of `rows` that hold every operation of `row` (by signature) and more steps, and were normal before."""
    out = np.empty(rows.size, np.int64)
    n = 0
    for k in range(rows.size):
        other = rows[k]
        known = good[other] > 0.0 and bad[other] <= good[other]
        if known and length[other] > length[row] and signature[row] & ~signature[other] == 0:
            out[n] = other
            n += 1
    return out[:n]


@allocating_kernel
def judge(
    row, pool, start, length, signature, key, others, gap, flow, good, bad, total, transition_start, transition_length,
    transition, transition_count, origin, origin_count,
):  # fmt: skip
    """What there is to be said of a path that is not known: its `surprise`, and its `holder` among `others`."""
    transitions = transition, transition_count, origin, origin_count
    worst, at = surprise(row, transition_start, transition_length, *transitions)
    held = holder(
        row, pool, start, length, signature, key, others, gap, flow, good, bad, total, transition_start, *transitions
    )
    return worst, at, held


@allocating_helper
def holder(
    row, pool, start, length, signature, key, others, gap, flow, good, bad, total, transition_start, transition,
    transition_count, origin, origin_count,
):  # fmt: skip
    """The known one of `others` that `row` is most likely a broken-off part of: (that one, -1 when it is part of none;
    what they have in common at the beginning; the share of its flow's chains that it has).

    Likely is a frequent one, which `row` fits in with few gaps (`gap` each) and which goes on after the common
    beginning as it usually does. Of equal ones that with the greater `key`.
    """
    rows = candidates(row, others, signature, length, good, bad)
    query = pool[start[row] : start[row] + length[row]]
    inside, gaps, prefix = containing(query, pool, start, length, rows)
    best = -1
    greatest = 0.0
    best_share = 0.0
    for r in range(rows.size):
        if not inside[r]:
            continue
        other = rows[r]
        share = good[other] / max(total[flow[other]], 1.0)
        step = transition[transition_start[other] + prefix[r]]
        taken = (transition_count[step] + 0.5) / (origin_count[origin[step]] + 1.0)
        rank = math.log(max(share, 1e-9)) + gap * gaps[r] + math.log(taken)
        if best < 0 or rank > greatest or (rank == greatest and key[other] > key[rows[best]]):
            best = r
            greatest = rank
            best_share = share
    return (rows[best], prefix[best], best_share) if best >= 0 else (-1, 0, best_share)


@helper
def surprise(row, start, length, transition, transition_count, origin, origin_count):
    """(worst, at): greatest -ln P(next | step) over the transitions of `row`, and its position in the row.

    A step that the flow never had counts for more than any transition between known ones: by ln(chains of the flow).
    """
    worst = 0.0
    at = 0
    chains = origin_count[origin[transition[start[row]]]]
    for k in range(start[row], start[row] + length[row]):
        t = transition[k]
        value = -math.log((transition_count[t] + 0.5) / (origin_count[origin[t]] + 1.0))
        if k + 1 < start[row] + length[row] and origin_count[origin[transition[k + 1]]] <= 0.0:
            value += math.log(chains + 1.0)
        if value > worst:
            worst = value
            at = k - start[row]
    return worst, at


@kernel
def count_transitions(
    rows, normal, outcome, start, length, transition, transition_count, origin, origin_count, good, odd
):  # fmt: skip
    """Adds the transitions of the rows of normal chains that no cap cut short. Before that, fills in how `odd` those of
    `rows` are that were never normal: their `surprise`."""
    for row in rows:
        if good[row] <= 0.0:
            odd[row], _ = surprise(row, start, length, transition, transition_count, origin, origin_count)
    for c in range(rows.size):
        if not normal[c] or outcome[c] == EVICTED:
            continue
        row = rows[c]
        for k in range(start[row], start[row] + length[row]):
            t = transition[k]
            transition_count[t] += 1.0
            origin_count[origin[t]] += 1.0


@kernel
def count_rootless(tenant, root, normal, chains, rootless):
    """Adds normal chains to float64[tenants] `chains`, and those whose root never came to `rootless`."""
    for c in range(tenant.size):
        if normal[c]:
            chains[tenant[c]] += 1.0
            rootless[tenant[c]] += root[c] < 0


@helper
def residual(actual, expected, dispersion):
    """Signed root deviance of a count under a negative binomial of that mean and variance = mean * dispersion.

    Its tail is that of a standard normal to a few per cent (McCullagh & Nelder, Generalized Linear Models, 2.4); half a
    count of continuity correction towards the mean.
    """
    mean = max(expected, 1e-6)
    y = max(actual - 0.5, mean) if actual > mean else min(actual + 0.5, mean)
    deviance = y * math.log(y / mean) if y > 0.0 else 0.0
    if dispersion > 1.0 + 1e-6:
        size = mean / (dispersion - 1.0)
        deviance -= (y + size) * math.log((y + size) / (mean + size))
    else:
        deviance -= y - mean
    root = math.sqrt(2.0 * max(0.0, deviance))
    return root if y > mean else -root


@expanded
def nats_of(root):
    """-ln of the two-sided tail of a standard normal beyond `root`."""
    size = abs(root)
    if size < 25.0:
        return -math.log(max(math.erfc(size / math.sqrt(2.0)), 1e-300))
    return 0.5 * size * size + math.log(size * math.sqrt(math.pi / 2.0))


@helper
def turn(ring, sum_short, sum_long, at, short, epochs):
    """Moves a window on by `epochs` epochs, all of them empty yet. Returns the place of the last one."""
    size = ring.shape[0]
    if epochs >= size:
        ring[:] = 0
        sum_short[:] = 0
        sum_long[:] = 0
        return at + epochs
    for _ in range(epochs):
        at += 1
        new, leaving = at % size, (at - short) % size
        for i in range(ring.shape[1]):
            sum_short[i] -= ring[leaving, i]
            sum_long[i] -= ring[new, i]
            ring[new, i] = 0
    return at


@kernel
def push(
    counts, flow, epochs, short, at, row_ring, row_short, row_long, flow_ring, flow_short, flow_long
):  # fmt: skip
    """Ends `epochs` epochs in the windows of rows and of their flows: all empty but the last, which had `counts`.

    `*_ring` [epochs of a slice, rows or flows], `*_short` and `*_long` the sums of its last `short` and of all its
    epochs, `at` the place of the last one. Empties `counts`; returns the new `at`.
    """
    turn(flow_ring, flow_short, flow_long, at, short, epochs)
    at = turn(row_ring, row_short, row_long, at, short, epochs)
    place = at % row_ring.shape[0]
    for row in range(flow.size):
        count = counts[row]
        if count == 0:
            continue
        counts[row] = 0
        f = flow[row]
        row_ring[place, row] += count
        row_short[row] += count
        row_long[row] += count
        flow_ring[place, f] += count
        flow_short[f] += count
        flow_long[f] += count
    return at


@kernel
def look(counts, flow, total, total_min, novel, good, bad, ratio, share, repeated):
    """Fills in the share of its flow's chains that each row has now: normal chains of both, times the time's ratio.

    Fills `repeated` with rows that came within the slice (`counts`), first came when their flow had `total_min` chains,
    and are not known yet; gives their number.
    """
    n = 0
    for row in range(flow.size):
        share[row] = good[row] / max(total[flow[row]], 1.0) * ratio[row]
        known = good[row] > 0.0 and bad[row] <= good[row]
        if counts[row] > 0 and novel[row] and not known and total[flow[row]] >= total_min:
            repeated[n] = row
            n += 1
    return n


@helper
def share_excess(
    rows_short, flows_short, rows_long, flows_long, share, dispersion, flow, total, total_min, slices, slices_min,
    difference_min, greatest, nats,
):  # fmt: skip
    """Nats of each row's count given its flow's (negative for too few), 0 where nothing can be said.

    nats [2, rows]: of the short window and of the slice. Judged are flows of `total_min` chains and `slices_min`
    slices. Keeps the greatest per flow in `greatest`. Returns the greatest of all.
    """
    most = 0.0
    for row in range(flow.size):
        f = flow[row]
        ready = total[f] >= total_min and slices[f] >= slices_min
        for window in range(2):
            count = rows_long[row] if window == 1 else rows_short[row]
            expected = (flows_long[f] if window == 1 else flows_short[f]) * share[row]
            nats[window, row] = 0.0
            if expected <= 0.0 or not ready or abs(count - expected) < difference_min:
                continue
            root = residual(float(count), expected, dispersion[row])
            size = nats_of(root)
            nats[window, row] = size if root > 0.0 else -size
            greatest[f] = max(greatest[f], size)
            most = max(most, size)
    return most


@helper
def rate_excess(
    short, long, rates, part, dispersion, slices, slices_min, profiled, away, before, before_min, rate, away_chains,
    difference_min, greatest, nats,
):  # fmt: skip
    """The same for the counts of flows in both windows against `rates`, chains a slice, of which a `part` is expected
    in the short one.

    Judged are flows of `slices_min` slices that have not been away (`away` bool[flows]), nor for `before_min` slices
    before they came, in which `away_chains` would have come at their `rate`; when the time of the week is known
    (`profiled`), those too.
    """
    most = 0.0
    for f in range(rates.size):
        nats[0, f] = 0.0
        nats[1, f] = 0.0
        absent = away[f] or (before[f] >= before_min and before[f] * rate[f] >= away_chains)
        if slices[f] < slices_min or (absent and not profiled):
            continue
        for window in range(2):
            count = long[f] if window == 1 else short[f]
            expected = rates[f] if window == 1 else rates[f] * part
            if abs(count - expected) < difference_min:
                continue
            root = residual(float(count), expected, dispersion[f])
            size = nats_of(root)
            nats[window, f] = size if root > 0.0 else -size
            greatest[f] = max(greatest[f], size)
            most = max(most, size)
    return most


@kernel
def end_epoch(
    counts, flow, epochs, short, at, row_ring, row_short, row_long, flow_ring, flow_short, flow_long,
    total, total_min, novel, good, bad, ratio, share, repeated,
    dispersion, slices, slices_min, row_difference_min, greatest_share, of_rows,
    rates, part, rate_dispersion, rate_slices_min, profiled, away, before, rate, away_chains, flow_difference_min,
    greatest_rate, of_flows,
):  # fmt: skip
    """All that an epoch ends with: `push`; `look`, which fills `share` and `repeated`; `share_excess`, which fills
    `of_rows`; `rate_excess`, which fills `of_flows`. Gives the new `at`, the number of `repeated`, and the greatest
    excess."""
    at = push(counts, flow, epochs, short, at, row_ring, row_short, row_long, flow_ring, flow_short, flow_long)
    found = look(row_long, flow, total, total_min, novel, good, bad, ratio, share, repeated)
    of_shares = share_excess(
        row_short, flow_short, row_long, flow_long, share, dispersion, flow, total, total_min, slices, slices_min,
        row_difference_min, greatest_share, of_rows,
    )  # fmt: skip
    of_rates = rate_excess(
        flow_short, flow_long, rates, part, rate_dispersion, slices, rate_slices_min, profiled, away, before,
        slices_min, rate, away_chains, flow_difference_min, greatest_rate, of_flows,
    )  # fmt: skip
    return at, found, max(of_shares, of_rates)


@helper
def cleaned(count, expected, dispersion, sigmas):
    """`count` with what lies beyond so many sigmas pulled in to them."""
    spread = sigmas * math.sqrt(max(expected, 0.25) * dispersion)
    return min(max(count, expected - spread), expected + spread)


@allocating_helper
def end_slice_of_rows(
    rows_long, flows_long, share, flow, slices, clumped, rare, pool_slices, memory, sigmas, profiled,
    dispersion, own_dispersion, weight, flow_dispersion, counts,
):  # fmt: skip
    """Learns the dispersion of each row given its flow's count, and of all rows of each flow, for those that know
    little of their own. Fills `counts` with what came of each row, `cleaned` when its time is `profiled`."""
    sums, means = np.zeros(flow_dispersion.size), np.zeros(flow_dispersion.size)
    for row in range(flow.size):
        expected = flows_long[flow[row]] * share[row]
        count = float(rows_long[row])
        squared = min((count - expected) * (count - expected), sigmas * sigmas * expected * dispersion[row])
        sums[flow[row]] += squared
        means[flow[row]] += expected
        if expected >= 0.5:
            weight[row] = min(weight[row] + 1.0, memory)
            own_dispersion[row] += (squared / expected - own_dispersion[row]) / max(weight[row], 1.0)
    for f in range(means.size):
        if means[f] >= 1.0:
            step = (sums[f] / means[f] - flow_dispersion[f]) / min(slices[f] + 4.0, memory)
            flow_dispersion[f] = max(1.0, flow_dispersion[f] + step)
    dispersion[:] = clumped
    for row in range(flow.size):
        expected = flows_long[flow[row]] * share[row]
        pooled = max(flow_dispersion[flow[row]], clumped if expected < rare else 1.0)
        own = own_dispersion[row] * weight[row]
        dispersion[row] = max(1.0, (own + pooled * pool_slices) / (weight[row] + pool_slices))
        counts[row] = rows_long[row]
        if profiled:
            counts[row] = cleaned(counts[row], expected, dispersion[row], sigmas)


@helper
def end_slice_of_flows(
    flows_long, rates, ended, settled_min, away_min, away_chains, memory, sigmas,
    rate, dispersion, slices, before, silent, away, counts,
):  # fmt: skip
    """Learns the rate of each flow and its dispersion, and whether it has been away. Fills `counts` with what came of
    it, `cleaned` when it has more than `settled_min` slices behind it."""
    for f in range(rates.size):
        count, expected = float(flows_long[f]), rates[f]
        if count > 0.0:
            if slices[f] == 0:
                before[f] = ended
            away[f] = away[f] or (silent[f] >= away_min and silent[f] * rate[f] >= away_chains)
        silent[f] = 0 if count > 0.0 or slices[f] == 0 else silent[f] + 1
        slices[f] += slices[f] > 0 or count > 0.0
        part = 1.0 / min(max(slices[f] - 1, 1), memory)  # without the first slice, which is not a whole one
        squared = (count - expected) * (count - expected) / max(expected, 1.0)
        if slices[f] > settled_min:
            squared = min(squared, sigmas * sigmas * dispersion[f])
        if slices[f] > 2:
            dispersion[f] += part * (squared - dispersion[f])
        dispersion[f] = max(dispersion[f], 1.0)
        counts[f] = cleaned(count, expected, dispersion[f], sigmas) if slices[f] > settled_min else count
        rate[f] += part * (counts[f] - rate[f])


@allocating_kernel
def end_slice(
    rows_long, flows_long, share, flow, memory, sigmas, clumped, rare, pool_slices, profiled, dispersion,
    own_dispersion, weight, flow_dispersion, row_counts, rates, ended, settled_min, away_min, away_chains, rate,
    rate_dispersion, slices, before, silent, away, flow_counts,
):  # fmt: skip
    """`end_slice_of_rows`, which fills `row_counts`, and `end_slice_of_flows`, which fills `flow_counts`."""
    end_slice_of_rows(
        rows_long, flows_long, share, flow, slices, clumped, rare, pool_slices, memory, sigmas, profiled,
        dispersion, own_dispersion, weight, flow_dispersion, row_counts,
    )  # fmt: skip
    end_slice_of_flows(
        flows_long, rates, ended, settled_min, away_min, away_chains, memory, sigmas,
        rate, rate_dispersion, slices, before, silent, away, flow_counts,
    )  # fmt: skip
