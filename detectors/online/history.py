"""Histograms of how long elements take, and the tables of surprises that follow from them.

How it works. A row per slot of the windows. Groups (calls, and each span kind) have histograms of the residuals of
their elements around their medians, which give a young element its tail. Flows have one of whole durations: what a
delay is compared with. `kernels/elements.py` does the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.config import OnlineConfig
from collector_processor.kernels import elements as kernel

FLOW_CHAINS_MIN = 20  # chains of a flow before its usual duration is known


class History:
    """See the module. Rows follow the slots of `Windows`, flows those of `Symbols`."""

    PER_SLOT = (
        ("histogram", np.float32, kernel.BINS),
        ("table", np.float32, kernel.BINS),
        ("usual", np.float32, kernel.LEVELS),  # mean surprise, by what delay matters
        ("seen", np.float32, 0),
        ("fresh", np.float32, 0),  # observations that the table does not know yet
        ("middle", np.int32, 0),
        ("typical", np.float32, 0),  # median, ns
        ("group", np.uint8, 0),
    )
    histogram: Any
    table: Any
    usual: Any
    seen: Any
    fresh: Any
    middle: Any
    typical: Any
    group: Any

    def __init__(self, config: OnlineConfig) -> None:
        self.config = config
        self.residual = np.zeros((kernel.GROUPS, 2 * kernel.BINS))
        self.residual_share = np.zeros((kernel.GROUPS, 2 * kernel.BINS))
        self.flows = np.zeros((0, kernel.BINS), np.float32)
        self.flow_typical = np.zeros(0)
        self.rows = 0
        self.reserve(1)
        self.spread()

    def reserve(self, rows: int) -> None:
        """Makes room for at least `rows` slots."""
        if rows <= self.rows:
            return
        size = max(64, self.rows)
        while size < rows:
            size *= 2
        for name, dtype, width in self.PER_SLOT:
            new = np.zeros((size, width) if width else size, dtype)
            if self.rows:
                new[: self.rows] = getattr(self, name)
            setattr(self, name, new)
        self.rows = size

    def reserve_flows(self, flows: int) -> None:
        """Makes room for at least `flows` flows."""
        have = self.flows.shape[0]
        if flows > have:
            more = max(flows, 2 * have, 16) - have
            self.flows = np.concatenate([self.flows, np.zeros((more, kernel.BINS), np.float32)])
            self.flow_typical = np.concatenate([self.flow_typical, np.zeros(more)])

    def spread(self) -> None:
        """Brings what follows from the histograms of groups and flows up to date."""
        every = np.ones(max(kernel.GROUPS, self.flow_typical.size), np.bool_)
        kernel.survivals(self.residual, every, self.config.prior, self.residual_share)
        kernel.medians(self.flows, every, FLOW_CHAINS_MIN, self.flow_typical)

    def snapshot(self, used: int) -> dict[str, Any]:
        """The state of the first `used` slots."""
        return {
            "version": 1,
            "slots": {name: getattr(self, name)[:used].copy() for name, _, _ in self.PER_SLOT},
            "residual": self.residual.copy(),
            "flows": self.flows.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        used = int(state["slots"]["seen"].size)
        self.rows = 0
        self.reserve(max(used, 1))
        for name, array in state["slots"].items():
            getattr(self, name)[:used] = array
        self.residual = np.array(state["residual"])
        self.flows = np.array(state["flows"], np.float32)
        self.flow_typical = np.zeros(self.flows.shape[0])
        self.spread()
