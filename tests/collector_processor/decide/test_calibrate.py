"""Calibration holds its promise on scores of any shape, backs off while it knows little, and survives a restart."""

from __future__ import annotations

import numpy as np
import pytest

from collector_processor.decide.calibrate import Calibrated, Calibrator, drawn_hash, uniform_hash
from collector_processor.kernels import calibrate as kernels
from collector_processor.kernels.calibrate import COLD, OWN, POOLED
from collector_processor.model import F64, ChainBatch, Symbols
from tests.builders import chains, span

WEIGHTS = np.array([1.0, 1.0])
PART = np.array([0, 1], np.int32)


def batch_of(n: int, *, flows: int = 1, first: int = 1, symbols: Symbols | None = None) -> ChainBatch:
    roots = [span(f"gateway:op{number % flows}", 10) for number in range(n)]
    return chains(symbols or Symbols(), roots, first_trace=first)


def with_nan(values: F64) -> F64:
    return np.column_stack([values, np.full(len(values), np.nan)])


def judged(calibrator: Calibrator, values: F64, batch: ChainBatch) -> Calibrated:
    """What calibration says of chains with `values` [n, d], the first of `batch` otherwise."""
    n = len(values)
    return calibrator.calibrate(np.ascontiguousarray(values.T), batch.flow[:n], batch.tenant[:n])


def trained(n: int = 300, seed: int = 0) -> tuple[Calibrator, ChainBatch]:
    calibrator = Calibrator(("a", "b"), PART, WEIGHTS, 300, 50)
    batch = batch_of(n)
    values = np.random.default_rng(seed).exponential(1.0, (n, 2))
    calibrator.learn(with_nan(values), batch, np.ones(n, np.bool_))
    return calibrator, batch


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["exponential", "normal", "uniform", "lognormal", "integers"])
def test_one_in_a_hundred_normal_chains_has_a_p_value_of_one_per_cent(shape: str) -> None:
    """The rate of p <= alpha among fresh scores of the same distribution is alpha, for the parts and for the whole."""
    rng = np.random.default_rng(5)

    def draw(n: int) -> F64:
        if shape == "integers":
            return rng.poisson(3.0, (n, 2)).astype(np.float64)
        return np.asarray(getattr(rng, shape)(size=(n, 2)), np.float64)

    calibrator = Calibrator(("a", "b"), PART, WEIGHTS, 300, 50)
    calibrator.learn(with_nan(draw(300)), batch_of(300), np.ones(300, np.bool_))
    low, low_fused = [], []
    for first in range(1000, 21_000, 200):
        batch = batch_of(200, first=first)
        values = draw(200)
        out = judged(calibrator, values, batch)
        low.append((out.p <= 0.05).mean())
        low_fused.append((out.p_fused <= 0.05).mean())
        calibrator.learn(np.column_stack([values, out.fused]), batch, np.ones(200, np.bool_))
    assert 0.0 < np.mean(low) < 0.065
    assert 0.01 < np.mean(low_fused) < 0.07
    if shape not in {"integers", "uniform"}:  # scores below one nat are judged with care
        assert np.mean(low) > 0.035


def test_history_decides_who_is_compared_with_whom() -> None:
    symbols = Symbols()
    calibrator = Calibrator(("a", "b"), PART, WEIGHTS, 300, 50)
    batch = batch_of(45, flows=3, symbols=symbols)
    values = np.random.default_rng(0).exponential(1.0, (45, 2))
    out = judged(calibrator, values, batch)
    assert set(out.level) == {COLD}
    assert (out.p_fused == 1).all()
    assert np.isnan(out.fused).all()
    calibrator.learn(with_nan(values), batch, np.ones(45, np.bool_))
    assert set(judged(calibrator, values, batch).level) == {COLD}
    calibrator.learn(with_nan(values), batch, np.ones(45, np.bool_))
    assert set(judged(calibrator, values, batch).level) == {POOLED}
    for _ in range(2):
        calibrator.learn(with_nan(values), batch, np.ones(45, np.bool_))
    assert set(judged(calibrator, values, batch).level) == {OWN}


