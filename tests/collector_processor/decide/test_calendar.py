"""The business calendar against datetime, over zones, changes of the clock and holidays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.config import CalendarConfig, PeriodConfig
from collector_processor.decide.calendar import Calendar
from tests.examples import examples

S = 1_000_000_000
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Chatham"]


def ns(zone: str, *at: int) -> int:
    return int(datetime(*at, tzinfo=ZoneInfo(zone)).timestamp()) * S  # type: ignore[arg-type, misc]


@given(st.sampled_from(ZONES), st.integers(1_500_000_000, 1_900_000_000), st.sampled_from([300, 900, 3600]))
@examples(200)
def test_a_slice_is_the_local_time_of_the_week(zone: str, second: int, slice_s: int) -> None:
    local = datetime.fromtimestamp(second, UTC).astimezone(ZoneInfo(zone))
    of_week = local.weekday() * 86_400 + local.hour * 3600 + local.minute * 60 + local.second
    calendar = Calendar(CalendarConfig(), zone)
    assert calendar.slices(np.array([second * S + 5]), slice_s).tolist() == [of_week // slice_s]
    assert calendar.at(second * S).local == local.strftime("%a %H:%M")


def test_a_holiday_has_the_slices_of_a_sunday() -> None:
    calendar = Calendar(CalendarConfig(holidays="DE"), "Europe/Berlin")
    unity, sunday = ns("Europe/Berlin", 2025, 10, 3, 10, 2), ns("Europe/Berlin", 2025, 10, 5, 10, 2)
    slices = calendar.slices(np.array([unity, sunday, unity + 86_400 * S]), 300)
    assert slices[0] == slices[1] != slices[2]
    assert calendar.at(unity).holiday
    assert calendar.at(sunday).holiday is None


@pytest.mark.parametrize(("name", "day"), [("DE-BY", (2025, 1, 6)), ("XNYS", (2025, 7, 4))])
def test_parts_of_countries_and_markets(name: str, day: tuple[int, int, int]) -> None:
    noon = ns("UTC", *day, 12)
    assert Calendar(CalendarConfig(holidays=name), "UTC").at(noon).holiday
    assert Calendar(CalendarConfig(holidays="DE"), "UTC").at(noon).holiday is None


def test_periods_know_days_nights_and_holidays() -> None:
    config = CalendarConfig(
        holidays="DE",
        periods=(
            PeriodConfig(name="session", start="09:00", end="17:30", severity=1),
            PeriodConfig(name="batch", start="22:00", end="02:00", holidays="any", severity=-1),
            PeriodConfig(name="holiday duty", start="08:00", end="12:00", holidays="only"),
        ),
    )
    calendar = Calendar(config, "Europe/Berlin")
    expected = {
        (2025, 10, 1, 9, 0): ("session",),  # Wednesday
        (2025, 10, 1, 8, 59): (),
        (2025, 10, 1, 17, 30): (),
        (2025, 10, 1, 23, 0): ("batch",),
        (2025, 10, 2, 1, 59): ("batch",),
        (2025, 10, 2, 2, 0): (),
        (2025, 10, 3, 10, 0): ("holiday duty",),  # Friday, a holiday
        (2025, 10, 4, 1, 0): ("batch",),  # begun on the holiday
        (2025, 10, 4, 23, 0): (),  # Saturday
        (2025, 10, 5, 1, 0): (),
    }
    for at, periods in expected.items():
        assert calendar.at(ns("Europe/Berlin", *at)).periods == periods, at
    assert calendar.at(ns("Europe/Berlin", 2025, 10, 1, 10)).shift == 1
    assert calendar.at(ns("Europe/Berlin", 2025, 10, 1, 23)).shift == -1


def test_every_quarter_of_a_year_is_remembered_boundedly() -> None:
    calendar = Calendar(CalendarConfig(), "Europe/Berlin")
    start = datetime(2025, 1, 1, tzinfo=UTC)
    for quarter in range(20_000):
        calendar.at(int((start + timedelta(minutes=15 * quarter)).timestamp()) * S)
    assert len(calendar._quarters) <= 4096


@pytest.mark.parametrize(("holidays", "zone"), [("XX", "UTC"), ("DE-XX", "UTC"), (None, "Mars/Olympus"), (None, "")])
def test_what_does_not_exist_is_refused(holidays: str | None, zone: str) -> None:
    with pytest.raises(ValueError, match=r"decide\."):
        Calendar(CalendarConfig(holidays=holidays), zone)
