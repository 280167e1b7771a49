"""A detector that looks at one chain at a time, on made-up chains: trained in small batches, then asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from collector_processor.model import ChainBatch, Symbols
from tests.builders import NS, START_S, Node, chains


class ChainBench(ABC):
    """One detector and its clock, which goes on by an epoch with every batch that is learned."""

    def __init__(self) -> None:
        self.symbols = Symbols()
        self.detector = self.new()
        self.now = START_S
        self.traces = 1

    @abstractmethod
    def new(self) -> Any:
        """A detector that knows nothing yet."""

    def batch(self, roots: list[Node]) -> ChainBatch:
        self.traces += len(roots)
        return chains(self.symbols, roots, start_s=self.now, first_trace=self.traces - len(roots), every_s=0.01)

    def learn(self, roots: list[Node], *, normal: bool = True) -> None:
        for lo in range(0, len(roots), 20):
            batch = self.batch(roots[lo : lo + 20])
            self.detector.score(batch).checked(batch)
            self.now += 10
            self.detector.advance(int(self.now * NS))
            self.detector.learn(batch, np.full(len(batch), normal))

    def only(self, root: Node) -> tuple[float, np.void | None, dict[str, Any]]:
        """Value, finding and evidence of a single chain."""
        batch = self.batch([root])
        scores = self.detector.score(batch).checked(batch)
        finding = scores.findings[0] if scores.findings.size else None
        return float(scores.value[0]), finding, {} if finding is None else self.detector.evidence(finding)
