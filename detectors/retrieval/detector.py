"""The retrieval detector (d_rec): how far the events of a chain are from those of the nearest normal chains.

How it works. A chain whose bag of events is known has distance 0 (one seen once or twice scores its rarity). Any other
bag is compared once with the core (`bags.py`); its p-value is the flow's present rate of new bags times the share of
earlier new ones that were at least as far away. Attribute values that were never seen where new values are rare
(`values.py`) count the same way. What was judged anomalous trains nothing, until it has kept coming for longer than a
day.
"""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from collector_processor.config import Config, RetrievalConfig
from collector_processor.kernels import familiarity as flags
from collector_processor.model import (
    I32,
    I64,
    NONE,
    Bool,
    ChainBatch,
    Findings,
    Kind,
    Level,
    Symbols,
    all_findings,
    as_findings,
    no_findings,
)
from detectors.familiarity import Familiarity, describe_young
from detectors.protocol import Scores
from detectors.retrieval.bags import BagTable, Nearest
from detectors.retrieval.embedding import Embedder, EventVectors, HashedEmbedder, OnnxEmbedder
from detectors.retrieval.values import Values

NS = 1_000_000_000
P_MIN = 1e-15
DEVIATION = 1.0  # of a new normal bag from the core, before any was seen
TRUSTED = 3.0  # normal chains from which on known content is as good as any: rarity is for other detectors to say
FINDING_P = 0.05  # a chain is a finding up to this
FADE_EVERY_S = 600
FADE = 1.0 - 1.0 / 1008.0  # ten minutes in a week
VALUE_DETAIL = 1 << 40  # added to event << 8 | attribute in `detail` when the finding is about a value


