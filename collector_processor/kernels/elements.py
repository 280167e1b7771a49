"""Elements in numbers: what each span says of its operation or of the call behind it, and how surprising that is.

How it works. An *element* is an operation (its self time), a call (caller's client span minus the callee's server span,
or time in a queue), or the pool of one service: calls into it, its own operations, calls out of it. Elements have a
slot; keys are packed integers, so nothing is hashed that could collide.

1. `observe` makes one observation a span: element key, nanoseconds, group (calls, or the span kind).
2. A slot keeps a histogram of log durations. `refresh` turns it into a table of -ln P(at least this long): the rank
   within the slot's own history, shrunk towards the residuals of its whole group, whose tail goes on exponentially in
   log space; so a cold element can speak, and magnitude counts beyond the history's maximum.
3. `judge` looks observations up, weighs each surprise by the share of a chain's usual time that it explains, and adds
   it to the window of the element and of the pools of its services, with what the history gives to expect under such
   weights; `windows.py` says how improbable the sums are.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, uint64

from collector_processor.kernels.jit import allocating_helper, allocating_kernel, helper, kernel
from collector_processor.kernels.table import find
from collector_processor.kernels.windows import in_nats, strongest

BINS = 96
WIDTH = 0.2  # nats
LOWEST = math.log(1e3)  # 1 us; the last bin ends at 220 s
GROUPS = 8  # 0 calls, 1-6 span kinds (model.ChainBatch.kind), 7 time in a queue
QUEUE = 7
SURPRISE_MAX = 15.0
LEVELS = 16  # of what delay matters, by octaves from 1 ms
STALE = 0.03  # share of a slot's observations that its table may lack
MIDDLE_MIN = 10.0  # observations that make a middle
YOUNG = 50.0  # observations below which an element learns even while it is in alarm

CALL = 1 << 40
INTO = 2 << 40
WITHIN = 3 << 40
OUT_OF = 4 << 40
INSTANCE = 5 << 40
KIND = 7 << 40  # mask of the five above
EVENT = (1 << 20) - 1  # mask of the callee in the key of a call
SLOW_OPERATION, SLOW_CALL = 9, 10  # model.Kind
OPERATION, EDGE, SERVICE = 1, 2, 4  # model.Level
NS = 1e9
P_MIN = 1e-300

_LENGTH = np.array([math.exp(LOWEST + (b + 0.5) * WIDTH) for b in range(BINS)])  # of the middle of each bin, in ns
_OCTAVE = np.array([1e6 * 2.0 ** (octave + 0.5) for octave in range(LEVELS)])  # the middle of each, in ns
_HALVED = np.array([0.5**octave for octave in range(LEVELS)])  # so many times
_FALLING = np.array([math.exp(-max(b - BINS, 0) * WIDTH / 0.7) for b in range(2 * BINS)])  # residuals at first
_LEAST_SHARE = math.exp(-SURPRISE_MAX)


@helper
def call_key(caller, callee_event):
    """Key of the calls from service `caller` to `callee_event`. An operation's key is its event id + 1."""
    return uint64(CALL) | uint64(caller) << uint64(20) | uint64(callee_event)


@allocating_helper
def observe(
    offsets, event, kind, parent, time_ns, duration, self_time, service, key, value, row, chain, group, near, far
):  # fmt: skip
    """Fills one observation a span (two for a span taken from a queue), from the end on, and gives where they begin.

    `service` int32[events]. Out, each of 2 * records: key uint64, value float32 (ns), row (the callee's of a call) and
    chain int32, group uint8, near int32 (the service itself, the callee of a call), far int32 (the caller, -1 for an
    operation).
    """
    m = event.size
    remote = np.zeros(m, np.float32)
    callee = np.full(m, -1, np.int32)
    youngest = np.full(m, -1, np.int32)
    sibling = np.empty(m, np.int32)
    n = uint64(key.size)
    for c in range(offsets.size - 2, -1, -1):
        for at in range(offsets[c + 1] - 1, offsets[c] - 1, -1):  # children come after their parents
            r = uint64(at)
            if kind[r] == 0:
                continue
            happened = event[r]
            own = service[uint64(happened)]
            above = own
            sibling[r] = -1
            if parent[r] >= 0:
                p = uint64(parent[r])
                above = service[uint64(event[p])]
                sibling[r] = youngest[p]
                youngest[p] = at
                if kind[r] < 5 and above != own:
                    remote[p] += duration[r]
                    callee[p] = at
                elif kind[r] == 6 and above != own:
                    n -= uint64(1)
                    row[n] = at
                    chain[n] = c
                    key[n] = call_key(above, happened)
                    value[n] = time_ns[r] - time_ns[p]
                    group[n] = QUEUE
                    near[n] = own
                    far[n] = above
            n -= uint64(1)
            chain[n] = c
            below = callee[r]
            # Without client spans, a span that does nothing but call stands for one.
            if below >= 0 and (kind[r] == 4 or (sibling[uint64(below)] < 0 and youngest[r] == below)):
                called = event[uint64(below)]
                row[n] = below
                key[n] = call_key(own, called)
                value[n] = duration[r] - remote[r]
                group[n] = 0
                near[n] = service[uint64(called)]
                far[n] = own
            else:
                row[n] = at
                key[n] = uint64(happened + 1)
                value[n] = self_time[r]
                if kind[r] == 2 and youngest[r] < 0:
                    value[n] = duration[r] - _waited(r, sibling, time_ns, duration)
                group[n] = kind[r]
                near[n] = own
                far[n] = -1
    return np.int64(n)


