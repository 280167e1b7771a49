"""Kernels behind `detectors/familiarity.py`: how common each chain's row is in its flow, and what was learned."""

from __future__ import annotations

import math

from collector_processor.kernels.jit import expanded, kernel

BUCKETS = 64  # half-octaves of an effective count, from 2**-8
KNOWN, NEW, COLD, TIMED_OUT = 0, 1, 2, 4  # flags of `known_values`; TIMED_OUT is added to one of the others
TIMEOUT, EVICTED = 1, 2  # model.Outcome


@expanded
def bucket(count):
    """The half-octave of an effective count, 0..BUCKETS - 1."""
    if count <= 0.00390625:
        return 0
    return min(BUCKETS - 1, int(2.0 * math.log2(count) + 16.0))


@kernel
def known_values(rows, outcome, young, trusted, flow, good, bad, ratio, mass, total, seen, value, state):
    """Per chain: -ln(share of the flow's chains on rows at most as frequent), and what is left to look at one by one.

    Adds 1 to `seen[row]` for each chain. A chain that a cap cut short says nothing about the system and gets 0, and so
    does one on a row with `trusted` normal chains. Returns how many chains are neither plainly known nor plainly cold.
    """
    odd = 0
    for c in range(rows.size):
        row = rows[c]
        f = flow[row]
        value[c] = 0.0
        state[c] = COLD
        if outcome[c] == EVICTED:
            continue
        seen[row] += 1
        late = TIMED_OUT if outcome[c] == TIMEOUT else 0
        if total[f] < young:
            state[c] = COLD | late
            odd += late != 0
            continue
        if good[row] <= 0.0 or bad[row] > good[row]:
            state[c] = NEW | late
            odd += 1
            continue
        state[c] = KNOWN | late
        odd += late != 0
        if good[row] >= trusted:
            continue
        own = bucket(good[row] * ratio[row])
        below = 0.0
        everything = 0.0
        for b in range(BUCKETS):
            everything += mass[f, b]
            if b <= own:
                below += mass[f, b]
        share = max(below, 1e-9) / max(everything, 1e-9)
        value[c] = -math.log(min(1.0, max(share, 1.0 / (total[f] + 1.0))))
    return odd


@kernel
def learn_rows(
    rows,
    normal,
    outcome,
    times,
    flow,
    good,
    bad,
    ratio,
    last,
    mass,
    total,
    recent,
    fresh,
    late,
    memory,
    young,
    oddity,
    oddities,
    odd,
    bad_max,
):
    """Counts chains in order; True when a row became known, or stopped being so.

    A row's first normal chain makes it known, and leaves its oddity unless the flow is young: then all is odd.
    """
    changed = False
    for c in range(rows.size):
        row = rows[c]
        f = flow[row]
        if outcome[c] == EVICTED:
            continue
        last[row] = max(last[row], times[c])
        if not normal[c]:
            before = bad[row] > good[row]
            bad[row] = min(bad_max, bad[row] + 1.0)
            changed = changed or before != (bad[row] > good[row])
            continue
        recent[f] = recent[f] * (1.0 - 1.0 / memory) + 1.0
        fresh[f] *= 1.0 - 1.0 / memory
        late[f] = late[f] * (1.0 - 1.0 / memory) + (1.0 if outcome[c] == TIMEOUT else 0.0)
        if good[row] <= 0.0:
            fresh[f] += 1.0
            if total[f] >= young:
                oddity[f, oddities[f] % oddity.shape[1]] = odd[row]
                oddities[f] += 1
            changed = True
        else:
            effective = good[row] * ratio[row]
            mass[f, bucket(effective)] -= effective
        before = bad[row] > good[row]
        good[row] += 1.0
        changed = changed or before != (bad[row] > good[row])
        total[f] += 1.0
        effective = good[row] * ratio[row]
        mass[f, bucket(effective)] += effective
    return changed
