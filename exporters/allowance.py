"""How many unusual chains a second an exporter speaks of: all ordinarily, the most severe when much fails at once.

How it works. Time is the engine's, when chains were closed; what was not used is saved for some seconds. The incident
says it for all, so what is left out by this is detail, and it is counted.
"""

from __future__ import annotations

import numpy as np

from collector_processor.model import I64, VerdictBatch

SAVED_S = 10  # seconds for which unused events may be used later


class Allowance:
    """`per_s` events a second of engine time, and what was left over in the ten seconds before."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = self._most = per_s * SAVED_S
        self._now_ns = 0

    def take(self, wanted: int, now_ns: int) -> int:
        """How many of `wanted` events there may be at `now_ns`."""
        passed_s = max(now_ns - self._now_ns, 0) / 1e9
        self._now_ns = max(now_ns, self._now_ns)
        self._left = min(self._left + passed_s * self._per_s, self._most)
        allowed = min(wanted, int(self._left))
        self._left -= allowed
        return allowed


def most_severe(verdicts: VerdictBatch, allowance: Allowance) -> tuple[I64, int]:
    """The unusual chains that may be told, in their order, and how many were left out: the least severe."""
    unusual = np.flatnonzero(verdicts.severity)
    if not unusual.size:
        return unusual, 0
    allowed = allowance.take(unusual.size, int(verdicts.chains.closed_ns[-1]))
    if allowed == unusual.size:
        return unusual, 0
    order = np.argsort(-verdicts.severity[unusual].astype(np.int64), kind="stable")
    return np.sort(unusual[order[:allowed]]), unusual.size - allowed
