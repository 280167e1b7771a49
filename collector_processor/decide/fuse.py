"""Calibrated p-values of many detectors -> one score in 0-1 and one severity per chain.

How it works. The seed's equation 4, s = l1*d_rec + l2*d_seq + l3*d_ctx, over calibrated components with d = p ** -1/2:
a weighted power mean of p-values, valid under dependence (Vovk and Wang 2020). Order -1/2 stands half way between the
sum of -ln p, which drowns one component that is sure among others that have nothing to say, and the harmonic mean,
which takes three that agree for no more than the surest of them. A component that several detectors feed takes the
least of their p-values, times their number, so that a further detector adds sight and not noise. S = 2 ln s is then
calibrated a second time (`calibrate.py`). While a chain's flow and tenant have no history, the p-values that detectors
put on their own findings are combined by the weighted Cauchy rule (Liu and Xie 2020). A certain rule violation needs
neither.

Three thresholds follow one another. *Statistical*: p within the budget's limit makes a chain unusual (info). *Model*:
the score, that is how far out it is whatever the traffic of its flow, makes it a warning or, when something is
broken, critical. *Business*: rules, money and the calendar raise or lower that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collector_processor.config import BusinessConfig, DecideConfig
from collector_processor.model import F64, I32, Category, Findings, Kind, Severity

INFO, WARNING, CRITICAL = int(Severity.INFO), int(Severity.WARNING), int(Severity.CRITICAL)
P_CERTAIN = 1e-60  # of a chain that violates a certain rule
P_UNSURE = 0.5  # of a detector without a finding in the Cauchy combination: it says nothing either way

CATEGORY = np.zeros(len(Kind), np.uint8)  # of each kind of finding; a rule violation brings its own
for _kinds, _category in (
    ((Kind.SLOW_OPERATION, Kind.SLOW_CALL, Kind.ERROR, Kind.UNUSUAL_LOG, Kind.MISSING_LOG), Category.SYSTEM),
    ((Kind.UNSEEN_CALL, Kind.MISSING_CALL, Kind.DRIFT), Category.SYSTEM),
    ((Kind.NEW_SEQUENCE, Kind.INTERRUPTED_SEQUENCE, Kind.UNUSUAL_CONTENT), Category.OPERATIONAL),
    ((Kind.UNLIKELY_SEQUENCE, Kind.UNUSUAL_CALLS), Category.OPERATIONAL),
    ((Kind.DISTRIBUTION_SURGE, Kind.DISTRIBUTION_DROP, Kind.RATE_SURGE, Kind.RATE_DROP), Category.OPERATIONAL),
    ((Kind.RULE_VIOLATION,), Category.COMPLIANCE),
):
    CATEGORY[list(_kinds)] = _category

DAMAGE = np.zeros(len(Kind), np.bool_)  # kinds that say something is broken, not merely new
DAMAGE[
    [
        *(Kind.INTERRUPTED_SEQUENCE, Kind.RULE_VIOLATION, Kind.MISSING_LOG, Kind.MISSING_CALL, Kind.ERROR),
        *(Kind.SLOW_OPERATION, Kind.SLOW_CALL),
    ]
] = True


def parts_of(components: Sequence[str], weights: Mapping[Any, float]) -> tuple[tuple[str, ...], I32, F64]:
    """(parts, [d] the part of each detector, [parts] its weight, 1 unless `weights` says otherwise)."""
    parts = tuple(dict.fromkeys(components))
    part = np.array([parts.index(name) for name in components], np.int32)
    return parts, part, np.array([weights.get(name, 1.0) for name in parts], np.float64)


def cauchy(findings: Findings, chains: int, weights: F64) -> F64:
    """[chains] weighted Cauchy combination of each detector's least finding p-value; 1 for a chain without findings.

    `weights` [d] of the detectors.
    """
    least = np.full((chains, weights.size), np.inf)
    np.minimum.at(least, (findings["chain"], findings["detector"]), findings["p"])
    said = np.isfinite(least)
    angles = np.tan((0.5 - np.where(said, np.maximum(least, 1e-300), P_UNSURE)) * np.pi)
    statistic = angles @ (weights / max(float(weights.sum()), 1e-9))
    p = np.where(statistic > 1e6, 1.0 / (np.pi * np.maximum(statistic, 1.0)), 0.5 - np.arctan(statistic) / np.pi)
    return np.where(said.any(axis=1), np.clip(p, P_CERTAIN, 1.0), 1.0)


def grade(score: float, damage: bool, config: DecideConfig) -> int:
    """Severity of an unusual chain by the model threshold; `damage`: whether something about it is broken."""
    if score < config.score_warning:
        return INFO
    return CRITICAL if damage and score >= config.score_critical else WARNING


def weigh(severity: int, amount: float | None, shift: int, business: BusinessConfig) -> int:
    """Severity of an unusual chain after the business threshold.

    `amount` is the money that the chain moves, None when unknown; `shift` the calendar's -1, 0 or 1.
    """
    if amount is not None and business.amount_critical is not None and amount >= business.amount_critical:
        return CRITICAL
    if amount is not None and business.amount_minor is not None and amount < business.amount_minor:
        return INFO
    return min(max(severity + shift, INFO), CRITICAL)
