"""How much comes when."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime

import pytest

from collector_processor.simulator.traffic import (
    CARDS,
    FLOWS,
    NIGHT,
    OFFICE,
    SECOND_NS,
    Calendar,
    arrivals,
    level,
    mean_level,
)

FLOW = {flow.name: flow for flow in FLOWS}
MONDAY_NS = int(datetime(2025, 12, 22, tzinfo=UTC).timestamp()) * SECOND_NS


@pytest.mark.parametrize(
    ("curve", "hour", "expected"),
    [
        (OFFICE, 0.0, 0.05),
        (OFFICE, 9.2, 3.0),
        (OFFICE, 9.1, 2.0),
        (OFFICE, 21.5, 0.125),  # half way from the last point to midnight
        (NIGHT, 2.0, 1.0),
        (NIGHT, 12.0, 0.0),
        (CARDS, 23.999, 0.25),
    ],
)
def test_level_is_straight_between_points(curve, hour, expected):
    assert level(curve, hour) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("curve", [OFFICE, CARDS, NIGHT])
def test_mean_level_is_the_mean(curve):
    steps = 24 * 600
    assert mean_level(curve) == pytest.approx(sum(level(curve, step / 600) for step in range(steps)) / steps, rel=0.01)


def hour_ns(hour: float) -> int:
    return MONDAY_NS + int(hour * 3600 * SECOND_NS)


def test_a_day_has_a_rush_a_night_batch_and_days_off():
    calendar = Calendar(MONDAY_NS)
    assert calendar.rate(FLOW["transfer"], hour_ns(9.2)) > 2 * calendar.rate(FLOW["transfer"], hour_ns(12.5))
    assert calendar.rate(FLOW["settlement_night"], hour_ns(2)) > 0.0
    assert calendar.rate(FLOW["settlement_night"], hour_ns(12)) == 0.0
    saturday_ns = hour_ns(9.2 + 5 * 24)
    assert calendar.rate(FLOW["transfer"], saturday_ns) == pytest.approx(
        0.2 * calendar.rate(FLOW["transfer"], hour_ns(9.2))
    )
    assert calendar.rate(FLOW["settlement_session"], saturday_ns) == 0.0


def test_a_holiday_is_a_day_off():
    holiday = Calendar(MONDAY_NS, holidays=frozenset({date(2025, 12, 22)}))
    for flow in FLOWS:
        ordinary = Calendar(MONDAY_NS).rate(flow, hour_ns(9.5))
        assert holiday.rate(flow, hour_ns(9.5)) == pytest.approx(ordinary * flow.day_off)


def test_speed_compresses_the_day_and_opening_sets_its_beginning():
    opening = datetime(2025, 12, 22, 9, tzinfo=UTC)
    calendar = Calendar(12 * SECOND_NS, speed=86_400 / 60, opening=opening)
    assert calendar.business_time(12 * SECOND_NS) == opening
    assert calendar.business_time(22 * SECOND_NS) == datetime(2025, 12, 22, 13, tzinfo=UTC)
    assert calendar.business_time(72 * SECOND_NS) == datetime(2025, 12, 23, 9, tzinfo=UTC)


def test_swing_flattens_towards_the_mean():
    flow = FLOW["transfer"]
    flat = Calendar(MONDAY_NS, swing=0.0)
    half = Calendar(MONDAY_NS, swing=0.5)
    mean = flow.per_second * mean_level(flow.curve)
    for hour in (0, 9.2, 12, 20):
        assert flat.rate(flow, hour_ns(hour)) == pytest.approx(mean)
        full = Calendar(MONDAY_NS).rate(flow, hour_ns(hour))
        assert half.rate(flow, hour_ns(hour)) == pytest.approx((mean + full) / 2)


def test_arrivals_are_poisson():
    rng = random.Random(5)
    counts = [len(list(arrivals(rng, 3.0, 2.0))) for _ in range(4000)]
    mean = sum(counts) / len(counts)
    variance = sum((count - mean) ** 2 for count in counts) / len(counts)
    assert mean == pytest.approx(6.0, rel=0.03)
    assert variance == pytest.approx(6.0, rel=0.1)
    times = list(arrivals(rng, 50.0, 2.0))
    assert times == sorted(times)
    assert all(0.0 <= at < 2.0 for at in times)
    assert not list(arrivals(rng, 0.0, 100.0))
