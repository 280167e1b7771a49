"""What a deviation is worth depends on how large deviations of the flow usually get."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.chain_sequence.extremes import KEPT, Extremes


def fed(values: list[float]) -> Extremes:
    extremes = Extremes(5.0, 2.0)
    for value in values:
        extremes.current[0] = value
        extremes.end_slice(np.arange(16) == 0)
    return extremes


def test_the_same_deviation_is_improbable_for_a_quiet_flow_and_usual_for_a_restless_one() -> None:
    rng = np.random.default_rng(1)
    quiet = fed(rng.gumbel(2.0, 0.8, KEPT).clip(0).tolist())
    restless = fed(rng.gumbel(15.0, 4.0, KEPT).tolist())
    assert quiet.p(0, 15.0) < 1e-4
    assert restless.p(0, 15.0) > 0.3


@pytest.mark.slow
def test_p_values_of_what_it_was_fed_with_are_about_uniform() -> None:
    rng = np.random.default_rng(2)
    below = []
    for _ in range(60):
        extremes = fed(rng.gumbel(4.0, 1.5, KEPT).clip(0).tolist())
        below += [extremes.p(0, float(value)) < 0.05 for value in rng.gumbel(4.0, 1.5, 100)]
    assert 0.02 < np.mean(below) < 0.09


def test_one_incident_does_not_make_a_flow_deaf() -> None:
    calm = fed([3.0] * 20)
    after = fed([3.0] * 20 + [34.0])
    assert after.p(0, 34.0) < 1e-6
    assert after.p(0, 34.0) > calm.p(0, 34.0)


def test_without_history_the_prior_speaks() -> None:
    extremes = Extremes(5.0, 2.0)
    assert 0.3 < extremes.p(0, 5.0) < 0.6
    assert extremes.p(0, 25.0) < 1e-5
    assert extremes.p(0, 20.0) > extremes.p(0, 25.0) > 0.0
