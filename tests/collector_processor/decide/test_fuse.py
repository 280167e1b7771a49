"""Fusion: weights, the Cauchy rule, a score that still tells apart what is far out, and the three thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from collector_processor.config import BusinessConfig, DecideConfig
from collector_processor.decide import fuse
from collector_processor.model import Findings, Kind, Severity, no_findings


def found(*rows: tuple[int, int, float]) -> Findings:
    findings = no_findings(len(rows))
    for name, values in zip(("chain", "detector", "p"), zip(*rows, strict=True), strict=True):
        findings[name] = values
    return findings


def test_parts_stand_in_the_order_of_their_first_detector_with_their_weights() -> None:
    parts, part, weights = fuse.parts_of(["rec", "seq", "seq", "ctx"], {"rec": 2.0, "seq": 0.5})
    assert parts == ("rec", "seq", "ctx")
    assert part.tolist() == [0, 1, 1, 2]
    assert weights.tolist() == [2.0, 0.5, 1.0]


def test_one_strong_finding_speaks_for_a_chain_without_history() -> None:
    p = fuse.cauchy(found((0, 0, 1e-8), (2, 1, 0.3)), 3, np.ones(4))
    assert p[0] == pytest.approx(4e-8, rel=0.01)
    assert p[1] == 1.0
    assert 0.3 < p[2] < 0.5


def test_two_findings_that_agree_are_stronger_than_one_and_repeats_are_not() -> None:
    one = fuse.cauchy(found((0, 0, 1e-4)), 1, np.ones(2))[0]
    two = fuse.cauchy(found((0, 0, 1e-4), (0, 1, 1e-4)), 1, np.ones(2))[0]
    again = fuse.cauchy(found((0, 0, 1e-4), (0, 0, 1e-4)), 1, np.ones(2))[0]
    assert two < one == again


@pytest.mark.parametrize("p", [1e-300, 1e-100, 1e-30, 1e-16])
def test_the_cauchy_rule_is_finite_far_out(p: float) -> None:
    combined = fuse.cauchy(found((0, 0, p)), 1, np.ones(1))[0]
    assert combined == pytest.approx(max(p, fuse.P_CERTAIN), rel=1e-6)


def test_the_model_threshold() -> None:
    config = DecideConfig()
    assert fuse.grade(0.4, True, config) == Severity.INFO
    assert fuse.grade(0.6, True, config) == fuse.grade(0.9, False, config) == Severity.WARNING
    assert fuse.grade(0.9, True, config) == Severity.CRITICAL


def test_the_business_threshold() -> None:
    business = BusinessConfig(amount="amount", amount_critical=1e6, amount_minor=10.0)
    assert fuse.weigh(Severity.INFO, 2e6, 0, business) == Severity.CRITICAL
    assert fuse.weigh(Severity.WARNING, 5.0, 0, business) == Severity.INFO
    assert fuse.weigh(Severity.WARNING, None, 0, business) == Severity.WARNING
    assert fuse.weigh(Severity.WARNING, 500.0, 1, business) == Severity.CRITICAL
    assert fuse.weigh(Severity.CRITICAL, 500.0, 1, business) == Severity.CRITICAL
    assert fuse.weigh(Severity.INFO, None, -1, business) == Severity.INFO
    assert fuse.weigh(Severity.CRITICAL, None, -1, business) == Severity.WARNING


def test_every_kind_of_finding_has_a_category() -> None:
    assert all(fuse.CATEGORY[kind] for kind in Kind)
