"""The detector `context`: what the learned topology of logs and calls says, and what rules say.

How it works. `topology.py` and `rules.py` do the work; this file puts their findings together. The score of a chain is
the topology's: a rule that does not hold is a finding of its own, which the fusion treats by whether it is certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.config import Config
from collector_processor.model import Bool, ChainBatch, Findings, Kind, Symbols, all_findings
from detectors.context.rules import Rules
from detectors.context.topology import Topology
from detectors.protocol import Scores


class Context:
    """See the module."""

    name = "context"

    def __init__(self, config: Config, symbols: Symbols) -> None:
        self.topology = Topology(config, symbols)
        self.rules = Rules(config.detectors.context.rules, config.join.attributes, symbols)

    def score(self, batch: ChainBatch) -> Scores:
        scores = self.topology.score(batch)
        broken = self.rules.score(batch)
        if not broken.size:
            return scores
        findings = all_findings([broken, scores.findings])
        return Scores(scores.value, findings.take(np.argsort(findings["chain"], kind="stable")))

    def advance(self, now_ns: int) -> Findings:
        return self.topology.advance(now_ns)

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        self.topology.learn(batch, normal)

    def evidence(self, finding: np.void) -> dict[str, Any]:
        return (self.rules if int(finding["kind"]) == Kind.RULE_VIOLATION else self.topology).evidence(finding)

    @property
    def overflowed(self) -> int:
        """How often an operation found no window of its own."""
        return self.topology.windows.overflowed

    def version(self) -> str:
        return f"topology-1,{self.rules.version()}" if self.rules.rules else "topology-1"

    def describe_state(self) -> str | None:
        said = (self.topology.describe_state(), self.rules.describe_state())
        return "; ".join(text for text in said if text) or None

    def snapshot(self) -> dict[str, Any]:
        return {"version": 1, "topology": self.topology.snapshot()}

    def restore(self, state: dict[str, Any]) -> None:
        self.topology.restore(state["topology"])


def build(config: Config, symbols: Symbols) -> Context:
    """The detector as the registry makes it."""
    return Context(config, symbols)