@helper
def _waited(r, sibling, time_ns, duration):
    """Nanoseconds of the childless internal span r during which a later sibling ran.

    Asynchronous frameworks hang the calls that a handler waits for beside the handler, not below it.
    """
    end = time_ns[r] + np.int64(duration[r])
    reached = time_ns[r]
    waited = np.int64(0)
    s = sibling[r]
    while s >= 0 and time_ns[s] < end:
        begin = max(time_ns[s], reached)
        stop = min(time_ns[s] + np.int64(duration[s]), end)
        if stop > begin:
            waited += stop - begin
            reached = stop
        s = sibling[s]
    return np.float32(waited)


@kernel
def _position(value):
    """Place of a duration in ns on the axis of bins, as a float in [0, BINS - 1]."""
    if value < 1e3:
        return 0.0
    return min((math.log(value) - LOWEST) / WIDTH, BINS - 1.0)


@helper
def _surprise(table, position):
    """-ln P(at least this long) by linear interpolation between bin edges."""
    b = int(position)
    low = table[b]
    if b + 1 < table.size:
        low += (table[b + 1] - low) * (position - b)
    return low


@allocating_helper
def judge(
    begin, key, value, row, chain, near, far, material_ns, instance, column, table_keys, table_slots, pools, instances,
    table, usual_surprise, typical, seen, seen_min, level, sums, usual_sums, counts, hits, hit_values, hit_usual, hit,
    least, chain_value, loud, surprise, slot, first,
):  # fmt: skip
    """Adds the surprises of the observations from `begin` on to `column` of the windows; per chain three parts of its
    value.

    `material_ns` float64[chains]: the delay from which on a surprise counts in full.
    `pools` int32[3, services]: slots of the calls into, the own operations of, the calls out of a service; `instances`
    int32[instances]: of the own operations of one of several instances of a service.
    `chain_value` float64[chains, 3]: greatest surprise, number of observations, greatest level of an element passed.
    Observations that reach `least` are put into `loud`, those of chain c from `first[c]` to `first[c + 1]`, with their
    `surprise` and `slot`.
    """
    octaves = np.empty(material_ns.size, np.int64)
    for c in range(octaves.size):
        octaves[c] = min(max(int(math.log2(material_ns[c] / 1e6)), 0), LEVELS - 1)
    n, now = 0, uint64(column)
    for at in range(begin, key.size):
        i = uint64(at)
        c = uint64(chain[i])
        found = find(table_keys, table_slots, key[i])
        s = uint64(found)
        if found < 0 or seen[s] < seen_min:
            continue
        usual = typical[s]
        weight = (value[i] - usual) / material_ns[c]
        u = 0.0
        if weight > 0.0:  # what takes as long as usual or less is no surprise, and needs no logarithm
            u = _surprise(table[s], _position(value[i])) * min(weight, 1.0)
        if np.float32(u) >= least:
            loud[n], surprise[n], slot[n] = at, u, found
            n += 1
            first[c + uint64(1)] = n
        chain_value[c, 0] = max(chain_value[c, 0], u)
        chain_value[c, 1] += 1.0
        expected = usual_surprise[s, uint64(octaves[c])]
        if far[i] >= 0:
            pool, other = pools[0, uint64(near[i])], pools[2, uint64(far[i])]
        else:
            pool, other = pools[1, uint64(near[i])], instances[uint64(instance[uint64(row[i])])]
        passed = level[s]
        if pool >= 0:
            passed = max(passed, level[uint64(pool)])
        chain_value[c, 2] = max(chain_value[c, 2], passed)
        for element in (found, pool, other):
            if element < 0:
                continue
            e = uint64(element)
            usual_sums[e, now] += expected
            counts[e, now] += 1
            if u > 0.0:  # memory that nothing changes in is not looked at
                sums[e, now] += u
                if u > hit:
                    hits[e, now] += 1
                    hit_values[e, now] += value[i]
                    hit_usual[e, now] += usual
    for c in range(1, first.size):
        first[c] = max(first[c], first[c - 1])


