"""The clock of the service: it follows the machine's, and a machine whose clock is set back does not stop it."""

from __future__ import annotations

import time

import pytest

from collector_processor.clock import ForwardClock

SECOND = 1_000_000_000


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The monotonic clock, to be set by the test."""
    now = [5 * SECOND]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    return now


def test_it_follows_the_machine_and_goes_on_when_that_is_set_back(steady: list[int]) -> None:
    wall = [100 * SECOND]
    clock = ForwardClock(lambda: wall[0])
    assert clock() == 100 * SECOND
    wall[0], steady[0] = 160 * SECOND, 6 * SECOND
    assert clock() == 160 * SECOND  # a step forward is taken
    wall[0], steady[0] = 40 * SECOND, 9 * SECOND
    assert clock() == 163 * SECOND  # a step back is not, and time passes
    steady[0] = 10 * SECOND
    assert clock() == 164 * SECOND
    wall[0] = 200 * SECOND
    assert clock() == 200 * SECOND


def test_it_is_later_than_an_earlier_run_has_said(steady: list[int]) -> None:
    clock = ForwardClock(lambda: 50 * SECOND)
    clock.not_before(90 * SECOND)
    assert clock() == 90 * SECOND
    clock.not_before(10 * SECOND)
    steady[0] += 7
    assert clock() == 90 * SECOND + 7
