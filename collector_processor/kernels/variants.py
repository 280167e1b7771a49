"""Elements in categories: which logs a span writes and which spans it calls, and how rare that variant is.

How it works. A *variant* is a multiset: the log templates of one span, or its calls, each counted as one or many, so
that neither the order of concurrent branches nor the length of a loop makes a new one. A call is a child span, or, when
that has a child in another service, that child: what was called, not how. The hash of a variant is a sum over its
members; the lowest bit of a hash of logs says that an error is among them. An element is (operation, logs or calls);
it keeps a count per variant. A variant's surprise is -ln of the share of the element's history that is at most as
frequent; for an unseen one, of the share of history that was seen once, shrunk towards the rate at which elements show
anything new at all.

A service that fails changes what its callers write and call. So a surprise counts only as far as it exceeds the
greatest one below it in another service.
"""

from __future__ import annotations

import math

import numpy as np
from numba import uint64

from collector_processor.kernels.jit import allocating_kernel, helper, inlined, kernel
from collector_processor.kernels.table import find, put
from collector_processor.kernels.windows import in_nats, strongest
from collector_processor.kernels.wire import finish, mix

SIBLINGS_MAX = 32  # looked back upon to tell the first of a kind from a further one
ERROR_LOG = 17  # OTLP severity number from which on a log is an error
WARNING_LOG = 13
ERROR_SPAN = 2
CLIENT, PRODUCER = 4, 5  # span kinds in a ChainBatch
STALE = 0.03  # share of an element's observations that its surprises may lack
YOUNG = 50.0  # observations below which an element learns even while it is in alarm
NOT_ASKING = -3  # of an operation that does more than call another service
VARIANTS_MAX = 64  # of one element; further ones are only counted
# What `describe` says first: the chain, whether logs tell of no error and no warning, how many calls nobody answered,
# whether nobody answered the span itself, the number of members.
CHAIN, CALM, UNANSWERED, ALONE, NUMBER, ABOUT = range(6)
_MANY = 0x5851F42D4C957F2D
_ERROR = 0x2545F4914F6CDD1D


@kernel
def observe(event, kind, status, parent, service, family, logs, calls, last, sibling, callee):
    """Fills the hashes uint64[m] of each span's logs and calls, and the lists of children: int32[m], -1 ends.

    `service` int32 and `family` uint64[events]: the service of an event, and what counts as the same member. `last[r]`
    is r's last child, `sibling[r]` the one before r; `callee[r]` is r's child in another service, else r itself.
    """
    for r in range(event.size):
        logs[r] = 0
        calls[r] = 0
        last[r] = -1
        sibling[r] = -1
        callee[r] = r
        p = parent[r]
        if p >= 0 and kind[r] != 0 and service[event[r]] != service[event[p]]:
            callee[p] = r
    for r in range(event.size):
        if kind[r] != 0 and status[r] == ERROR_SPAN:
            logs[r] = (logs[r] + (finish(uint64(_ERROR)) << uint64(1))) | uint64(1)
        p = parent[r]
        if p < 0:
            continue
        is_log = kind[r] == 0
        member = family[event[callee[r]]]
        error = is_log and status[r] >= ERROR_LOG
        seen = 0
        s = last[p]
        steps = 0
        while s >= 0 and steps < SIBLINGS_MAX and seen < 2:
            if (kind[s] == 0) == is_log and family[event[callee[s]]] == member:
                seen += 1
            s = sibling[s]
            steps += 1
        sibling[r] = last[p]
        last[p] = r
        if seen < 2:
            part = finish(mix(member, uint64(_MANY) if seen else uint64(1)))
            if is_log:
                bit = (logs[p] & uint64(1)) | uint64(error)
                logs[p] = ((logs[p] >> uint64(1)) + (part >> uint64(1))) << uint64(1) | bit
            else:
                calls[p] += part