@allocating_kernel
def score(
    offsets, event, kind, parent, time_ns, duration, self_time, flow, start_ns, end_ns, service, instance, flow_typical,
    share, least_ns, longest_ns, column, table_keys, table_slots, pools, instances, table, usual_surprise, typical,
    seen, seen_min, level, sums, usual_sums, counts, hits, hit_values, hit_usual, hit, least, hold, most, nats, out,
):  # fmt: skip
    """All that is said of a batch of chains: `observe`, `material`, `judge`, and what is surprising by itself.

    Fills `nats` float64[chains] with the value of each, and findings about at most `most` observations a chain, for
    which there is room in `out`; gives their number.
    """
    size = 2 * event.size
    key, value, group = np.empty(size, np.uint64), np.empty(size, np.float32), np.empty(size, np.uint8)
    row, chain = np.empty(size, np.int32), np.empty(size, np.int32)
    near, far = np.empty(size, np.int32), np.empty(size, np.int32)
    begin = observe(
        offsets, event, kind, parent, time_ns, duration, self_time, service, key, value, row, chain, group, near, far
    )
    chains = offsets.size - 1
    material_ns, parts, first = np.empty(chains), np.zeros((chains, 3)), np.zeros(chains + 1, np.int64)
    material(flow, start_ns, end_ns, flow_typical, share, least_ns, longest_ns, material_ns)
    loud, surprise, slot = np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.int32)
    judge(
        begin, key, value, row, chain, near, far, material_ns, instance, column, table_keys, table_slots, pools,
        instances, table, usual_surprise, typical, seen, seen_min, level, sums, usual_sums, counts, hits, hit_values,
        hit_usual, hit, np.float32(min(least, hit)), parts, loud, surprise, slot, first,
    )  # fmt: skip
    at = np.empty(min(first[chains], chains * most), np.int64)
    found = strongest(first, surprise, slot, level, np.float32(least), np.float32(hold), np.float32(hit), most, at)
    for k in range(found):
        i, s = loud[at[k]], slot[at[k]]
        finding = out[k]
        say(np.int64(key[i]), near[i], far[i], s, finding)
        finding["chain"] = chain[i]
        finding["instance"] = instance[row[i]]
        finding["p"] = math.exp(-np.float64(surprise[at[k]]))
        finding["expected"], finding["actual"] = typical[s] / float32(NS), value[i] / float32(NS)
    in_nats(parts, nats)
    return found


@helper
def say(key, near, far, slot, out):
    """Fills in what a finding about an element or a pool is about: `out` is a row of FINDING, and nothing is in it."""
    out["chain"], out["detector"], out["flow"], out["event"], out["instance"] = -1, 0, -1, -1, -1
    kind = key & KIND
    called = kind == CALL or kind == INTO or kind == OUT_OF
    out["kind"] = SLOW_CALL if called else SLOW_OPERATION
    out["level"] = EDGE if kind == CALL else OPERATION if kind == 0 else SERVICE
    out["service"], out["caller"] = near, far
    if kind == CALL:
        out["event"] = key & EVENT
    elif kind == 0:
        out["event"] = key - 1
    elif kind == INSTANCE:
        out["instance"] = key & ~KIND
    out["detail"] = slot


@kernel
def say_windows(slots, keys, near, far, within, exponents, hits, counts, hit_values, hit_usual, seen_in, out):
    """Fills in findings `out` about the windows `slots`, except those of instances that are no more unusual than the
    operations of their service as a whole (`within` int32[services]: its slot); gives how many there are.

    `seen_in` int64[k, 3] gets the slot of each, how many observations were surprising, and how many there were.
    """
    n = 0
    for s in slots:
        key = np.int64(keys[s])
        pool = within[near[s]] if key & KIND == INSTANCE else -1
        if pool >= 0 and exponents[s] <= exponents[pool]:
            continue
        surprising, observed, usual, values = 0, 0, 0.0, 0.0
        for column in range(counts.shape[1]):
            surprising += hits[s, column]
            observed += counts[s, column]
            usual += hit_usual[s, column]
            values += hit_values[s, column]
        seen_in[n, 0], seen_in[n, 1], seen_in[n, 2] = s, surprising, observed
        finding = out[n]
        say(key, near[s], far[s], s, finding)
        finding["p"] = max(math.exp(-exponents[s]), P_MIN)
        finding["expected"] = usual / max(surprising, 1) / NS
        finding["actual"] = values / max(surprising, 1) / NS
        n += 1
    return n


