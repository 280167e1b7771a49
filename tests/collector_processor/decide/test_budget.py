"""The alert budget: limits follow traffic, and chance is told from trouble."""

from __future__ import annotations

import numpy as np
import pytest

from collector_processor.decide.budget import Budget
from collector_processor.kernels.budget import LIMIT_FIRST, MEMORY_CHAINS
from collector_processor.kernels.verdicts import BROKEN, FORBIDDEN, NEW, USUAL

S = 1_000_000_000
START = 1_700_000_000 * S


def run(budget: Budget, per_epoch: dict[int, tuple[int, int]], epochs: int, start: int = START) -> int:
    """Ends `epochs` epochs of 10 s with (chains, unusual ones) per flow in each; returns the last boundary."""
    for epoch in range(1, epochs + 1):
        for flow, (chains, unusual) in per_epoch.items():
            budget.count(np.full(chains, flow, np.int32), np.arange(chains) < unusual)
        budget.advance(start + epoch * 10 * S)
    return start + epochs * 10 * S


def limit(budget: Budget, flow: int) -> float:
    return float(budget.limits[flow])


def test_the_limit_is_the_budget_over_the_chains_a_day() -> None:
    budget = Budget(6.0, 0.02)
    run(budget, {0: (100, 0), 3: (2, 0)}, 60)
    assert limit(budget, 0) == pytest.approx(6 / 864_000, rel=0.15)
    assert limit(budget, 3) == pytest.approx(6 / 17_280, rel=0.15)
    assert budget.chains_per_day(0) == pytest.approx(864_000, rel=0.15)


def test_a_flow_never_seen_has_the_first_limit() -> None:
    budget = Budget(6.0, 0.02)
    assert limit(budget, 7) == LIMIT_FIRST
    assert budget.chains_per_day(7) is None


def test_a_thin_flow_stops_at_the_greatest_probability() -> None:
    budget = Budget(6.0, 0.02)
    now = run(budget, {0: (1, 0)}, 1)
    for hour in range(1, 30):
        budget.count(np.zeros(1, np.int32), np.zeros(1, np.bool_))
        budget.advance(now + hour * 3600 * S)
    assert limit(budget, 0) == 0.02


def test_a_flow_that_was_silent_for_months_has_a_limit() -> None:
    budget = Budget(6.0, 0.02)
    now = run(budget, {0: (10, 0), 1: (10, 0)}, 10)
    run(budget, {1: (1, 0)}, 1, start=now + 90 * 86_400 * S)
    assert limit(budget, 0) == 0.02


def cleared(budget: Budget, state: int, uniform: float = 0.9, inside: bool | None = None) -> list[bool]:
    """Which chains of flows 0-2 may train, when a tenth of them is sampled."""
    flow, states = np.arange(3, dtype=np.int32), np.full(3, state, np.uint8)
    of_incident = np.zeros(0, np.bool_) if inside is None else np.full(3, inside)
    return list(budget.clear(states, flow, np.full(3, uniform), 0.1, of_incident))


def test_a_few_alarms_are_chance_and_many_are_not() -> None:
    budget = Budget(6.0, 0.02)
    now = run(budget, {0: (10, 0), 1: (10, 0), 2: (10, 0)}, 30)
    run(budget, {0: (10, 0), 1: (10, 1), 2: (10, 9)}, 1, start=now)
    assert cleared(budget, BROKEN) == [True, True, False]
    assert cleared(budget, BROKEN, uniform=0.05) == [True, True, True]
    assert cleared(budget, BROKEN, inside=True) == [False, False, False]
    assert cleared(budget, BROKEN, inside=False) == [True, True, False]
    assert cleared(budget, NEW) == cleared(budget, USUAL, inside=True) == [True, True, True]
    assert cleared(budget, FORBIDDEN) == [False, False, False]
    assert cleared(budget, NEW, uniform=0.05, inside=True) == [False, False, False]
    run(budget, {2: (10, 9)}, int(3 * MEMORY_CHAINS / 10), start=now + 10 * S)
    assert cleared(budget, NEW, uniform=0.05, inside=True) == [False, False, True]
    assert cleared(budget, NEW, inside=True) == [False, False, False]


def test_grouping_order_and_empty_epochs_change_nothing() -> None:
    rng = np.random.default_rng(0)
    flow, unusual = rng.integers(0, 5, 400).astype(np.int32), rng.random(400) < 0.1
    one, two = Budget(6.0, 0.02), Budget(6.0, 0.02)
    order = rng.permutation(400)
    for boundary in (10, 20, 50):
        one.count(flow, unusual)
        one.advance(START + boundary * S)
        for part in np.array_split(order, 9):
            two.count(flow[part], unusual[part])
        for empty in range(3):
            two.advance(START + boundary * S + empty)
    assert one.limits.tobytes() == two.limits.tobytes()


def test_a_restored_budget_goes_on_the_same() -> None:
    one = Budget(6.0, 0.02)
    now = run(one, {0: (40, 2), 2: (3, 1)}, 20)
    one.count(np.zeros(5, np.int32), np.ones(5, np.bool_))
    two = Budget(6.0, 0.02)
    two.restore(one.snapshot())
    for budget in (one, two):
        run(budget, {0: (4, 0), 3: (1, 0)}, 2, start=now)
    assert one.limits.tobytes() == two.limits.tobytes()
    assert cleared(one, BROKEN) == cleared(two, BROKEN)
