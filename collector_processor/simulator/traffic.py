"""How much happens when: the flows of the platform and the curve of each over a business day.

How it works. Business time runs `speed` times as fast as the clock, so that a demo can live through a day in a minute
while every event carries the true time. A flow has a curve over the hours of the day (offices open with a rush at nine,
cards are used at lunch and in the evening, batches run at night) and a factor for days off. `swing` flattens the curves
towards their mean. Arrivals are Poisson; each (seed, tick, flow) has its own random numbers, so that a fault in one
flow leaves the arrivals of all others as they are.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Final

SECOND_NS: Final = 1_000_000_000
DAY_S: Final = 86_400

# (hour, level): straight lines between the points, the last joined to the first
CARDS: Final = ((0.0, 0.25), (3.0, 0.12), (6.0, 0.25), (9.0, 0.9), (12.5, 1.5), (15.0, 1.0), (18.5, 1.7), (21.0, 0.9))
OFFICE: Final = (
    (0.0, 0.05),
    (7.5, 0.1),
    (9.0, 1.0),
    (9.2, 3.0),
    (10.0, 1.6),
    (12.5, 0.9),
    (14.0, 1.3),
    (17.5, 1.1),
    (19.0, 0.2),
)
PEOPLE: Final = ((0.0, 0.3), (4.0, 0.15), (7.0, 0.7), (9.2, 1.8), (12.5, 1.3), (18.0, 1.4), (22.0, 0.7))
SESSION: Final = ((0.0, 0.0), (8.4, 0.0), (8.5, 1.0), (17.9, 1.0), (18.0, 0.0))
NIGHT: Final = ((0.0, 0.0), (1.0, 0.0), (1.05, 1.0), (2.95, 1.0), (3.0, 0.0))  # fmt: skip

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """A kind of request: its share of the traffic at level 1, its curve, what is left of it on a day off."""

    name: str
    per_second: float
    curve: Curve
    day_off: float


FLOWS: Final = (
    Flow("card_payment", 0.36, CARDS, 0.8),
    Flow("transfer", 0.12, OFFICE, 0.2),
    Flow("refund", 0.04, CARDS, 0.4),
    Flow("balance", 0.26, PEOPLE, 0.8),
    Flow("payment_status", 0.08, CARDS, 0.7),
    Flow("login", 0.14, PEOPLE, 0.8),
    Flow("settlement_session", 0.03, SESSION, 0.0),
    Flow("settlement_night", 0.1, NIGHT, 1.0),
)


def level(curve: Curve, hour: float) -> float:
    """The height of `curve` at `hour` of the day, 0 <= hour < 24."""
    index = bisect_right(curve, (hour, 9e9)) - 1
    left_hour, left = curve[index]
    if index + 1 < len(curve):
        right_hour, right = curve[index + 1]
    else:
        right_hour, right = curve[0][0] + 24.0, curve[0][1]
    return left + (right - left) * (hour - left_hour) / (right_hour - left_hour)


def mean_level(curve: Curve) -> float:
    """The mean of `curve` over the day."""
    closed = (*curve, (curve[0][0] + 24.0, curve[0][1]))
    areas = ((b_hour - a_hour) * (a + b) / 2 for (a_hour, a), (b_hour, b) in pairwise(closed))
    return sum(areas) / 24.0


@dataclass(frozen=True, slots=True)
class Calendar:
    """Turns the clock into business time and business time into rates.

    At `start_ns` business time is `opening` (by default the time of the clock itself), from where it runs `speed` times
    as fast. Saturdays, Sundays and `holidays` are days off.
    """

    start_ns: int
    speed: float = 1.0
    opening: datetime | None = None
    holidays: frozenset[date] = frozenset()
    swing: float = 1.0

    def business_time(self, time_ns: int) -> datetime:
        """Business time at `time_ns`, UTC."""
        opening_s = self.start_ns / SECOND_NS if self.opening is None else self.opening.timestamp()
        return datetime.fromtimestamp(opening_s + (time_ns - self.start_ns) / SECOND_NS * self.speed, UTC)

    def rate(self, flow: Flow, time_ns: int) -> float:
        """Expected requests of `flow` per second of the clock, at a total of about one."""
        now = self.business_time(time_ns)
        height = level(flow.curve, now.hour + now.minute / 60 + now.second / 3600)
        if self.swing < 1.0:
            mean = mean_level(flow.curve)
            height = mean + (height - mean) * self.swing
        if now.weekday() >= 5 or now.date() in self.holidays:
            height *= 1.0 - (1.0 - flow.day_off) * self.swing
        return flow.per_second * height


def arrivals(rng: random.Random, rate: float, duration_s: float) -> Iterator[float]:
    """Times in [0, duration_s) of a Poisson process with `rate` events per second."""
    if rate <= 0.0:
        return
    at = rng.expovariate(rate)
    while at < duration_s:
        yield at
        at += rng.expovariate(rate)
