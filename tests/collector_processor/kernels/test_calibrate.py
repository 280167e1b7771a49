"""The calibration kernels against numpy and scipy doing the same the slow way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.kernels import calibrate as kernels
from tests.examples import examples

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.25, -3.0]) | st.floats(-10, 10), min_size=1, max_size=60)


@given(SCORES, st.integers(2, 20))
@examples(60)
def test_a_ring_holds_the_last_scores_in_order_and_sorted(scores: list[float], size: int) -> None:
    arrived, ordered = np.zeros((1, 1, size)), np.zeros((1, 1, size))
    count, head = np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32)
    for x in scores:
        kernels.insert(arrived, ordered, count, head, 0, 0, x)
    last = scores[-size:]
    n = int(count[0, 0])
    assert n == len(last)
    assert ordered[0, 0, :n].tolist() == sorted(last)
    start = int(head[0, 0]) if n == size else 0
    assert np.roll(arrived[0, 0, :n], -start).tolist() == last


@given(SCORES, st.floats(-20, 20))
@examples(60)
def test_p_is_the_exceedance_rank_among_the_ring_and_what_is_imagined_beside_it(scores: list[float], x: float) -> None:
    ordered = np.sort(np.array(scores))
    p = kernels.p_value(x, ordered, ordered.size, 0.1, 1.0)
    reached = int((ordered >= x).sum())
    imagined = kernels.PRIOR * np.exp(-max(x, 0.0))
    whole = ordered.size + 1 + kernels.PRIOR
    if reached:
        assert p == pytest.approx((1 + reached + imagined) / whole)
    else:
        assert 0 < p <= (1 + imagined) / whole


def test_beyond_the_ring_p_goes_on_falling() -> None:
    ordered = np.sort(np.random.default_rng(1).exponential(1.0, 300))
    shape, scale = kernels.fit_tail(ordered, 300, 0.5)
    beyond = [kernels.p_value(ordered[-1] + step, ordered, 300, shape, scale) for step in (0.01, 1, 5, 20, 80)]
    assert beyond == sorted(beyond, reverse=True)
    assert len(set(beyond)) == 5


@pytest.mark.parametrize("excess", [2.0, 4.0])
def test_the_tail_of_an_exponential_is_met_on_average(excess: float) -> None:
    """p beyond the maximum of 300 exponential scores follows the true survival within a factor of three."""
    ratios = []
    for seed in range(60):
        ordered = np.sort(np.random.default_rng(seed).exponential(1.0, 300))
        shape, scale = kernels.fit_tail(ordered, 300, 0.5)
        x = -np.log(1 / 301) + excess
        ratios.append(np.log(kernels.p_value(x, ordered, 300, shape, scale) / np.exp(-x)))
    assert abs(np.mean(ratios)) < np.log(3)


def test_equal_scores_do_not_make_every_other_one_impossible() -> None:
    shape, scale = kernels.fit_tail(np.zeros(300), 300, 0.5)
    assert scale == kernels.SCALE_MIN
    assert kernels.p_value(0.05, np.zeros(300), 300, shape, scale) > 1e-3


def test_an_empty_fused_ring_is_filled_from_the_detectors_rings() -> None:
    """The refilled scores are what the in-ring ranks imply: per component the least, Bonferroni, mean of order -1/2."""
    rng = np.random.default_rng(2)
    values = np.full((70, 4), np.nan)
    values[:, :3] = rng.exponential(1.0, (70, 3))
    size = 60
    arrived, ordered, tail = np.zeros((1, 4, size)), np.zeros((1, 4, size)), np.zeros((1, 4, 2))
    count, head = np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32)
    part, weights = np.array([0, 1, 1], np.int32), np.array([1.0, 2.0])
    row, normal, uniform = np.zeros(70, np.int32), np.ones(70, np.bool_), np.zeros(70)
    kernels.learn_chains(values, row, normal, uniform, 1, part, weights, 50, arrived, ordered, count, head, tail)
    kept = values[-size:, :3]
    ranks = (kept[None, :, :] >= kept[:, None, :]).sum(axis=1) / size
    second = np.minimum(1.0, 2 * ranks[:, 1:].min(axis=1))
    expected = 2 * np.log((ranks[:, 0] ** -0.5 + 2 * second**-0.5) / 3)
    assert count.tolist() == [[60, 60, 60, 60]]
    np.testing.assert_allclose(np.roll(arrived[0, 3], -int(head[0, 3])), expected)
    np.testing.assert_allclose(ordered[0, 3], np.sort(expected))


def test_a_busy_row_keeps_a_sample_and_a_young_one_everything() -> None:
    uniform = np.random.default_rng(3).random(2000)
    row = np.repeat(np.array([0, 1], np.int32), 1000)
    take = np.ones(2000, np.bool_)
    take[:10] = False
    kept = kernels.share_kept(row, take, uniform, np.array([300, 0], np.int32), 300, 32)
    assert not kept[:10].any()
    assert 15 < kept[:1000].sum() < 60
    assert 250 < kept[1000:].sum() < 350