@allocating_kernel
def members(row, of_logs, kind, event, last, sibling, callee, out):
    """Fills `out` with the events of the logs or calls of the span at `row`, in order, each at most twice, as far as
    there is room; gives their number. The other arrays as in `observe`."""
    size = 0
    child = last[row]
    while child >= 0:
        size += 1
        child = sibling[child]
    children = np.empty(size, np.int32)
    child = last[row]
    for k in range(size - 1, -1, -1):
        children[k] = child
        child = sibling[child]
    n = 0
    for child in children:
        if n == out.size:
            break
        if (kind[child] == 0) != of_logs:
            continue
        member = event[callee[child]]
        seen = 0
        for k in range(n):
            seen += out[k] == member
        if seen < 2:
            out[n] = member
            n += 1
    return n


@allocating_kernel
def describe(places, offsets, kind, status, event, last, sibling, callee, out):
    """Fills `out` int32[k, ABOUT + most] with what is at each of `places`, the logs (even) or calls (odd) of a span:
    columns CHAIN..NUMBER, and from ABOUT on the `members`, then -1. Chains ascend. The other arrays as in `observe`."""
    chain = 0
    for k in range(places.size):
        row, of_logs = places[k] // 2, places[k] % 2 == 0
        while offsets[chain + 1] <= row:
            chain += 1
        calm = of_logs and status[row] != ERROR_SPAN
        unanswered = 0
        child = last[row]
        while child >= 0:
            if of_logs:
                calm = calm and (kind[child] != 0 or status[child] < WARNING_LOG)
            else:
                unanswered += (kind[child] == CLIENT or kind[child] == PRODUCER) and callee[child] == child
            child = sibling[child]
        out[k, CHAIN] = chain
        out[k, CALM] = calm
        out[k, UNANSWERED] = unanswered
        out[k, ALONE] = callee[row] == row
        number = members(row, of_logs, kind, event, last, sibling, callee, out[k, ABOUT:])
        out[k, NUMBER] = number
        for i in range(ABOUT + number, out.shape[1]):
            out[k, i] = -1


@kernel
def variant_key(element, variant):
    """Key of one variant of one element, never 0."""
    return mix(mix(uint64(0x9E6D62D06F6A9A9B), uint64(element)), variant) | uint64(1)


@inlined
def slot_of(slots, event, what):
    """The slot of the logs (0) or calls (1) of an operation, by `slots` int32[n], -1 when it has none."""
    at = 2 * event + what
    return slots[at] if at < slots.size else np.int32(-1)


@inlined
def row_of(s, element, variant, variant_keys, variant_rows, met, met_row):
    """The row of one variant of the element in slot s, -1 when it is not known. `met` uint64[slots] has the variant
    that was last asked for and `met_row` int32[slots] its row, if any: mostly it is asked for again, and the table is
    too large to stay at hand."""
    if met[s] != variant or met_row[s] < 0:
        met[s] = variant
        met_row[s] = find(variant_keys, variant_rows, variant_key(element, variant))
    return met_row[s]


@helper
def _weighed(nats, least, hit):
    """A surprise as it counts: not at all up to `least`, in full from `hit` on."""
    return nats * min(max((nats - least) / (hit - least), np.float32(0.0)), np.float32(1.0))


@helper
def _hand_up(r, p, top, is_own, same, other):
    """Tells span p of its child r, which is surprising by `top`: what in `same` is its service's own, what `other`."""
    if is_own:
        same[p] = max(same[p], top, same[r])
        other[p] = max(other[p], other[r])
    else:
        other[p] = max(other[p], top, same[r], other[r])


