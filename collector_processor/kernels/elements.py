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

from collector_processor.kernels.jit import allocating_kernel, helper, kernel
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


@allocating_kernel
def observe(
    offsets, event, kind, parent, time_ns, duration, self_time, service, key, value, row, chain, group, near, far
):  # fmt: skip
    """Fills one observation a span (two for a span taken from a queue) and returns how many there are.

    `service` int32[events]. Out, each of 2 * records: key uint64, value float32 (ns), row (the callee's of a call) and
    chain int32, group uint8, near int32 (the service itself, the callee of a call), far int32 (the caller, -1 for an
    operation).
    """
    m = event.size
    remote = np.zeros(m, np.float32)
    callee = np.full(m, -1, np.int32)
    youngest = np.full(m, -1, np.int32)
    sibling = np.full(m, -1, np.int32)
    for r in range(m - 1, -1, -1):
        p = parent[r]
        if kind[r] == 0 or p < 0:
            continue
        sibling[r] = youngest[p]
        youngest[p] = r
        if kind[r] < 5 and service[event[r]] != service[event[p]]:
            remote[p] += duration[r]
            callee[p] = r
    n = 0
    for c in range(offsets.size - 1):
        for r in range(offsets[c], offsets[c + 1]):
            if kind[r] == 0:
                continue
            own = service[event[r]]
            row[n] = r
            chain[n] = c
            # Without client spans, a span that does nothing but call stands for one.
            if callee[r] >= 0 and (kind[r] == 4 or (sibling[callee[r]] < 0 and youngest[r] == callee[r])):
                called = event[callee[r]]
                row[n] = callee[r]
                key[n] = call_key(own, called)
                value[n] = duration[r] - remote[r]
                group[n] = 0
                near[n] = service[called]
                far[n] = own
            else:
                key[n] = uint64(event[r] + 1)
                value[n] = self_time[r]
                if kind[r] == 2 and youngest[r] < 0:
                    value[n] = duration[r] - _waited(r, sibling, time_ns, duration)
                group[n] = kind[r]
                near[n] = own
                far[n] = -1
            n += 1
            p = parent[r]
            if kind[r] == 6 and p >= 0 and service[event[p]] != own:
                row[n] = r
                chain[n] = c
                key[n] = call_key(service[event[p]], event[r])
                value[n] = time_ns[r] - time_ns[p]
                group[n] = QUEUE
                near[n] = own
                far[n] = service[event[p]]
                n += 1
    return n


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


@allocating_kernel
def judge(
    n, key, value, row, chain, group, near, far, material_ns, instance, column, table_keys, table_slots, pools,
    instances, table, usual_surprise, typical, seen, seen_min, level, sums, usual_sums, counts, hits, hit_values,
    hit_usual, hit, chain_value, surprise, slot,
):  # fmt: skip
    """Surprise and slot of observations 0..n-1, added to `column` of the windows; per chain three parts of its value.

    `material_ns` float64[chains]: the delay from which on a surprise counts in full.
    `pools` int32[3, services]: slots of the calls into, the own operations of, the calls out of a service; `instances`
    int32[instances]: of the own operations of one of several instances of a service.
    `chain_value` float64[chains, 3]: greatest surprise, number of observations, greatest level of an element passed.
    """
    octaves = np.empty(material_ns.size, np.int64)
    for c in range(octaves.size):
        octaves[c] = min(max(int(math.log2(material_ns[c] / 1e6)), 0), LEVELS - 1)
    for i in range(n):
        s = find(table_keys, table_slots, key[i])
        slot[i] = s
        position = _position(value[i])
        if s < 0 or seen[s] < seen_min:
            surprise[i] = 0.0
            continue
        u = _surprise(table[s], position)
        usual = typical[s]
        weight = (value[i] - usual) / material_ns[chain[i]]
        u *= min(max(weight, 0.0), 1.0)
        surprise[i] = u
        c = chain[i]
        octave = octaves[c]
        chain_value[c, 0] = max(chain_value[c, 0], u)
        chain_value[c, 1] += 1.0
        called = far[i] >= 0
        for k in range(3):
            if k == 0:
                e = s
            elif k == 1:
                e = pools[0 if called else 1, near[i]]
            elif called:
                e = pools[2, far[i]]
            else:
                e = instances[instance[row[i]]]
            if e < 0:
                continue
            sums[e, column] += u
            usual_sums[e, column] += usual_surprise[s, octave]
            counts[e, column] += 1
            if u > hit:
                hits[e, column] += 1
                hit_values[e, column] += value[i]
                hit_usual[e, column] += usual
            if k < 2:
                chain_value[c, 2] = max(chain_value[c, 2], level[e])


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
    key, value, surprise = np.empty(size, np.uint64), np.empty(size, np.float32), np.empty(size, np.float32)
    row, chain = np.empty(size, np.int32), np.empty(size, np.int32)
    near, far, slot = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    group = np.empty(size, np.uint8)
    n = observe(
        offsets, event, kind, parent, time_ns, duration, self_time, service, key, value, row, chain, group, near, far
    )
    chains = offsets.size - 1
    material_ns, parts = np.empty(chains), np.zeros((chains, 3))
    material(flow, start_ns, end_ns, flow_typical, share, least_ns, longest_ns, material_ns)
    judge(
        n, key, value, row, chain, group, near, far, material_ns, instance, column, table_keys, table_slots, pools,
        instances, table, usual_surprise, typical, seen, seen_min, level, sums, usual_sums, counts, hits, hit_values,
        hit_usual, hit, parts, surprise, slot,
    )  # fmt: skip
    first = np.zeros(chains + 1, np.int64)
    for i in range(n):
        first[chain[i] + 1] = i + 1
    for c in range(chains):
        first[c + 1] = max(first[c + 1], first[c])
    at = np.empty(min(n, chains * most), np.int64)
    found = strongest(first, surprise, slot, level, np.float32(least), np.float32(hold), np.float32(hit), most, at)
    for k in range(found):
        i = at[k]
        finding = out[k]
        say(np.int64(key[i]), near[i], far[i], slot[i], finding)
        finding["chain"] = chain[i]
        finding["instance"] = instance[row[i]]
        finding["p"] = math.exp(-np.float64(surprise[i]))
        finding["expected"], finding["actual"] = typical[slot[i]] / float32(NS), value[i] / float32(NS)
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