@helper
def learn_chains(flow, start_ns, end_ns, allowed, histogram, changed):
    """Adds chains' durations to `histogram` float32[flows, BINS]; `changed` bool[flows] is set where that was done."""
    for c in range(flow.size):
        if allowed[c]:
            histogram[max(flow[c], 0), int(_position(end_ns[c] - start_ns[c]))] += 1
            changed[max(flow[c], 0)] = True


@kernel
def medians(histogram, changed, least, out):
    """Fills `out` float64[rows] with the median in ns of each histogram `changed` that holds `least`, else with 0."""
    for row in range(histogram.shape[0]):
        if not changed[row]:
            continue
        total = 0.0
        for b in range(BINS):
            total += histogram[row, b]
        out[row] = 0.0
        if total < least:
            continue
        below = 0.0
        b = 0
        while b < BINS - 1 and below + histogram[row, b] < total / 2:
            below += histogram[row, b]
            b += 1
        out[row] = math.exp(LOWEST + (b + 0.5) * WIDTH)


@helper
def count(
    begin, slot, place, chain, group, allowed, alarmed_ns, closed_ns, histogram, seen, fresh, middle, residual, stale,
    due, changed,
):  # fmt: skip
    """Adds the observations from `begin` on to the bins `place` of the histograms, except of chains not `allowed` and
    of slots in alarm since they closed; gives how many slots it is time to `refresh`.

    A slot with few observations learns even then: what alarms about it is more likely its ignorance. `fresh`
    float32[slots] counts what the tables do not know yet; slots of which they lack too much go into `due`, `stale`
    bool[slots] says which. How far an observation is from the middle is only counted where the tables know a middle;
    `changed` bool[groups] is set where it is.
    """
    dues = 0
    for at in range(begin, slot.size):
        i = uint64(at)
        s, c, g = uint64(slot[i]), uint64(chain[i]), uint64(group[i])
        if slot[i] < 0 or not allowed[c] or (seen[s] >= YOUNG and alarmed_ns[s] >= closed_ns[c]):
            continue
        b = place[i]
        histogram[s, uint64(b)] += 1
        if seen[s] - fresh[s] >= MIDDLE_MIN:
            residual[g, uint64(b - middle[s] + BINS)] += 1
            changed[g] = True
        seen[s] += 1
        fresh[s] += 1
        if not stale[s] and fresh[s] >= STALE * seen[s]:
            stale[s] = True
            due[dues] = slot[i]
            dues += 1
    return dues


@allocating_kernel
def learn(
    offsets, event, kind, parent, time_ns, duration, self_time, flow, start_ns, end_ns, closed_ns, service, allowed,
    every, table_keys, table_slots, alarmed_ns, histogram, seen, fresh, middle, group, typical, table, usual_surprise,
    residual, share, prior, shrink, flows, flows_min, flow_typical,
):  # fmt: skip
    """Takes in the durations of a batch of chains, and brings all that follows from them up to date.

    When observations are of elements that have no slot and `every` is set, nothing is learned, and the answer is
    int64[missing, 4] of their key, service, caller and group; else it is empty.
    """
    size = 2 * event.size
    key, value = np.empty(size, np.uint64), np.empty(size, np.float32)
    slot, place = np.empty(size, np.int32), np.empty(size, np.int32)
    row, chain = np.empty(size, np.int32), np.empty(size, np.int32)
    near, far, of_group = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.uint8)
    begin = observe(
        offsets, event, kind, parent, time_ns, duration, self_time, service, key, value, row, chain, of_group, near, far
    )
    missing = 0
    for i in range(begin, size):
        slot[i] = find(table_keys, table_slots, key[i])
        missing += slot[i] < 0
        place[i] = int(_position(value[i]))  # not in `count`: what waits for a logarithm waits less in a short loop
    if missing and every:
        out = np.empty((missing, 4), np.int64)
        k = 0
        for i in range(begin, size):
            if slot[i] < 0:
                out[k, 0], out[k, 1], out[k, 2], out[k, 3] = np.int64(key[i]), near[i], far[i], of_group[i]
                k += 1
        return out
    stale, due = np.zeros(seen.size, np.bool_), np.empty(seen.size, np.int32)
    groups_changed = np.zeros(GROUPS, np.bool_)
    dues = count(
        begin, slot, place, chain, of_group, allowed, alarmed_ns, closed_ns, histogram, seen, fresh, middle, residual,
        stale, due, groups_changed,
    )  # fmt: skip
    flows_changed = np.zeros(flow_typical.size, np.bool_)
    learn_chains(flow, start_ns, end_ns, allowed, flows, flows_changed)
    survivals(residual, groups_changed, prior, share)
    medians(flows, flows_changed, flows_min, flow_typical)
    refresh(due[:dues], histogram, seen, group, share, shrink, fresh, middle, typical, table, usual_surprise)
    return np.empty((0, 4), np.int64)


