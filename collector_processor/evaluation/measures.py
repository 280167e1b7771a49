"""The measures of detection, each written out: rankings (ROC AUC, AUC-PR), decisions (precision, recall, F1), and J.

How it works. Plain numpy over scores and labels. Ties count half in ROC AUC, and in AUC-PR a group of equal scores is
one step, so that no order among equals can flatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collector_processor.model import F64, Bool


@dataclass(frozen=True, slots=True)
class Decisions:
    """Counts of one set of decisions."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def precision(self) -> float:
        """Right among the flagged; 0 when nothing is flagged."""
        return self.true_positive / max(1, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Flagged among the anomalous; 0 when there are none."""
        return self.true_positive / max(1, self.true_positive + self.false_negative)

    @property
    def false_positive_rate(self) -> float:
        """Flagged among the normal; 0 when there are none."""
        return self.false_positive / max(1, self.false_positive + self.true_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        wrong = self.false_positive + self.false_negative
        return 2 * self.true_positive / max(1, 2 * self.true_positive + wrong)


def decisions(anomalous: Bool, flagged: Bool) -> Decisions:
    """Counts for labels and decisions [n]."""
    return Decisions(
        int(np.sum(anomalous & flagged)),
        int(np.sum(~anomalous & flagged)),
        int(np.sum(anomalous & ~flagged)),
        int(np.sum(~anomalous & ~flagged)),
    )


def roc_auc(anomalous: Bool, score: F64) -> float | None:
    """The probability that an anomalous chain scores above a normal one, ties half; None without both."""
    positives, negatives = int(anomalous.sum()), int((~anomalous).sum())
    if positives == 0 or negatives == 0:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2.0)[inverse]
    return float((ranks[anomalous].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_pr(anomalous: Bool, score: F64) -> float | None:
    """Average precision: sum of precision times gain in recall over falling thresholds; None without anomalous ones."""
    positives = int(anomalous.sum())
    if positives == 0:
        return None
    order = np.argsort(-score, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    right = np.cumsum(anomalous[order])[last_of_ties]
    gain = np.diff(np.concatenate([[0], right])) / positives
    return float(np.sum(gain * right / (last_of_ties + 1)))


def best_threshold(anomalous: Bool, score: F64) -> float:
    """The threshold with the greatest F1 in hindsight (the highest of equals); infinite without anomalous ones."""
    positives = int(anomalous.sum())
    if positives == 0:
        return float("inf")
    order = np.argsort(-score, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    right = np.cumsum(anomalous[order])[last_of_ties]
    f1 = 2 * right / (last_of_ties + 1 + positives)
    return float(score[order][last_of_ties[np.argmax(f1)]])


def j_value(f1: float, recall: float, p99_s: float, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> float:
    """J = alpha * F1 + beta * recall - gamma * P99, the latter in seconds."""
    return alpha * f1 + beta * recall - gamma * p99_s
