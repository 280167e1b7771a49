"""What a made-up system consists of: services with instances and operations, and the steps of an operation.

How it works. `worlds.py` draws all of it from a seed and runs chains through it; here is only what each part is, and
what depends on the part alone: how long something takes, a service's weather and fashions, where a fault strikes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Duration:
    """A distribution of times: log-normal with a heavy tail and perhaps a second, slower mode."""

    median_ns: float
    sigma: float
    slow_share: float = 0.0
    slow_by: float = 1.0

    def draw(self, rng: random.Random) -> float:
        ns = self.median_ns * math.exp(rng.gauss(0.0, self.sigma))
        if self.slow_share and rng.random() < self.slow_share:
            ns *= self.slow_by
        if rng.random() < 0.005:
            ns *= min(rng.paretovariate(1.5), 30.0)
        return ns


@dataclass(eq=False, slots=True)
class Instance:
    """A running copy of a service: its clock, its pauses, when its SDK exports."""

    index: int
    resource: tuple[bytes, bytes]
    skew_ns: int
    delay_ns: int
    pause_every_ns: int
    pause_ns: int


@dataclass(eq=False, slots=True)
class Line:
    """A log statement."""

    words: str  # with {} where values go
    severity: int
    share: float


@dataclass(eq=False, slots=True)
class Work:
    """Computing, or a query when `query` names it."""

    time: Duration
    query: str = ""
    share: float = 1.0


@dataclass(eq=False, slots=True)
class Call:
    """Calls to other operations. `how`: one after another, side by side, or by a queue that nobody waits for."""

    to: list[Operation]
    how: Literal["sync", "parallel", "queue"]
    share: float
    most: int  # how often, at most
    needed: bool  # whether the caller fails when the call does
    tries: int


@dataclass(eq=False, slots=True)
class Operation:
    """What a service does when asked."""

    service: Service
    name: str
    steps: list[Line | Work | Call] = field(default_factory=list)
    error_rate: float = 0.0
    says_errors: bool = True
    odd: Line | None = None  # what it writes when it was given nonsense
    failed: Line | None = None


@dataclass(eq=False, slots=True)
class Service:
    """A service with its copies."""

    name: str
    instances: list[Instance]
    logs_traced: bool
    weather: tuple[float, float, float, float]  # deviation of its pace by slow waves, their phases, how often it stalls
    operations: list[Operation] = field(default_factory=list)

    def fashion(self, step: int, at_s: float) -> float:
        """By how much more often something optional is done now: requests of one kind come in swarms."""
        drawn = random.Random(f"{self.name} {step} {at_s // 40}").random()
        return 4.0 if drawn < 0.03 else 2.0 if drawn < 0.2 else 0.7

    def pace(self, at_s: float) -> float:
        """By how much it takes longer now: load comes and goes, and for some seconds now and then it is worse."""
        deviation, first, second, stalls = self.weather
        wave = math.sin(at_s / 97.0 + first) + math.sin(at_s / 733.0 + second)
        stalled = stalls > 0.0 and random.Random(f"{self.name} {at_s // 10}").random() < stalls
        return math.exp(deviation * wave) * (3.0 if stalled else 1.0)


@dataclass(eq=False, slots=True)
class Injection:
    """A fault while it runs."""

    kind: str
    service: Service
    operation: Operation
    step: int  # of the operation
    size: float
    instance: Instance | None
    begin_ns: int
    end_ns: int
    chains: int = 0

    def at(self, service: Service, instance: Instance) -> bool:
        return service is self.service and (self.instance is None or instance is self.instance)
