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

from collector_processor.kernels.jit import allocating_helper, allocating_kernel, helper, inlined, kernel
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


@allocating_helper
def observe(event, kind, status, parent, service, family, logs, calls, last, sibling, callee):
    """Fills the hashes uint64[m] of each span's logs and calls, and the lists of children: int32[m], -1 ends.

    `service` int32 and `family` uint64[events]: the service of an event, and what counts as the same member. `last[r]`
    is r's last child, `sibling[r]` the one before r; `callee[r]` is r's child in another service, else r itself.
    """
    logs[:] = uint64(0)
    calls[:] = uint64(0)
    last[:] = -1
    for at in range(event.size):
        r = uint64(at)
        callee[r] = at
        if kind[r] != 0 and parent[r] >= 0:
            p = uint64(parent[r])
            if service[uint64(event[r])] != service[uint64(event[p])]:
                callee[p] = at
    member = np.empty(event.size, np.uint64)
    for at in range(event.size):
        r = uint64(at)
        is_log = kind[r] == 0
        if not is_log and status[r] == ERROR_SPAN:
            logs[r] = (logs[r] + (finish(uint64(_ERROR)) << uint64(1))) | uint64(1)
        mine = family[uint64(event[uint64(callee[r])])]
        member[r] = mine
        if parent[r] < 0:
            sibling[r] = -1
            continue
        p = uint64(parent[r])
        seen = 0
        s = last[p]
        sibling[r] = s
        last[p] = at
        steps = 0
        while s >= 0 and steps < SIBLINGS_MAX and seen < 2:
            if member[uint64(s)] == mine and (kind[uint64(s)] == 0) == is_log:
                seen += 1
            s = sibling[uint64(s)]
            steps += 1
        if seen < 2:
            part = finish(mix(mine, uint64(_MANY) if seen else uint64(1)))
            if is_log:
                bit = (logs[p] & uint64(1)) | uint64(status[r] >= ERROR_LOG)
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
    return slots[uint64(at)] if at < slots.size else np.int32(-1)


@inlined
def row_of(s, element, variant, variant_keys, variant_rows, met, met_row):
    """The row of one variant of the element in slot s, -1 when it is not known. `met` uint64[slots] has the variant
    that was last asked for and `met_row` int32[slots] its row, if any: mostly it is asked for again, and the table is
    too large to stay at hand."""
    k = uint64(s)
    if met[k] != variant or met_row[k] < 0:
        met[k] = variant
        met_row[k] = find(variant_keys, variant_rows, variant_key(element, variant))
    return met_row[k]


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


