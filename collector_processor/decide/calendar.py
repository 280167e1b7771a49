"""The business calendar: which slice of the week it is, and which part of the business day.

How it works. Everything follows from `now_ns` and the config. Offset from UTC, day and holiday are constant within a
quarter of an hour (every time zone in use changes on such a boundary), so they are looked up once a quarter and kept;
the rest is integer arithmetic. A holiday counts as a Sunday: people and batches behave like it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from collector_processor.config import CalendarConfig, PeriodConfig
from collector_processor.model import I32, I64

QUARTER_NS = 900 * 1_000_000_000
MINUTE_NS = 60 * 1_000_000_000
KEPT = 4096  # quarters, and minutes
SUNDAY = 6
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Quarter:
    """What holds during one quarter of an hour."""

    minute: int  # of the local day at its start
    weekday: int  # 0 Monday - 6 Sunday
    holiday: str | None  # its name
    holiday_before: bool  # whether the day before was one

    @property
    def day(self) -> int:
        """0-6: the weekday that the day behaves like."""
        return SUNDAY if self.holiday else self.weekday


@dataclass(frozen=True, slots=True)
class Moment:
    """A point of time in words of the business."""

    local: str  # `Tue 14:05`
    holiday: str | None
    periods: tuple[str, ...]
    shift: int  # sum of the periods' severity shifts, within -1..1


class Calendar:
    """Pure functions of time. `ValueError` at construction for a zone or holiday calendar that does not exist."""

    def __init__(self, config: CalendarConfig, timezone: str) -> None:
        try:
            self._zone = ZoneInfo(timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"decide.timezone: {timezone!r} is not a time zone") from error
        self._holiday = _holidays(config.holidays)
        self._periods = tuple((period, _minutes(period.start), _minutes(period.end)) for period in config.periods)
        self._quarters: dict[int, Quarter] = {}
        self._moments: dict[int, Moment] = {}

    def slices(self, times_ns: I64, slice_s: int) -> I32:
        """[n] index of the time-of-week slice of length `slice_s` (a divisor of a day) that each time lies in."""
        quarters, inverse = np.unique(times_ns // QUARTER_NS, return_inverse=True)
        found = [self._quarter(int(q)) for q in quarters]
        start_s = np.array([f.day * 86_400 + f.minute * 60 for f in found], np.int64)
        second = start_s[inverse] + (times_ns % QUARTER_NS) // 1_000_000_000
        return (second // slice_s).astype(np.int32)

    def at(self, now_ns: int) -> Moment:
        """What is going on in the minute of `now_ns`."""
        found = self._moments.get(now_ns // MINUTE_NS)
        if found is None:
            if len(self._moments) >= KEPT:
                self._moments.clear()
            found = self._moments[now_ns // MINUTE_NS] = self._moment(now_ns)
        return found

    def _moment(self, now_ns: int) -> Moment:
        quarter = self._quarter(now_ns // QUARTER_NS)
        minute = quarter.minute + now_ns % QUARTER_NS // MINUTE_NS
        running = [p for p, start, end in self._periods if _runs(p, start, end, quarter, minute)]
        return Moment(
            f"{WEEKDAYS[quarter.weekday]} {minute // 60:02d}:{minute % 60:02d}",
            quarter.holiday,
            tuple(period.name for period in running),
            max(-1, min(1, sum(period.severity for period in running))),
        )

    @property
    def shifts(self) -> bool:
        """Whether any period changes a severity."""
        return any(period.severity for period, _, _ in self._periods)

    def _quarter(self, quarter: int) -> Quarter:
        found = self._quarters.get(quarter)
        if found is None:
            if len(self._quarters) >= KEPT:
                self._quarters.clear()
            moment = datetime.fromtimestamp(quarter * 900, UTC).astimezone(self._zone)
            day = moment.date()
            found = Quarter(
                moment.hour * 60 + moment.minute,
                moment.weekday(),
                self._holiday(day),
                self._holiday(day - timedelta(days=1)) is not None,
            )
            self._quarters[quarter] = found
        return found


def _runs(period: PeriodConfig, start: int, end: int, quarter: Quarter, minute: int) -> bool:
    """Whether `period` runs at `minute` of the day that `quarter` lies in, begun on it or on the day before."""

    def takes_place(weekday: int, holiday: bool) -> bool:
        wanted = period.holidays == "any" or (period.holidays == "only") == holiday
        return wanted and WEEKDAYS[weekday].lower() in period.days

    today = takes_place(quarter.weekday, quarter.holiday is not None)
    if start < end:
        return today and start <= minute < end
    yesterday = takes_place((quarter.weekday - 1) % 7, quarter.holiday_before)
    return (today and minute >= start) or (yesterday and minute < end)


def _minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def _holidays(name: str | None) -> Callable[[date], str | None]:
    """Date -> the name of the holiday or None, for `DE`, `DE-BY` or a market such as `XNYS`."""
    if name is None:
        return lambda _: None
    import holidays

    try:
        if len(name) == 4:
            found = holidays.financial_holidays(name)
        else:
            country, _, part = name.partition("-")
            found = holidays.country_holidays(country, subdiv=part or None)
    except NotImplementedError as error:
        raise ValueError(f"decide.calendar.holidays: {name!r} is no country, part of one or market") from error
    return found.get