@kernel
def count(
    n, slot, value, chain, group, allowed, alarmed_ns, closed_ns, histogram, seen, fresh, middle, residual, touched,
    changed,
):  # fmt: skip
    """Adds observations to the histograms, except of chains not `allowed` and of slots in alarm since they closed.

    A slot with few observations learns even then: what alarms about it is more likely its ignorance. `fresh`
    float32[slots] counts what the tables do not know yet; `touched` bool[slots] is set where it is time to `refresh`.
    How far an observation is from the middle is only counted where the tables know a middle; `changed` bool[groups] is
    set where it is.
    """
    for i in range(n):
        s = slot[i]
        if s < 0 or not allowed[chain[i]] or (seen[s] >= YOUNG and alarmed_ns[s] >= closed_ns[chain[i]]):
            continue
        b = int(_position(value[i]))
        histogram[s, b] += 1
        if seen[s] - fresh[s] >= MIDDLE_MIN:
            residual[group[i], min(max(b - middle[s] + BINS, 0), 2 * BINS - 1)] += 1
            changed[group[i]] = True
        seen[s] += 1
        fresh[s] += 1
        touched[s] = fresh[s] >= STALE * seen[s]


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
    key, value, slot = np.empty(size, np.uint64), np.empty(size, np.float32), np.empty(size, np.int32)
    row, chain = np.empty(size, np.int32), np.empty(size, np.int32)
    near, far, of_group = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.uint8)
    n = observe(
        offsets, event, kind, parent, time_ns, duration, self_time, service, key, value, row, chain, of_group, near, far
    )
    missing = 0
    for i in range(n):
        slot[i] = find(table_keys, table_slots, key[i])
        missing += slot[i] < 0
    if missing and every:
        out = np.empty((missing, 4), np.int64)
        k = 0
        for i in range(n):
            if slot[i] < 0:
                out[k, 0], out[k, 1], out[k, 2], out[k, 3] = np.int64(key[i]), near[i], far[i], of_group[i]
                k += 1
        return out
    touched, groups_changed = np.zeros(seen.size, np.bool_), np.zeros(GROUPS, np.bool_)
    count(
        n, slot, value, chain, of_group, allowed, alarmed_ns, closed_ns, histogram, seen, fresh, middle, residual,
        touched, groups_changed,
    )  # fmt: skip
    flows_changed = np.zeros(flow_typical.size, np.bool_)
    learn_chains(flow, start_ns, end_ns, allowed, flows, flows_changed)
    survivals(residual, groups_changed, prior, share)
    medians(flows, flows_changed, flows_min, flow_typical)
    slots = np.flatnonzero(touched)
    refresh(slots, histogram, seen, group, share, shrink, fresh, middle, typical, table, usual_surprise)
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