def test_a_flow_is_judged_by_its_own_history() -> None:
    """Two flows whose scores lie far apart are both normal."""
    symbols = Symbols()
    batch = batch_of(600, flows=2, symbols=symbols)
    second = batch.flow == batch.flow.max()
    values = np.random.default_rng(0).exponential(1.0, (600, 2)) + np.where(second, 50.0, 0.0)[:, None]
    calibrator = Calibrator(("a", "b"), PART, WEIGHTS, 300, 50)
    calibrator.learn(with_nan(values), batch, np.ones(600, np.bool_))
    odd = np.full((600, 2), 12.0)
    p = judged(calibrator, odd, batch).p_fused
    assert p[~second].max() < 1e-3
    assert p[second].min() > 0.95


def test_what_is_not_normal_is_not_learned() -> None:
    calibrator, batch = trained()
    before = judged(calibrator, np.full((1, 2), 9.0), batch)
    calibrator.learn(with_nan(np.full((300, 2), 9.0)), batch, np.zeros(300, np.bool_))
    after = judged(calibrator, np.full((1, 2), 9.0), batch)
    assert after.p_fused[0] == before.p_fused[0] < 1e-2


def test_scoring_in_parts_is_scoring_as_a_whole() -> None:
    calibrator, batch = trained()
    values = np.random.default_rng(9).exponential(2.0, (300, 2))
    whole = judged(calibrator, values, batch)
    parts = [judged(calibrator, values[cut], batch.take(cut)) for cut in np.array_split(np.arange(300), 7)]
    assert np.concatenate([part.p_fused for part in parts]).tobytes() == whole.p_fused.tobytes()
    assert np.concatenate([part.p for part in parts], axis=1).tobytes() == whole.p.tobytes()


def test_a_restored_calibration_says_the_same_and_goes_on_the_same() -> None:
    first, batch = trained(n=430)
    second = Calibrator(("a", "b"), PART, WEIGHTS, 300, 50)
    second.restore(first.snapshot())
    values = np.random.default_rng(9).exponential(2.0, (430, 2))
    for _ in range(2):
        one, two = (judged(c, values, batch) for c in (first, second))
        assert one.p_fused.tobytes() == two.p_fused.tobytes()
        assert one.p.tobytes() == two.p.tobytes()
        for c in (first, second):
            c.learn(with_nan(values), batch, np.ones(430, np.bool_))


def test_a_detector_that_is_new_after_a_restart_starts_cold_and_the_others_stay() -> None:
    first, batch = trained()
    second = Calibrator(("b", "c"), PART, WEIGHTS, 300, 50)
    second.restore(first.snapshot())
    values = np.full((1, 2), 9.0)
    one = judged(first, values, batch)
    two = judged(second, values, batch)
    parts = len(WEIGHTS)
    assert two.p[parts:, 0].tolist() == [one.p[parts + 1, 0], 1.0]
    assert two.level[0] == COLD


def test_other_weights_after_a_restart_start_the_fused_score_anew() -> None:
    first, batch = trained()
    second = Calibrator(("a", "b"), PART, np.array([1.0, 3.0]), 300, 50)
    second.restore(first.snapshot())
    assert second.history_of(int(batch.flow[0])) == 0
    second.learn(with_nan(np.ones((1, 2))), batch.take(np.array([0])), np.ones(1, np.bool_))
    assert second.history_of(int(batch.flow[0])) == 300


def test_a_shorter_history_after_a_restart_keeps_the_newest() -> None:
    first = Calibrator(("a",), PART[:1], np.ones(1), 300, 50)
    batch = batch_of(300)
    first.learn(with_nan(np.arange(300.0)[:, None]), batch, np.ones(300, np.bool_))
    second = Calibrator(("a",), PART[:1], np.ones(1), 100, 50)
    second.restore(first.snapshot())
    p = judged(second, np.array([[0.0], [250.0]]), batch).p[0]
    assert p.tolist() == pytest.approx([1.0, 51 / (101 + kernels.PRIOR)])


def test_a_changed_model_starts_its_calibration_anew() -> None:
    calibrator, batch = trained()
    calibrator.forget("b")
    p = judged(calibrator, np.full((1, 2), 9.0), batch).p[:, 0]
    assert p[0] < 0.01
    assert p[1] == 1.0