@allocating_kernel
def judge(
    offsets, event, kind, status, parent, service, logs, calls, last, sibling, callee, named, column, slots,
    variant_keys, variant_rows, met, met_row, nats, new_nats, usual_nats, asks, seen, seen_min, blamed, blamed_by,
    level, sums, usual_sums, counts, hits, hit, least, chain_value, surprise, slot,
):  # fmt: skip
    """Surprise float32[m, 2] and slot int32[m, 2] of each span's logs and calls, added to `column` of the windows.

    `asks` int32[slots]: NOT_ASKING, unless all that is known of an operation is that it calls other services. When such
    a call gets no answer, its error and what its caller makes of that are the other service's.
    `named` int32[events]: the service that a template names, else -1. When a service writes an unusual error that
    names another, what else is unusual about it in that chain speaks for the other: `blamed` int32[services] has its
    slot, and `blamed_by` int32[services] is told who complained last. `chain_value` as in `elements.judge`.
    """
    blames = np.full(blamed.size, -1, np.int32)
    blamers = np.empty(blamed.size, np.int32)
    greatest = np.zeros(blamed.size, np.float32)
    m = event.size
    same = np.zeros(m, np.float32)
    other = np.zeros(m, np.float32)
    for c in range(offsets.size - 1):
        used = 0
        for r in range(offsets[c + 1] - 1, offsets[c] - 1, -1):
            for what in range(2):
                surprise[r, what] = 0.0
                slot[r, what] = -1
            if kind[r] == 0:
                continue
            own = service[event[r]]
            top = np.float32(0.0)
            for what in range(2):
                s = slot_of(slots, event[r], what)
                if s < 0 or seen[s] < seen_min:
                    continue
                slot[r, what] = s
                variant = logs[r] if what == 0 else calls[r]
                row = row_of(s, 2 * event[r] + what + 1, variant, variant_keys, variant_rows, met, met_row)
                u = _weighed(nats[row] if row >= 0 else new_nats[s], least, hit)
                top = max(top, u)
                # Who fails on an answer that is unusual itself does so because of it, however seldom it failed before.
                follows = what == 0 and other[r] > hit and logs[r] & uint64(1) != 0
                surprise[r, what] = np.float32(0.0) if follows else max(u - other[r], np.float32(0.0))
            if surprise[r, 0] > hit:
                to = _named_by(r, kind, status, event, last, sibling, named)
                if to >= 0 and to != own:
                    if blames[own] < 0:
                        blamers[used] = own
                        used += 1
                    blames[own] = to
            s = slot[r, 1]
            unanswered = s >= 0 and asks[s] != NOT_ASKING and callee[r] == r and surprise[r, 1] > hit
            if unanswered:
                surprise[r, 0] = 0.0
            p = parent[r]
            if p >= 0:
                _hand_up(r, p, top, service[event[p]] == own and not unanswered, same, other)
        for r in range(offsets[c], offsets[c + 1]):
            for what in range(2):
                s = slot[r, what]
                if s < 0:
                    continue
                u = surprise[r, what]
                own = service[event[r]]
                chain_value[c, 0] = max(chain_value[c, 0], u)
                chain_value[c, 1] += 1.0
                chain_value[c, 2] = max(chain_value[c, 2], level[s])
                counts[s, column] += 1
                if usual_nats[s] > 0.0:  # memory that nothing changes in is not looked at
                    usual_sums[s, column] += usual_nats[s]
                if u == 0.0:
                    continue
                if blames[own] >= 0:
                    greatest[own] = max(greatest[own], u)
                    continue
                if u > hit:
                    hits[s, column] += 1
                sums[s, column] += u
        for k in range(used):
            own = blamers[k]
            _blame(own, blames[own], blamed, blamed_by, greatest[own], column, sums, counts, hits)
            blames[own] = -1
            greatest[own] = 0.0


@kernel
def _blame(own, to, blamed, blamed_by, nats, column, sums, counts, hits):
    """Adds what is unusual about service `own` in a chain to the window of the service that its errors name."""
    s = blamed[to]
    if s >= 0:
        sums[s, column] += nats
        counts[s, column] += 1
        hits[s, column] += 1
        blamed_by[to] = own