@allocating_helper
def judge(
    offsets, event, kind, status, parent, service, logs, calls, last, sibling, callee, named, column, slots,
    variant_keys, variant_rows, met, met_row, nats, new_nats, usual_nats, asks, seen, seen_min, blamed, blamed_by,
    level, sums, usual_sums, counts, hits, hit, least, chain_value, surprise, slot, odd, first,
):  # fmt: skip
    """How surprising each span's logs and calls are, added to `column` of the windows.

    Most are not at all. The places in [m, 2] of those that are ascend in `odd`, those of chain c from `first[c]` to
    `first[c + 1]`; there `surprise` float32[m, 2] and `slot` int32[m, 2] are filled, and nowhere else.
    `asks` int32[slots]: NOT_ASKING, unless all that is known of an operation is that it calls other services. When such
    a call gets no answer, its error and what its caller makes of that are the other service's.
    `named` int32[events]: the service that a template names, else -1. When a service writes an unusual error that
    names another, what else is unusual about it in that chain speaks for the other: `blamed` int32[services] has its
    slot, and `blamed_by` int32[services] is told who complained last. `chain_value` as in `elements.judge`.
    """
    none = np.float32(0.0)
    blames = np.full(blamed.size, -1, np.int32)
    blamers = np.empty(blamed.size, np.int32)
    greatest = np.zeros(blamed.size, np.float32)
    m = event.size
    same = np.zeros(m, np.float32)
    other = np.zeros(m, np.float32)
    n = 0
    for c in range(offsets.size - 1):
        begin, used = n, 0
        elements, most, passed = 0, none, none
        for at in range(offsets[c + 1] - 1, offsets[c] - 1, -1):
            r = uint64(at)
            if kind[r] == 0:
                continue
            own = service[uint64(event[r])]
            top, of_logs, of_calls = none, none, none
            log_slot, call_slot = np.int32(-1), np.int32(-1)
            for what in range(2):
                s = slot_of(slots, event[r], what)
                if s < 0 or seen[uint64(s)] < seen_min:
                    continue
                k = uint64(s)
                variant = logs[r] if what == 0 else calls[r]
                row = row_of(s, 2 * event[r] + what + 1, variant, variant_keys, variant_rows, met, met_row)
                u = _weighed(nats[uint64(row)] if row >= 0 else new_nats[k], least, hit)
                elements += 1
                passed = max(passed, level[k])
                counts[k, column] += 1
                if usual_nats[k] > 0.0:  # memory that nothing changes in is not looked at
                    usual_sums[k, column] += usual_nats[k]
                top = max(top, u)
                u = max(u - other[r], none)
                if what == 1:
                    of_calls, call_slot = u, s
                # Who fails on an answer that is unusual itself does so because of it, however seldom it failed before.
                elif other[r] <= hit or logs[r] & uint64(1) == 0:
                    of_logs, log_slot = u, s
            if of_logs > hit:
                to = _named_by(r, kind, status, event, last, sibling, named)
                if to >= 0 and to != own:
                    if blames[own] < 0:
                        blamers[used] = own
                        used += 1
                    blames[own] = to
            unanswered = of_calls > hit and asks[call_slot] != NOT_ASKING and callee[r] == at
            if of_calls > 0.0:
                odd[n], surprise[r, 1], slot[r, 1] = 2 * at + 1, of_calls, call_slot
                most = max(most, of_calls)
                n += 1
            if of_logs > 0.0 and not unanswered:
                odd[n], surprise[r, 0], slot[r, 0] = 2 * at, of_logs, log_slot
                most = max(most, of_logs)
                n += 1
            p = parent[r]
            if p >= 0 and (top > 0.0 or same[r] > 0.0 or other[r] > 0.0):
                _hand_up(r, p, top, service[event[p]] == own and not unanswered, same, other)
        chain_value[c, 0], chain_value[c, 1], chain_value[c, 2] = most, elements, passed
        first[c + 1] = n
        if n > begin:
            _tell(
                odd[begin:n], surprise, slot, event, service, blames, blamers[:used], greatest, blamed, blamed_by,
                column, sums, counts, hits, hit,
            )  # fmt: skip


