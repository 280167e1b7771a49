"""Measures against values worked out by hand and against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.evaluation import measures

LABELLED = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9])), min_size=2, max_size=40)


def arrays(rows: list[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])


@given(LABELLED)
def test_roc_auc_is_the_share_of_pairs_in_order(rows: list[tuple[bool, float]]) -> None:
    anomalous, score = arrays(rows)
    positive, negative = score[anomalous], score[~anomalous]
    found = measures.roc_auc(anomalous, score)
    if not positive.size or not negative.size:
        assert found is None
        return
    pairs = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert found == pytest.approx(pairs)


@given(LABELLED)
def test_auc_pr_is_the_sum_over_thresholds(rows: list[tuple[bool, float]]) -> None:
    anomalous, score = arrays(rows)
    if not anomalous.any():
        assert measures.auc_pr(anomalous, score) is None
        return
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        made = measures.decisions(anomalous, score >= threshold)
        area += (made.recall - recall_before) * made.precision
        recall_before = made.recall
    assert measures.auc_pr(anomalous, score) == pytest.approx(area)


@given(LABELLED)
def test_the_best_threshold_is_best(rows: list[tuple[bool, float]]) -> None:
    anomalous, score = arrays(rows)
    best = measures.best_threshold(anomalous, score)
    if not anomalous.any():
        assert best == float("inf")
        return
    reached = measures.decisions(anomalous, score >= best).f1
    assert reached == pytest.approx(max(measures.decisions(anomalous, score >= t).f1 for t in score))


def test_decisions_by_hand() -> None:
    made = measures.decisions(np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool))
    assert (made.precision, made.recall, made.false_positive_rate) == (2 / 3, 2 / 3, 0.5)
    assert made.f1 == pytest.approx(2 / 3)
    nothing = measures.decisions(np.zeros(3, bool), np.zeros(3, bool))
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.false_positive_rate) == (0.0, 0.0, 0.0, 0.0)


def test_a_constant_score_ranks_like_chance() -> None:
    anomalous = np.arange(10) < 3
    assert measures.roc_auc(anomalous, np.ones(10)) == 0.5
    assert measures.auc_pr(anomalous, np.ones(10)) == pytest.approx(0.3)


def test_j_rewards_finding_and_charges_waiting() -> None:
    assert measures.j_value(0.8, 0.9, 0.1) == pytest.approx(1.6)
    assert measures.j_value(0.8, 0.9, 0.1, alpha=2, beta=0, gamma=10) == pytest.approx(0.6)