@allocating_kernel
def score(
    offsets, event, kind, status, parent, service, family, named, column, slots, variant_keys, variant_rows, met,
    met_row, nats, new_nats, usual_nats, asks, seen, seen_min, blamed, blamed_by, level, sums, usual_sums, counts, hits,
    hit, least, own_least, hold, most, values, hashes, children, surprise, slot, unusual, at,
):  # fmt: skip
    """All that is said of a batch of chains: `observe`, `judge`, and what is surprising by itself.

    Fills `values` float64[chains]; what `observe` finds: `hashes` uint64[2, m] and `children` int32[3, m]; `surprise`
    float32[m, 2] and `slot` int32[m, 2] of the logs and calls of each record; and int64, as far as there are any, the
    places therein: `unusual` of what is surprising, `at` of the at most `most` of each chain that are so by themselves
    (`windows.strongest`). Gives the numbers of both.
    """
    last, sibling, callee = children[0], children[1], children[2]
    observe(event, kind, status, parent, service, family, hashes[0], hashes[1], last, sibling, callee)
    chains = offsets.size - 1
    parts = np.zeros((chains, 3))
    judge(
        offsets, event, kind, status, parent, service, hashes[0], hashes[1], last, sibling, callee, named, column,
        slots, variant_keys, variant_rows, met, met_row, nats, new_nats, usual_nats, asks, seen, seen_min, blamed,
        blamed_by, level, sums, usual_sums, counts, hits, hit, least, parts, surprise, slot,
    )  # fmt: skip
    in_nats(parts, values)
    flat = surprise.reshape(-1)
    n = 0
    for place in range(flat.size):
        if flat[place] > hit:
            unusual[n] = place
            n += 1
    return n, strongest(2 * offsets, flat, slot.reshape(-1), level, own_least, hold, hit, most, at)


@helper
def _named_by(r, kind, status, event, last, sibling, named):
    """The service that the errors of span r name, -1 when they name none."""
    log = last[r]
    to = -1
    while log >= 0:
        if kind[log] == 0 and status[log] >= WARNING_LOG and named[event[log]] >= 0:
            to = named[event[log]]
        log = sibling[log]
    return to


@helper
def count_variants(
    offsets, event, kind, logs, calls, allowed, closed_ns, alarmed_ns, audited_ns, audit_ns, slots, variant_keys,
    variant_rows, met, met_row, count, first, following, distinct, seen, fresh, excess, novelty, kept, touched,
    rows_used, rows_max, new_row,
):  # fmt: skip
    """Counts variants; returns how many variant rows are in use then.

    Not learned are chains not `allowed` and elements in alarm since the chain closed, but for one each `audit_ns`
    unless it holds an error. `new_row` int32[m, 2] gets the row of a variant first seen here, else -1.
    `novelty` float64[2]: new variants and observations of elements with history, fading by `kept`. `fresh` counts what
    the surprises do not know yet; `touched` bool[slots] is set where it is time to `refresh`.
    """
    for c in range(offsets.size - 1):
        for r in range(offsets[c], offsets[c + 1]):
            new_row[r, 0] = -1
            new_row[r, 1] = -1
            if kind[r] == 0 or not allowed[c]:
                continue
            for what in range(2):
                s = slot_of(slots, event[r], what)
                if s < 0:
                    continue
                variant = logs[r] if what == 0 else calls[r]
                if alarmed_ns[s] >= closed_ns[c] and seen[s] >= YOUNG:
                    broken = what == 0 and (variant & uint64(1)) != 0
                    if broken or closed_ns[c] - audited_ns[s] < audit_ns:
                        continue
                    audited_ns[s] = closed_ns[c]
                element = 2 * event[r] + what + 1
                row = row_of(s, element, variant, variant_keys, variant_rows, met, met_row)
                novelty[1] = novelty[1] * kept + 1.0
                novelty[0] *= kept
                if row < 0:
                    if seen[s] > 0:
                        novelty[0] += 1.0
                    if distinct[s] >= VARIANTS_MAX or rows_used >= rows_max:
                        excess[s] += 1
                    else:
                        row = rows_used
                        rows_used += 1
                        put(variant_keys, variant_rows, variant_key(element, variant), row)
                        count[row] = 0
                        following[row] = first[s]
                        first[s] = row
                        distinct[s] += 1
                        new_row[r, what] = row
                if row >= 0:
                    count[row] += 1
                seen[s] += 1
                fresh[s] += 1
                touched[s] = touched[s] or new_row[r, what] >= 0 or fresh[s] >= STALE * seen[s]
    return rows_used


