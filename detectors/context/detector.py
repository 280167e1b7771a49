"""The detector `context`: what the learned topology of logs and calls says.

How it works. `topology.py` does the work; this file gives it the detector's name and version.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.config import Config
from collector_processor.model import Bool, ChainBatch, Findings, Symbols
from detectors.context.topology import Topology
from detectors.protocol import Scores


class Context:
    """See the module."""

    name = "context"

    def __init__(self, config: Config, symbols: Symbols) -> None:
        self.topology = Topology(config, symbols)

    def score(self, batch: ChainBatch) -> Scores:
        return self.topology.score(batch)

    def advance(self, now_ns: int) -> Findings:
        return self.topology.advance(now_ns)

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        self.topology.learn(batch, normal)

    def evidence(self, finding: np.void) -> dict[str, Any]:
        return self.topology.evidence(finding)

    def version(self) -> str:
        return "topology-1"

    def describe_state(self) -> str | None:
        return self.topology.describe_state()

    def snapshot(self) -> dict[str, Any]:
        return {"version": 1, "topology": self.topology.snapshot()}

    def restore(self, state: dict[str, Any]) -> None:
        self.topology.restore(state["topology"])


def build(config: Config, symbols: Symbols) -> Context:
    """The detector as the registry makes it."""
    return Context(config, symbols)
