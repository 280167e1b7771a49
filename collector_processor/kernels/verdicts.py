"""Kernels behind `decide/verdicts.py`: the findings of a batch chain by chain, and which of its chains are unusual."""

from __future__ import annotations

import math

from collector_processor.kernels.jit import kernel

USUAL, NEW, BROKEN, FORBIDDEN = 0, 1, 2, 3  # states of a chain that is to be learned or not


@kernel
def collate(found, damaging, damage_max, violation, findings, offsets, damage, best):
    """Fills `findings` [f] with those that were `found` [f], by chain and else in their order; and per chain: where its
    findings begin (`offsets` [n + 1]), whether one of them says that something is broken (`damage`, of the kinds that
    `damaging` bool[kinds] names, up to `damage_max`), and the row of the most unlikely one (`best`, -1 for a chain
    without). Returns whether any is of the kind `violation`."""
    any_violation = False
    chains = damage.size
    offsets[:] = 0
    for i in range(found.size):
        offsets[found[i]["chain"] + 1] += 1
    for c in range(chains):
        offsets[c + 1] += offsets[c]
        damage[c] = False
        best[c] = -1
    for i in range(found.size):
        c = found[i]["chain"]
        at = offsets[c]  # where the next one of the chain goes; in the end, where those of the next chain begin
        offsets[c] = at + 1
        findings[at] = found[i]
        damage[c] |= damaging[found[i]["kind"]] and found[i]["p"] <= damage_max
        any_violation |= found[i]["kind"] == violation
        if best[c] < 0 or found[i]["p"] < findings[best[c]]["p"]:
            best[c] = at
    for c in range(chains, 0, -1):
        offsets[c] = offsets[c - 1]
    offsets[0] = 0
    return any_violation


@kernel
def score_of(p, half):
    """The score in 0-1 of a p-value: 0 at p = 1, 0.5 at p = `half`, and still rising however small p is."""
    nats = 0.0 - math.log(p)  # not -0.0 at p = 1
    return nats / (nats - math.log(half))


@kernel
def judge(p, flow, limits, suspect_max, inside, inside_max, prior, half, damage, unusual, score, state):
    """Fills, per chain of p-value `p` [n] and `flow` [n]: whether it is `unusual`, its `score` once it is known whether
    an incident is open where it went through, and what learning has to know of it (`state`).

    Unusual is p up to the flow's limit (`limits` [flows], negative flows are 0), suspect p up to `suspect_max`; of
    chains `inside` an incident (bool[n], or empty when none is open), p up to `inside_max` is both, and the score is
    that of `prior` times p. Suspect chains with `damage` [n] are broken. Returns whether any chain is unusual.
    """
    any_unusual = False
    for c in range(p.size):
        unusual[c] = p[c] <= limits[max(flow[c], 0)]
        suspect = p[c] <= suspect_max
        posterior = p[c]
        if inside.size:
            if inside[c]:
                unusual[c] |= p[c] <= inside_max
                posterior *= prior
            suspect |= unusual[c]
        score[c] = score_of(posterior, half)
        state[c] = USUAL if not suspect else BROKEN if damage[c] else NEW
        any_unusual |= unusual[c]
    return any_unusual
