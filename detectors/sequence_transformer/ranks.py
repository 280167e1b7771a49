"""Where a value stands among those of the flow's normal chains: a decaying histogram per flow in quarter nats."""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.kernels import lanes as kernels
from collector_processor.model import F64, I32, Bool
from detectors.familiarity import describe_young, grown
from detectors.sequence_transformer.lanes import Found

BINS = 96
WIDTH = 0.25  # nats
MEMORY = 2000.0  # chains of a flow over which the histogram is averaged


class Ranks:
    """`young`: chains of a flow before anything is said of it."""

    def __init__(self, young: int) -> None:
        self.young = young
        self.clear()

    def clear(self) -> None:
        """Forgets everything: values have changed their meaning."""
        self.histogram = np.zeros((16, BINS))

    def reserve(self, flows: int) -> None:
        """Room for so many flows."""
        self.histogram = grown(self.histogram, flows)

    def learn(self, found: Found, lane_value: F64, flow: I32, normal: Bool) -> None:
        """Takes in the values of normal chains: of each the greatest of its lanes."""
        kernels.count_values(*found, lane_value, flow, normal, self.histogram, WIDTH, MEMORY)

    def chains(self, flow: int) -> float:
        """How many chains the flow's histogram rests on."""
        return float(self.histogram[flow].sum()) if 0 <= flow < self.histogram.shape[0] else 0.0

    def describe(self, flows: list[str]) -> str | None:
        """Which flows are too young; None when none is."""
        return describe_young(self.histogram.sum(axis=1), self.young, flows, "orders of events")

    def snapshot(self) -> dict[str, Any]:
        return {"histogram": self.histogram.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.histogram = np.array(state["histogram"], np.float64)
