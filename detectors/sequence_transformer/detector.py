"""The sequence detector (d_seq): how improbable the order of events inside the spans of a chain is.

How it works. A chain is cut into lanes (`lanes.py`): per span its logs, and its calls, in order. Each distinct lane is
valued once per state of the models: P(next event | span, events so far) comes from an n-gram model of this system that
learns as it goes, which backs off to a small Transformer over the texts of events (`transformer.py`) where it has seen
nothing; without a promoted model the n-grams stand alone. A chain's value is the surprise of its most surprising event;
the p-value of a finding is its rank among the values of the flow's normal chains.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from collector_processor.config import Config, SequenceTransformerConfig
from collector_processor.kernels import lanes as kernels
from collector_processor.model import (
    I64,
    NONE,
    Bool,
    ChainBatch,
    Findings,
    Kind,
    Level,
    Outcome,
    Symbols,
    as_findings,
    no_findings,
)
from detectors.protocol import Scores
from detectors.sequence_transformer.lanes import LaneTable
from detectors.sequence_transformer.promoted import SHIPPED, folder_of, in_use
from detectors.sequence_transformer.ranks import WIDTH, Ranks
from detectors.sequence_transformer.transformer import Transformer

NS = 1_000_000_000
P_MIN = 1e-15
EVICTED = int(Outcome.EVICTED)
FADE_EVERY_S = 600
FADE = 1.0 - 1.0 / 1008.0  # ten minutes in a week
FINDING_P = 0.01  # a chain is a finding up to this
NATS_MIN = 3.0  # least surprise of a finding: one in twenty


class SequenceTransformer:
    """See the module."""

    name = "sequence_transformer"
    states_probability = True

    def __init__(self, config: SequenceTransformerConfig, symbols: Symbols, transformer: Transformer | None) -> None:
        self.config, self.symbols, self.transformer = config, symbols, transformer
        self.lanes = LaneTable(symbols, transformer, config.lanes_max)
        self.ranks = Ranks(config.learn_chains_min)
        self.faded_ns = 0

    def score(self, batch: ChainBatch) -> Scores:
        found = self.lanes.find(batch)
        self.ranks.reserve(len(self.symbols.flows))
        value, p, worst = np.empty(len(batch)), np.empty(len(batch)), np.empty(len(batch), np.int32)
        is_unusual = kernels.score(
            *(*found, self.lanes.column["value"], batch.outcome, batch.flow),
            *(self.ranks.histogram, WIDTH, float(self.ranks.young), FINDING_P, NATS_MIN, value, worst, p),
        )
        if not is_unusual:
            return Scores(value, no_findings())
        unusual = np.flatnonzero((p <= FINDING_P) & (value >= NATS_MIN))
        return Scores(value, self._findings(batch, unusual, p, worst))

    def _findings(self, batch: ChainBatch, chains: I64, p: Any, worst: Any) -> Findings:
        is_log, service = self.symbols.events.column("is_log"), self.symbols.events.column("service")
        said = []
        for chain in chains.tolist():
            row = int(worst[chain])
            lane, at = self.lanes.lane(row), int(self.lanes.column["worst"][row])
            seen = int(lane.events[at]) if at < lane.events.size else NONE
            event = seen if seen != NONE and (is_log[seen] > 0 or lane.head == kernels.TOP) else lane.head
            subject = Level.FLOW, batch.flow[chain], NONE, NONE, NONE, NONE
            if event >= 0:
                level = Level.TEMPLATE if is_log[event] > 0 else Level.OPERATION
                subject = level, batch.flow[chain], service[event], event, NONE, NONE
            surprise = self.lanes.column["value"][row]
            said.append((chain, 0, Kind.UNLIKELY_SEQUENCE, *subject, max(p[chain], P_MIN), 0.0, surprise, row))
        return as_findings(said)

    def advance(self, now_ns: int) -> Findings:
        """Nothing is said about windows; what was counted fades."""
        if now_ns - self.faded_ns >= FADE_EVERY_S * NS:
            self.faded_ns = now_ns
            self.lanes.fade(FADE)
            self.lanes.adopt(self.config.adopt_s, self.config.adopt_repeats)
        return no_findings()

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        judged = batch.outcome != EVICTED
        if np.count_nonzero(judged) < judged.size:
            batch, normal = batch.take(judged), normal[judged]
        if len(batch) == 0:
            return
        found = self.lanes.find(batch)
        self.ranks.reserve(len(self.symbols.flows))
        self.ranks.learn(found, self.lanes.column["value"], batch.flow, normal)
        self.lanes.learn(found, batch, normal)
        self.lanes.evict()

    def evidence(self, finding: np.void) -> dict[str, Any]:
        row = int(finding["detail"])
        if not 0 <= row < self.lanes.size:
            return {}
        lane, at = self.lanes.lane(row), int(self.lanes.column["worst"][row])
        texts = self.symbols.events.text
        seen = texts[int(lane.events[at])] if at < lane.events.size else "the end"
        facts = {
            "step": seen,
            "share": round(math.exp(-float(self.lanes.column["value"][row])), 9),
            "of": "calls" if lane.kind == kernels.CALLS else "logs",
            "history": round(self.ranks.chains(int(finding["flow"]))),
            "seen": round(float(self.lanes.column["good"][row] + self.lanes.column["bad"][row])),
        }
        if lane.head != kernels.TOP:
            facts["inside"] = texts[lane.head]
        if at:
            facts["after"] = texts[int(lane.events[at - 1])]
        expected = self._expected(lane.head, lane.kind, row, at)
        return facts | ({"expected": expected} if expected else {})

    def _expected(self, head: int, kind: int, row: int, at: int) -> str | None:
        """What came most often at this point of the head's normal lanes that begin alike; None when none does."""
        begin = self.lanes.lane(row).events[:at]
        weight: dict[int, float] = {}
        for other in self.lanes.rows_of_head.get(head, ()):
            lane = self.lanes.lane(other)
            if lane.kind == kind and other != row and np.array_equal(lane.events[:at], begin):
                following = int(lane.events[at]) if lane.events.size > at else kernels.END
                weight[following] = weight.get(following, 0.0) + float(self.lanes.column["good"][other])
        weight = {event: count for event, count in weight.items() if count > 0}
        if not weight:
            return None
        best = max(weight, key=lambda event: (weight[event], -event))
        return "the end" if best == kernels.END else self.symbols.events.text[best]

    def use(self, model: Transformer) -> None:
        """Scores by `model` from now on: what was counted stays, values are made anew, ranks are learned anew."""
        if self.transformer is not None and model.name == self.transformer.name:
            return
        self.transformer = self.lanes.transformer = model
        self.lanes.value_all()
        self.ranks.clear()

    def version(self) -> str:
        return f"1-{self.transformer.name}" if self.transformer else "1-ngram"

    def describe_state(self) -> str | None:
        return self.ranks.describe(self.symbols.flows.text)

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "model": self.version(),
            "lanes": self.lanes.snapshot(),
            "ranks": self.ranks.snapshot(),
            "faded_ns": self.faded_ns,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot; one of another model keeps what was counted, and is valued by the present model."""
        if state["version"] != 1:
            raise ValueError(f"sequence_transformer snapshot of version {state['version']}, expected 1")
        self.lanes.restore(state["lanes"])
        self.ranks.restore(state["ranks"])
        self.faded_ns = int(state["faded_ns"])
        if state["model"] != self.version():
            self.lanes.value_all()
            self.ranks.clear()


def build(config: Config, symbols: Symbols) -> SequenceTransformer:
    """The detector as configured: with the promoted model of the folder `models`, else the shipped one, or none.

    Raises:
        ModelRefusedError, ValueError, OSError: the model cannot be used.
    """
    section = config.detectors.sequence_transformer
    if section.model == "none":
        return SequenceTransformer(section, symbols, None)
    return SequenceTransformer(section, symbols, Transformer(in_use(folder_of(config) or SHIPPED), symbols))
