"""How large the largest deviation of a quiet slice usually is, per flow: what turns a deviation into an honest p-value.

How it works. Many counts are looked at many times a slice, and traffic comes in clumps that no formula knows
beforehand. So each flow remembers the greatest deviation (in nats, -ln of a nominal tail) of each of its last slices,
and a Gumbel distribution fitted by moments, pulled towards a prior while there are few, says how probable a greater one
is. What lies beyond three sigma is pulled in before it is remembered, so that an incident does not make its flow deaf.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from collector_processor.model import F64, Bool
from detectors.familiarity import grown

KEPT = 32  # slices remembered
PRIOR_SLICES = 8.0  # that the prior counts for
SIGMA = 3.0
EULER = 0.5772156649015329
SCALE_MIN = 0.8  # nats


class Extremes:
    """One kind of deviation. `mean`, `sigma`: the prior of the greatest deviation of a slice, in nats."""

    def __init__(self, mean: float, sigma: float) -> None:
        self.mean, self.sigma = mean, sigma
        self.past = np.zeros((16, KEPT))
        self.count = np.zeros(16, np.int64)
        self.current = np.zeros(16)  # greatest deviation of the present slice
        self._asked: dict[int, tuple[float, float]] = {}  # flow -> `_moments`, as long as what is remembered stays

    def reserve(self, flows: int) -> None:
        """Room for that many flows."""
        self.past, self.count = grown(self.past, flows), grown(self.count, flows)
        self.current = grown(self.current, flows)

    def p(self, flow: int, nats: float) -> float:
        """The probability that a normal slice of the flow has a deviation of `nats` or more."""
        if flow not in self._asked:
            self._asked[flow] = self._moments(flow)
        mean, sigma = self._asked[flow]
        scale = max(SCALE_MIN, sigma * math.sqrt(6.0) / math.pi)
        return -math.expm1(-math.exp(min(50.0, (mean - EULER * scale - nats) / scale)))

    def _moments(self, flow: int) -> tuple[float, float]:
        past: F64 = self.past[flow, : min(int(self.count[flow]), KEPT)]
        total = PRIOR_SLICES + past.size
        mean = (PRIOR_SLICES * self.mean + float(np.add.reduce(past))) / total
        spread = PRIOR_SLICES * (self.sigma**2 + (self.mean - mean) ** 2) + float(np.add.reduce((past - mean) ** 2))
        return mean, math.sqrt(spread / total)

    def end_slice(self, active: Bool) -> None:
        """Remembers the greatest deviation of the slice for the flows that had traffic in it."""
        for flow in np.flatnonzero(active).tolist():
            mean, sigma = self._moments(flow)
            self.past[flow, self.count[flow] % KEPT] = min(float(self.current[flow]), mean + SIGMA * sigma)
            self.count[flow] += 1
        self.current[:] = 0.0
        self._asked.clear()

    def snapshot(self) -> dict[str, Any]:
        return {"past": self.past.copy(), "count": self.count.copy(), "current": self.current.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.past, self.count = np.array(state["past"], np.float64), np.array(state["count"], np.int64)
        self.current = np.array(state["current"], np.float64)
        self._asked.clear()