@helper
def survival(counts, prior, out):
    """Fills `out` with the share of `counts` at or beyond each bin, its tail going on exponentially from 99 % on.

    `prior` observations are believed before anything is seen, which fall off by e every 0.7 nats above the middle.
    """
    size = counts.size
    total = prior
    for i in range(size):
        total += counts[i]
    above = 0.0
    start = size - 1
    beyond = 0.0
    for i in range(size - 1, -1, -1):
        above += counts[i]
        out[i] = (above + prior * _FALLING[i]) / total
        if out[i] <= 0.01:
            start = i
            beyond = above
    mean_excess = 0.0
    if beyond > 0:
        for i in range(start, size):
            mean_excess += (i - start) * counts[i]
        mean_excess /= beyond
    fall = math.exp(-1.0 / max(mean_excess, 1.0))
    tail = out[start]
    for i in range(start + 1, size):
        tail *= fall
        out[i] = max(out[i], tail)


@kernel
def survivals(counts, changed, prior, out):
    """`survival` of every row `changed`."""
    for row in range(counts.shape[0]):
        if changed[row]:
            survival(counts[row], prior, out[row])


@helper
def material(flow, start_ns, end_ns, flow_typical, share, least_ns, longest_ns, out):
    """out[c] = the delay in ns that matters to chain c: a share of its time, or of its flow's usual time if longer."""
    for c in range(out.size):
        own = min(max(float(end_ns[c] - start_ns[c]), 1e6), longest_ns)
        out[c] = max(share * max(flow_typical[max(flow[c], 0)], own), least_ns)


@helper
def refresh(slots, histogram, seen, group, share, shrink, fresh, middle, typical, table, usual_surprise):
    """Recomputes median and surprise table of `slots` from their histograms and the residuals of their groups.

    `share` float64[groups, 2 * BINS]: of a group's residuals that reach each bin, BINS being the median.
    `usual_surprise` float32[slots, LEVELS] is the mean surprise of the history when delays count in full from the
    middle of each octave on.
    """
    for k in range(slots.size):
        s = slots[k]
        fresh[s] = 0
        half = seen[s] / 2.0
        below = 0.0
        m = 0
        while m < BINS - 1 and below + histogram[s, m] < half:
            below += histogram[s, m]
            m += 1
        middle[s] = m
        typical[s] = _LENGTH[m]
        above, before, surprise = 0.0, -1.0, 0.0
        shares, total = share[group[s]], seen[s] + shrink
        for b in range(BINS - 1, -1, -1):
            above += histogram[s, b]
            prior = shares[min(max(b - m + BINS, 0), 2 * BINS - 1)]
            reached = (above + shrink * prior) / total
            if reached != before:  # most of the time goes into logarithms, and bins without history are often alike
                surprise = -math.log(reached) if reached > _LEAST_SHARE else SURPRISE_MAX
                before = reached
            table[s, b] = surprise
        for octave in range(LEVELS):
            usual_surprise[s, octave] = 0.0
        for b in range(m, BINS):
            late = _LENGTH[b] - typical[s]
            if histogram[s, b] > 0 and late > 0.0:
                part = histogram[s, b] * table[s, b] / total
                weighed = part * (late / _OCTAVE[0])
                full = 0
                while full < LEVELS and late >= _OCTAVE[full]:
                    usual_surprise[s, full] += part
                    full += 1
                for octave in range(full, LEVELS):
                    usual_surprise[s, octave] += weighed * _HALVED[octave]
