"""Kernels behind `decide/budget.py`: what an epoch's counts do to rate, alarm share and limit of each flow."""

from __future__ import annotations

import math

from collector_processor.kernels.jit import kernel

DAY_S = 86_400.0
MEMORY_S = 3600.0
MEMORY_CHAINS = 64.0
LIMIT_MIN = 1e-7
LIMIT_FIRST = 1e-4  # until a flow's rate is known
PRIOR_S = 60.0  # how long the first chain of a flow counts as observed: one chain is no rate


@kernel
def count(flow, unusual, pending):
    """Adds chains to `pending` int64[flows, 2]: all, and those that are `unusual` (not 0)."""
    for c in range(flow.size):
        pending[flow[c], 0] += 1
        pending[flow[c], 1] += unusual[c] != 0


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