@helper
def unknown(event, kind, slots, out):
    """Fills `out` with the rows of spans whose operation has no slot, and returns how many there are."""
    n = 0
    for r in range(event.size):
        if kind[r] != 0 and slot_of(slots, event[r], 0) < 0:
            out[n] = r
            n += 1
    return n


@allocating_kernel
def learn(
    offsets, event, kind, status, parent, service, family, allowed, closed_ns, every, alarmed_ns, audited_ns, audit_ns,
    slots, variant_keys, variant_rows, met, met_row, count, first, following, distinct, seen, fresh, excess,
    novelty, kept, rows_used, shrink, least, hit, nats, new_nats, usual_nats, children, missing, new,
):  # fmt: skip
    """Takes in the variants of a batch of chains, and brings the surprises that follow from them up to date.

    Fills `children` int32[3, m] as `score` does; `missing` int64[m] with the records of spans whose operation has no
    slot, and when there are any and `every` is set, nothing is learned; `new` int64[2 * m, 2] with the places in [m, 2]
    and the rows of variants first seen here. Gives the numbers of both.
    """
    m = event.size
    hashes = np.empty((2, m), np.uint64)
    last, sibling, callee = children[0], children[1], children[2]
    observe(event, kind, status, parent, service, family, hashes[0], hashes[1], last, sibling, callee)
    lacking = unknown(event, kind, slots, missing)
    if lacking and every:
        return lacking, 0
    new_row, touched = np.empty((m, 2), np.int32), np.zeros(alarmed_ns.size, np.bool_)
    count_variants(
        offsets, event, kind, hashes[0], hashes[1], allowed, closed_ns, alarmed_ns, audited_ns, audit_ns, slots,
        variant_keys, variant_rows, met, met_row, count, first, following, distinct, seen, fresh, excess, novelty, kept,
        touched, rows_used, count.size, new_row,
    )  # fmt: skip
    refresh(
        np.flatnonzero(touched), first, following, count, seen, fresh, excess, novelty_rate(novelty), shrink, least,
        hit, nats, new_nats, usual_nats,
    )  # fmt: skip
    rows = new_row.reshape(-1)
    found = 0
    for place in range(rows.size):
        if rows[place] >= 0:
            new[found, 0], new[found, 1] = place, rows[place]
            found += 1
    return lacking, found


@kernel
def novelty_rate(novelty):
    """The share of observations of elements with history that are new at all."""
    return (novelty[0] + 1.0) / (novelty[1] + 50.0)


@kernel
def refresh(
    slots, first, following, count, seen, fresh, excess, rate, shrink, least, hit, nats, new_nats, usual_nats
):  # fmt: skip
    """Recomputes the surprises of every variant of `slots`. `rate` is the share of observations that are new at all.

    `usual_nats` float32[slots]: the mean surprise of what the history holds, as far as it counts.
    """
    for k in range(slots.size):
        s = slots[k]
        fresh[s] = 0
        total = seen[s] + shrink
        once = excess[s]
        usual = 0.0
        a = first[s]
        while a >= 0:
            rarer = 0.0
            b = first[s]
            while b >= 0:
                if count[b] <= count[a]:
                    rarer += count[b]
                b = following[b]
            if count[a] == 1:
                once += 1
            nats[a] = max(0.0, -math.log(min((rarer + excess[s] + shrink * rate) / total, 1.0)))
            usual += count[a] * _weighed(nats[a], least, hit)
            a = following[a]
        usual_nats[s] = usual / total
        new_nats[s] = max(0.0, -math.log(min((once + 0.5 + shrink * rate) / total, 1.0)))