def test_sampling_depends_on_content_alone() -> None:
    batch = batch_of(500)
    uniform = uniform_hash(batch)
    order = np.random.default_rng(0).permutation(500)
    assert (uniform_hash(batch.take(order)) == uniform[order]).all()
    assert 0.4 < uniform.mean() < 0.6
    assert 0 <= uniform.min() < uniform.max() < 1


def test_a_sample_of_a_sample_is_as_even_as_the_first() -> None:
    batch = batch_of(4000)
    drawn, uniform = drawn_hash(batch), uniform_hash(batch)
    order = np.random.default_rng(1).permutation(len(batch))
    assert (drawn_hash(batch.take(order)) == drawn[order]).all()
    first = drawn < 0.2
    assert first.mean() == pytest.approx(0.2, abs=0.03)
    assert (uniform[first] < 0.1).mean() == pytest.approx(0.1, abs=0.04)


def test_a_component_is_its_detectors_least_p_value_times_their_number() -> None:
    calibrator = Calibrator(("a", "b", "c"), np.array([0, 1, 1], np.int32), np.array([1.0, 2.0]), 300, 50)
    batch = batch_of(300)
    values = np.random.default_rng(0).exponential(1.0, (300, 3))
    calibrator.learn(with_nan(values), batch, np.ones(300, np.bool_))
    out = judged(calibrator, values, batch)
    parts, p = out.p[:2], out.p[2:]
    assert (parts[0] == p[0]).all()
    np.testing.assert_allclose(parts[1], np.minimum(1.0, 2 * p[1:].min(axis=0)))
    np.testing.assert_allclose(out.fused, 2 * np.log(np.array([1.0, 2.0]) @ parts**-0.5 / 3))


def test_a_ring_of_nothing_but_zeros_makes_nothing_impossible() -> None:
    """What a detector says while it is still learning: the first scores after that are no alarms."""
    calibrator = Calibrator(("a",), PART[:1], np.ones(1), 300, 50)
    batch = batch_of(60)
    calibrator.learn(with_nan(np.zeros((60, 1))), batch, np.ones(60, np.bool_))
    p = judged(calibrator, np.array([[0.5], [2.0], [20.0]]), batch).p[0]
    assert p[0] > 0.1
    assert p[1] > 0.02
    assert p[2] < 1e-4


def test_a_probability_that_a_detector_states_is_a_lower_bound() -> None:
    calibrator = Calibrator(("a", "b"), PART, WEIGHTS, 300, 50, stated=("b",))
    batch = batch_of(300)
    calibrator.learn(with_nan(np.full((300, 2), 0.5)), batch, np.ones(300, np.bool_))
    p = judged(calibrator, np.full((1, 2), 6.0), batch).p[:, 0]
    assert p[0] < np.exp(-6.0)
    assert p[1] == pytest.approx(np.exp(-6.0))


def test_where_the_greatest_score_lies_hardly_moves_the_tail_of_the_fused_score() -> None:
    ring = np.sort(np.random.default_rng(3).exponential(1.0, 300))
    outlier = np.append(ring[:-1], ring[-1] + 4.0)
    p = [
        kernels.p_value(ring[-1] + 5.0, ordered, 300, *kernels.fit_tail(ordered, 300, 0.0), kernels.ANCHOR)
        for ordered in (ring, outlier)
    ]
    assert p[1] < 3.0 * p[0]


@pytest.mark.parametrize("alpha", [4e-4, 2e-3])
def test_beyond_a_history_of_300_alarms_stay_within_the_budget(alpha: float) -> None:
    """Fused scores of three independent components, each ring another history: one in 2,500 is an extrapolation."""
    rng = np.random.default_rng(7)

    def fused(n: int) -> F64:
        return np.asarray(2.0 * np.log((rng.random((n, 3)) ** -0.5).mean(axis=1)))

    share = []
    for _ in range(150):
        ring = np.sort(fused(300))
        tail = kernels.fit_tail(ring, 300, 0.0)
        share.append(np.mean([kernels.p_value(x, ring, 300, *tail, kernels.ANCHOR) <= alpha for x in fused(1000)]))
    assert 0.25 * alpha < np.mean(share) < 1.5 * alpha
