"""How unlikely a chain must be to count as unusual: the alert budget, spread over the chains of each flow.

How it works. A flow may have `alerts_per_day` unusual chains a day by chance, so its limit is that number over its
chains a day, measured online with a memory of an hour. The same counts tell whether a flow's alarms are what chance
allows or more: the first are cleared and go back into calibration (dropping them would cut the tail off, and the
limit would run away), the second do not train anything. Counts of an epoch are integers that wait until its end, so
neither the order nor the grouping of its chains matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.kernels import budget as kernels
from collector_processor.model import F64, I32, U8, Bool

FLOWS_FIRST = 16


class Budget:
    """Limits and alarm shares per flow."""

    def __init__(self, alerts_per_day: float, probability_max: float) -> None:
        self._alerts = alerts_per_day
        self._most = probability_max
        self._last_ns = 0
        self._pending = np.zeros((0, 2), np.int64)  # chains, unusual ones since the last boundary
        self._chains = np.zeros(0)  # decayed count
        self._seconds = np.zeros(0)  # decayed time of observation, 0 for a flow not seen yet
        self._share = np.zeros(0)  # of unusual chains, decayed by chains
        self.limits = np.zeros(0)  # the p-value up to which a chain of the flow is unusual
        self._is_pending = False
        self.reserve(FLOWS_FIRST)

    def reserve(self, flows: int) -> None:
        """Room for flows with ids up to `flows`; there is room for FLOWS_FIRST from the start."""
        have = self._share.size
        if flows <= have:
            return
        more = max(flows, 2 * have, FLOWS_FIRST) - have
        self._pending = np.concatenate([self._pending, np.zeros((more, 2), np.int64)])
        self._chains, self._seconds, self._share = (
            np.concatenate([old, np.zeros(more)]) for old in (self._chains, self._seconds, self._share)
        )
        self.limits = np.concatenate([self.limits, np.full(more, kernels.LIMIT_FIRST)])

    def clear(self, state: U8, flow: I32, uniform: F64, audit_share: float, inside: Bool) -> Bool:
        """[n] which chains may train, as `kernels.clear` says: of a flow whose alarms of late are no more than chance
        allows, all of them."""
        cleared = np.empty(state.size, np.bool_)
        kernels.clear(state, flow, uniform, audit_share, inside, self._share, self.limits, cleared)
        return cleared

    def chains_per_day(self, flow: int) -> float | None:
        """What the limit of `flow` rests on; None before the first boundary."""
        if not 0 <= flow < self._seconds.size or self._seconds[flow] == 0:
            return None
        return float(self._chains[flow] / self._seconds[flow] * kernels.DAY_S)

    def count(self, flow: I32, unusual: U8 | Bool) -> None:
        """Notes n judged chains."""
        kernels.count(flow, unusual, self._pending)
        self._is_pending |= flow.size > 0

    def advance(self, now_ns: int) -> None:
        """Ends an epoch: folds what was noted into rates, shares and limits."""
        if not self._is_pending:
            return
        self._is_pending = False
        elapsed = (now_ns - self._last_ns) / 1e9 if self._last_ns else kernels.PRIOR_S
        self._last_ns = now_ns
        kernels.fold_epoch(
            *(self._pending, self._chains, self._seconds, self._share, self.limits, elapsed, self._alerts, self._most),
        )

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "last_ns": self._last_ns,
            "pending": self._pending.copy(),
            "chains": self._chains.copy(),
            "seconds": self._seconds.copy(),
            "share": self._share.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._last_ns = int(state["last_ns"])
        self._pending = np.array(state["pending"], np.int64)
        self._is_pending = bool(self._pending.any())
        self._chains, self._seconds, self._share = (np.array(state[k]) for k in ("chains", "seconds", "share"))
        self.limits = np.full(self._chains.size, kernels.LIMIT_FIRST)
        kernels.set_limits(self._chains, self._seconds, self._alerts, self._most, self.limits)