class Retrieval:
    """See the module. `attributes` are the names that cells index."""

    name = "retrieval"

    def __init__(self, config: RetrievalConfig, symbols: Symbols, attributes: tuple[str, ...]) -> None:
        self.config, self.symbols, self.attributes = config, symbols, attributes
        self.known = Familiarity(config.learn_chains_min, DEVIATION)
        self.vectors = EventVectors(embedder(config), config.vectors_max)
        self.bags = BagTable(symbols, self.known, self.vectors, config.core_max, config.compared_max)
        self.values = Values(config.values_max, config.learn_chains_min)
        self.judged: dict[int, tuple[float, Nearest]] = {}  # row -> p and distance; see `_forget_judgements`
        self.learned_at = 0.0  # chains of all flows when `judged` was last emptied
        self.faded_ns = 0

    # scoring

    def score(self, batch: ChainBatch) -> Scores:
        rows = self.bags.rows(batch)
        value, state, odd = self.known.score(rows, batch.outcome, TRUSTED)
        if not odd and not batch.cell_record.size:
            return Scores(value, no_findings())
        findings = []
        new = np.flatnonzero(state & 3 == flags.NEW)
        if new.size:
            findings.append(self._new_bags(rows, new, value))
        if batch.cell_record.size:
            findings.append(self._new_values(batch, state & 3 != flags.COLD, value))
        both = all_findings(findings)
        if len(findings) == 2:
            both = both.take(np.argsort(both["chain"], kind="stable"))
        return Scores(value, both)

    def _new_bags(self, rows: I32, chains: I64, value: Any) -> Findings:
        """Sets the values of chains with an unknown bag; one finding a chain, made once per distinct row."""
        new, values = rows[chains].tolist(), dict[int, float]()
        said: dict[int, tuple[float, ...]] = {}
        for row in sorted(set(new)):
            p, nearest = self._judgement(row)
            values[row] = -math.log(p)
            if p <= FINDING_P:
                said[row] = self._finding(nearest.event, self.known.row["flow"][row], p, nearest.distance, row)
        value[chains] = np.maximum(value[chains], [values[row] for row in new])
        return as_findings(
            [(chain, *said[row]) for chain, row in zip(chains.tolist(), new, strict=True) if row in said]
        )

    def _finding(self, event: int, flow: int, p: float, actual: float, detail: int) -> tuple[float, ...]:
        """That `event` is unusual, as a row of FINDING without its chain."""
        level, service = Level.FLOW, NONE
        if event != NONE:
            is_log = bool(self.symbols.events.column("is_log")[event] > 0)
            level = Level.TEMPLATE if is_log else Level.OPERATION
            service = self.symbols.events.column("service")[event]
        return (0, Kind.UNUSUAL_CONTENT, level, flow, service, event, NONE, NONE, p, 0.0, actual, detail)

    def _judgement(self, row: int) -> tuple[float, Nearest]:
        found = self.judged.get(row)
        if found is None:
            flow = int(self.known.row["flow"][row])
            nearest = self.bags.nearest(row)
            p = self.known.new_rate(flow) * self.known.odder_share(flow, nearest.deviation)
            found = self.judged[row] = (max(P_MIN, p), nearest)
        return found

    def _new_values(self, batch: ChainBatch, judged: Bool, value: Any) -> Findings:
        """Raises the value of chains with an attribute value that is new where new ones are rare."""
        p, cell = self.values.score(batch)
        chains = np.flatnonzero((cell >= 0) & judged)
        value[chains] = np.maximum(value[chains], -np.log(p[chains]))
        chains = chains[p[chains] <= FINDING_P]
        said = []
        for chain in chains.tolist():
            event = int(batch.event[batch.cell_record[cell[chain]]])
            detail = VALUE_DETAIL + (event << 8) + int(batch.cell_key[cell[chain]])
            said.append((chain, *self._finding(event, batch.flow[chain], p[chain], 1.0, detail)))
        return as_findings(said)

    def advance(self, now_ns: int) -> Findings:
        """Nothing is said about windows; what was counted fades."""
        if now_ns - self.faded_ns >= FADE_EVERY_S * NS:
            self.faded_ns = now_ns
            if self.bags.size:
                self.bags.fade(FADE)
                if self.known.adopt(self.config.adopt_s, self.config.adopt_repeats):
                    self._forget_judgements()
        return no_findings()

    # learning

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        if len(batch) == 0:
            return
        rows = self.bags.rows(batch)
        odd, good = np.zeros(self.bags.size), self.known.row["good"]
        for row in sorted(set(rows[normal].tolist())):
            if good[row] <= 0:
                odd[row] = self._judgement(row)[1].deviation
        changed = self.bags.learn(rows, batch, normal, odd)
        if batch.cell_record.size:
            self.values.learn(batch, normal)
        changed |= self.bags.evict()
        if changed or self.known.chains() > self.learned_at * 1.05:
            self._forget_judgements()

    def _forget_judgements(self) -> None:
        """After the core has changed noticeably; part of the state, so that a restored run judges alike."""
        self.judged.clear()
        self.learned_at = self.known.chains()

    # explaining

    def evidence(self, finding: np.void) -> dict[str, Any]:
        detail = int(finding["detail"])
        if detail >= VALUE_DETAIL:
            event, attribute = (detail - VALUE_DETAIL) >> 8, detail & 255
            count, share = self.values.field(event, attribute)
            operation = self.symbols.events.text[event]
            name = self.attributes[attribute] if attribute < len(self.attributes) else str(attribute)
            facts = {"attribute": name, "history": round(count), "new_value_rate": round(share, 6), "step": operation}
            return facts | {"text": f"{name} at {operation} has a value never seen in {count:.0f} cases"}
        _, nearest = self._judgement(detail)
        flow = int(self.known.row["flow"][detail])
        total = max(1.0, float(self.known.flow["total"][flow]))
        facts = {
            "distance": round(nearest.distance, 4),
            "history": round(total),
            "known": int((self.known.known() & (self.known.view("flow") == flow)).sum()),
            "new_rate": round(self.known.new_rate(flow), 6),
        }
        if nearest.event != NONE:
            text = self.symbols.events.text[nearest.event]
            facts["template" if self.symbols.events.column("is_log")[nearest.event] > 0 else "step"] = text
            facts["deviation"] = "extra" if nearest.extra else "missing"
            facts["nearest_share"] = round(float(self.known.row["good"][nearest.row]) / total, 6)
        return facts

    def version(self) -> str:
        return f"1-{self.config.embedding_sha256[:12]}" if self.config.embedding_model else "1"

    def describe_state(self) -> str | None:
        return describe_young(self.known.flow["total"], self.known.young, self.symbols.flows.text, "contents of chains")

    def snapshot(self) -> dict[str, Any]:
        judged = [(row, p, *astuple(nearest)) for row, (p, nearest) in self.judged.items()]
        return {
            "version": 1,
            "known": self.known.snapshot(),
            "bags": self.bags.snapshot(),
            "vectors": self.vectors.snapshot(),
            "values": self.values.snapshot(),
            "judged": np.array(judged, np.float64).reshape(-1, 7),
            "learned_at": self.learned_at,
            "faded_ns": self.faded_ns,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["version"] != 1:
            raise ValueError(f"retrieval snapshot of version {state['version']}, expected 1")
        self.known.restore(state["known"])
        self.bags.restore(state["bags"])
        self.vectors.restore(state["vectors"])
        self.values.restore(state["values"])
        self.judged = {
            int(row): (p, Nearest(distance, deviation, int(other), int(event), bool(extra)))
            for row, p, distance, deviation, other, event, extra in np.asarray(state["judged"]).tolist()
        }
        self.learned_at, self.faded_ns = float(state["learned_at"]), int(state["faded_ns"])


def embedder(config: RetrievalConfig) -> Embedder:
    """What `config` asks for.

    Raises:
        ValueError, OSError: as `OnnxEmbedder`.
    """
    if config.embedding_model is None:
        return HashedEmbedder()
    return OnnxEmbedder(Path(config.embedding_model), config.embedding_sha256)


def build(config: Config, symbols: Symbols) -> Retrieval:
    """The detector as configured."""
    return Retrieval(config.detectors.retrieval, symbols, config.join.attributes)
