"""Kernel behind `decide/verdicts.py`: which chains of a batch are unusual or suspect, and whether they are broken."""

from __future__ import annotations

from collector_processor.kernels.jit import kernel

USUAL, NEW, BROKEN, FORBIDDEN = 0, 1, 2, 3  # states of a chain that is to be learned or not


@kernel
def judge(
    p, limit, suspect_max, inside, inside_max, prior, findings, damaging, damage_max, offsets, damage, unusual,
    posterior, state,
):  # fmt: skip
    """Fills, per chain of p-value `p` [n]: where its findings begin (`offsets` [n + 1]), whether one of them says that
    something is broken (`damage`), whether the chain is `unusual`, its p-value once it is known whether an incident is
    open where it went through (`posterior`), and what learning has to know of it (`state`). `findings` are sorted by
    chain; `damaging` bool[kinds] says which kinds are about something broken.

    Unusual is p up to `limit` [n], suspect p up to `suspect_max`; of chains `inside` an incident (bool[n], or empty
    when none is open), p up to `inside_max` is both. Returns whether any chain is unusual.
    """
    any_unusual = False
    at = 0
    for c in range(p.size):
        offsets[c] = at
        damage[c] = False
        while at < findings.size and findings[at]["chain"] == c:
            damage[c] |= damaging[findings[at]["kind"]] and findings[at]["p"] <= damage_max
            at += 1
        unusual[c] = p[c] <= limit[c]
        suspect = p[c] <= suspect_max
        posterior[c] = p[c]
        if inside.size:
            if inside[c]:
                unusual[c] |= p[c] <= inside_max
                posterior[c] = p[c] * prior
            suspect |= unusual[c]
        state[c] = USUAL if not suspect else BROKEN if damage[c] else NEW
        any_unusual |= unusual[c]
    offsets[p.size] = at
    return any_unusual