@helper
def _tell(
    odd, surprise, slot, event, service, blames, blamers, greatest, blamed, blamed_by, column, sums, counts, hits, hit
):  # fmt: skip
    """Adds the places `odd` of one chain, descending, which ascend afterwards, to the windows of those that they speak
    about; `blames` and `greatest` are empty before and after."""
    for i in range(odd.size // 2):
        odd[i], odd[odd.size - 1 - i] = odd[odd.size - 1 - i], odd[i]
    for place in odd:
        r, what = place // 2, place % 2
        own, s, u = service[event[r]], slot[r, what], surprise[r, what]
        if blames[own] >= 0:
            greatest[own] = max(greatest[own], u)
            continue
        if u > hit:
            hits[s, column] += 1
        sums[s, column] += u
    for own in blamers:
        _blame(own, blames[own], blamed, blamed_by, greatest[own], column, sums, counts, hits)
        blames[own] = -1
        greatest[own] = 0.0


@helper
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

    Fills `values` float64[chains]; what `observe` finds: `hashes` uint64[2, m] and `children` int32[3, m]; and int64,
    as far as there are any, places in [m, 2], the logs and calls of each record: `unusual` of what is surprising, `at`
    of the at most `most` of each chain that are so by themselves (`windows.strongest`). At these places `surprise`
    float32[m, 2] and `slot` int32[m, 2] are filled. Gives the numbers of both.
    """
    last, sibling, callee = children[0], children[1], children[2]
    observe(event, kind, status, parent, service, family, hashes[0], hashes[1], last, sibling, callee)
    chains = offsets.size - 1
    parts, first = np.empty((chains, 3)), np.zeros(chains + 1, np.int64)
    judge(
        offsets, event, kind, status, parent, service, hashes[0], hashes[1], last, sibling, callee, named, column,
        slots, variant_keys, variant_rows, met, met_row, nats, new_nats, usual_nats, asks, seen, seen_min, blamed,
        blamed_by, level, sums, usual_sums, counts, hits, hit, least, parts, surprise, slot, unusual, first,
    )  # fmt: skip
    in_nats(parts, values)
    odd = unusual[: first[chains]]
    found = strongest(first, surprise.reshape(-1)[odd], slot.reshape(-1)[odd], level, own_least, hold, hit, most, at)
    for k in range(found):
        at[k] = odd[at[k]]
    n = 0
    for place in odd:
        if surprise[place // 2, place % 2] > hit:
            unusual[n] = place
            n += 1
    return n, found


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
    variant_rows, met, met_row, count, first, following, distinct, seen, fresh, excess, novelty, kept, stale, due,
    rows_used, rows_max, new,
):  # fmt: skip
    """Counts variants; gives how many are new, and how many slots it is time to `refresh`.

    Not learned are chains not `allowed` and elements in alarm since the chain closed, but for one each `audit_ns`
    unless it holds an error. `new` int64[2 * m, 2] gets the places in [m, 2] and the rows of variants first seen here.
    `novelty` float64[2]: new variants and observations of elements with history, fading by `kept`. `fresh` counts what
    the surprises do not know yet; slots of which they lack too much go into `due`, `stale` bool[slots] says which.
    """
    found, dues = 0, 0
    for c in range(offsets.size - 1):
        if not allowed[c]:
            continue
        for at in range(offsets[c], offsets[c + 1]):
            r = uint64(at)
            if kind[r] == 0:
                continue
            for what in range(2):
                s = slot_of(slots, event[r], what)
                if s < 0:
                    continue
                k = uint64(s)
                variant = logs[r] if what == 0 else calls[r]
                if alarmed_ns[k] >= closed_ns[c] and seen[k] >= YOUNG:
                    broken = what == 0 and (variant & uint64(1)) != 0
                    if broken or closed_ns[c] - audited_ns[k] < audit_ns:
                        continue
                    audited_ns[k] = closed_ns[c]
                element = 2 * event[r] + what + 1
                row = row_of(s, element, variant, variant_keys, variant_rows, met, met_row)
                novelty[1] = novelty[1] * kept + 1.0
                novelty[0] *= kept
                is_new = False
                if row < 0:
                    if seen[k] > 0:
                        novelty[0] += 1.0
                    is_new = distinct[k] < VARIANTS_MAX and rows_used + found < rows_max
                    if is_new:
                        row = rows_used + found
                        put(variant_keys, variant_rows, variant_key(element, variant), row)
                        count[row] = 0
                        following[row] = first[k]
                        first[k] = row
                        distinct[k] += 1
                        new[found, 0], new[found, 1] = 2 * at + what, row
                        found += 1
                    else:
                        excess[k] += 1
                if row >= 0:
                    count[uint64(row)] += 1
                seen[k] += 1
                fresh[k] += 1
                if not stale[k] and (is_new or fresh[k] >= STALE * seen[k]):
                    stale[k] = True
                    due[dues] = s
                    dues += 1
    return found, dues


@helper
def unknown(event, kind, slots, out):
    """Fills `out` with the rows of spans whose operation has no slot, and returns how many there are."""
    n = 0
    for at in range(event.size):
        r = uint64(at)
        if kind[r] != 0 and slot_of(slots, event[r], 0) < 0:
            out[n] = at
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
    stale, due = np.zeros(alarmed_ns.size, np.bool_), np.empty(alarmed_ns.size, np.int64)
    found, dues = count_variants(
        offsets, event, kind, hashes[0], hashes[1], allowed, closed_ns, alarmed_ns, audited_ns, audit_ns, slots,
        variant_keys, variant_rows, met, met_row, count, first, following, distinct, seen, fresh, excess, novelty, kept,
        stale, due, rows_used, count.size, new,
    )  # fmt: skip
    refresh(
        due[:dues], first, following, count, seen, fresh, excess, novelty_rate(novelty), shrink, least, hit, nats,
        new_nats, usual_nats,
    )  # fmt: skip
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
    for slot in slots:
        s = uint64(slot)
        fresh[s] = 0
        total = seen[s] + shrink
        once = excess[s]
        usual = 0.0
        a = first[s]
        while a >= 0:
            own, rarer = count[uint64(a)], 0.0
            b = first[s]
            while b >= 0:
                other = count[uint64(b)]
                rarer += other if other <= own else 0.0
                b = following[uint64(b)]
            if own == 1:
                once += 1
            size = np.float32(max(0.0, -math.log(min((rarer + excess[s] + shrink * rate) / total, 1.0))))
            nats[uint64(a)] = size
            usual += own * _weighed(size, least, hit)
            a = following[uint64(a)]
        usual_nats[s] = usual / total
        new_nats[s] = max(0.0, -math.log(min((once + 0.5 + shrink * rate) / total, 1.0)))
