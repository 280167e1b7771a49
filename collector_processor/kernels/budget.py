"""Kernels behind `decide/budget.py`: what an epoch's counts do to rate, alarm share and limit of each flow."""

from __future__ import annotations

import math

from collector_processor.kernels.jit import kernel
from collector_processor.kernels.verdicts import BROKEN, NEW, USUAL

DAY_S = 86_400.0
MEMORY_S = 3600.0
MEMORY_CHAINS = 64.0
LIMIT_MIN = 1e-7
LIMIT_FIRST = 1e-4  # until a flow's rate is known
SHARE_BY_CHANCE = 0.05  # unusual chains among the last 64 that chance alone explains: about two or three
SHARE_CHANGED = 0.5  # from which on it is the flow that has changed
PRIOR_S = 60.0  # how long the first chain of a flow counts as observed: one chain is no rate


@kernel
def count(flow, unusual, pending):
    """Adds chains to `pending` int64[flows, 2]: all, and those that are `unusual` (not 0). Negative flows are 0."""
    for c in range(flow.size):
        f = max(flow[c], 0)
        pending[f, 0] += 1
        pending[f, 1] += unusual[c] != 0


@kernel
def fold_epoch(pending, chains, seconds, share, limit, elapsed_s, alerts_per_day, most):
    """Folds `pending` int64[flows, 2] (chains, unusual ones) of the last `elapsed_s` in, and zeroes it."""
    fade = math.exp(-elapsed_s / MEMORY_S)
    for f in range(chains.size):
        new = pending[f, 0]
        chains[f] = chains[f] * fade + new
        if seconds[f] > 0.0:
            seconds[f] = seconds[f] * fade + elapsed_s
        elif new > 0:
            seconds[f] = max(elapsed_s, PRIOR_S)
        if new > 0:
            kept = math.exp(-new / MEMORY_CHAINS)
            share[f] = share[f] * kept + (1.0 - kept) * pending[f, 1] / new
            pending[f] = 0
    set_limits(chains, seconds, alerts_per_day, most, limit)


@kernel
def set_limits(chains, seconds, alerts_per_day, most, limit):
    """Spreads the budget over the chains a day of each flow that has been seen."""
    for f in range(chains.size):
        if seconds[f] > 0.0:
            per_day = max(chains[f] / seconds[f] * DAY_S, 1e-6)
            limit[f] = min(max(alerts_per_day / per_day, LIMIT_MIN), most)


@kernel
def clear(state, flow, uniform, audit_share, inside, share, limit, cleared):
    """Fills `cleared` [n]: which chains of `state` [n] and `flow` [n] may train. `share` and `limit` are those of the
    flows; `uniform` [n] is a number in 0-1 that belongs to the chain, below `audit_share` it is sampled. Of chains
    `inside` an incident (bool[n], or empty when none is open) only sampled new ones of a changed flow train."""
    for c in range(state.size):
        f = max(flow[c], 0)
        new, sampled = state[c] == NEW, uniform[c] < audit_share
        cleared[c] = state[c] == USUAL
        if new or state[c] == BROKEN:
            by_chance = share[f] <= max(SHARE_BY_CHANCE, 3.0 * limit[f])
            cleared[c] = (new or sampled or by_chance) and not (inside.size and inside[c])
            cleared[c] |= new and sampled and share[f] >= SHARE_CHANGED
