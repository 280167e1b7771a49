"""Flows as a whole, minute by minute: errors, durations, log volume and scores together, with River's learners.

How it works. Chains are summed up per flow and slice, in integers, so that their grouping leaves no trace. When a slice
ends, five features are standardised by mean and deviation of the flow's past, (x - mean) / deviation, both updated by
clipped amounts. River's half-space trees score their combination; its rank among the flow's past scores is a p-value.
An unusual slice does not train, unless River's ADWIN says that the p-values themselves have drifted: then what is seen
is the new normal. A slice that is unusual beyond all its past is a finding about the flow. By rank alone it never
pages: it supports what elements say, and names errors and log floods that no single element shows.

River works once a flow and slice (0.1 ms), never per record. What it has learned follows exactly from the samples since
the trees' last turn but one, and from the p-values since ADWIN was made: those are the snapshot.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collector_processor.kernels import slices as kernels
from collector_processor.model import F64, I64, NONE, ChainBatch, Findings, Kind, Level, no_findings

NS = 1_000_000_000
FEATURES = ("rate", "errors", "duration", "logs", "scores")
FLOWS_MAX = 64
CHAINS_MIN = 10  # of a slice that is judged
SLICES_MIN = 60  # of a flow before its slices are findings
TREE_SLICES = 60  # after which the trees take the last ones as their reference
SCORES_KEPT = 512
ADWIN_SLICES = 3  # of a flow before River is asked, which takes a second to load
ADWIN_MAX = 512  # p-values after which ADWIN starts anew, so that a restart can replay it
ADWIN_DELTA = 0.002
ADWIN_SEEDS = 30
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are evenly spread at any length
Z_MAX = 6.0
Z_FINDING = 4.0
MEMORY = 1.0 / 120.0  # least weight of a new slice in mean and deviation


def load_learners() -> None:
    """Imports River, which takes about a second; otherwise the first slice that ends does."""
    importlib.import_module("river.anomaly")
    importlib.import_module("river.drift")


def _trees() -> Any:
    from river import anomaly

    limits: dict[Any, tuple[float, float]] = dict.fromkeys(FEATURES, (0.0, 1.0))
    return anomaly.HalfSpaceTrees(n_trees=8, height=6, window_size=TREE_SLICES, limits=limits, seed=1)


def _adwin() -> Any:
    """ADWIN that has seen what p-values are when nothing drifts: evenly spread ones."""
    from river import drift

    made: Any = drift.ADWIN
    out = made(delta=ADWIN_DELTA)
    for i in range(ADWIN_SEEDS):
        out.update(i * GOLDEN % 1.0)
    return out


@dataclass(slots=True)
class Flow:
    """What is known of one flow's slices."""

    mean: F64
    deviation: F64
    slices: int = 0
    samples: list[list[float]] = field(default_factory=list)  # what the trees learned since their last turn but one
    scores: list[float] = field(default_factory=list)
    p_values: list[float] = field(default_factory=list)  # since ADWIN was made
    drifts: int = 0
    trees: Any = None
    adwin: Any = None

    def score(self, squashed: list[float]) -> float:
        if self.trees is None:
            return 0.0
        return float(self.trees.score_one(dict(zip(FEATURES, squashed, strict=True))))

    def learn(self, squashed: list[float]) -> None:
        self.samples.append(squashed)
        if self.trees is not None:
            self.trees.learn_one(dict(zip(FEATURES, squashed, strict=True)))
        elif len(self.samples) >= TREE_SLICES:  # before, they would say 0
            self.trees = _trees()
            for sample in self.samples:
                self.trees.learn_one(dict(zip(FEATURES, sample, strict=True)))
        if len(self.samples) == 2 * TREE_SLICES:
            del self.samples[:TREE_SLICES]

    def has_drifted(self, p: float) -> bool:
        """Takes in a p-value; whether ADWIN finds that they have changed for good."""
        self.p_values.append(p)
        if self.adwin is not None:
            self.adwin.update(p)
        elif len(self.p_values) >= ADWIN_SLICES:
            self.adwin = _adwin()
            for value in self.p_values:
                self.adwin.update(value)
        drifted = self.adwin is not None and bool(self.adwin.drift_detected)
        if drifted or len(self.p_values) >= ADWIN_MAX:
            self.drifts += drifted
            self.adwin, self.p_values = None, []
        return drifted


class Slices:
    """See the module. `slice_s` is a multiple of the epoch."""

    def __init__(self, slice_s: float) -> None:
        self.slice_ns = int(slice_s * NS)
        self.flows: dict[int, Flow] = {}
        self.overflowed = 0
        self.index = NONE  # of the running slice
        self.sums: I64 = np.zeros((0, len(FEATURES)), np.int64)  # per flow: chains, then FEATURES without the rate
        self.facts: dict[int, tuple[str, float, float]] = {}  # flow -> feature, usual, seen, of the last findings

    def observe(self, batch: ChainBatch, nats: F64) -> None:
        """Sums up closed chains with their scores `nats` [n]."""
        have = self.sums.shape[0]
        if len(batch.symbols.flows) > have and (need := int(batch.flow.max(initial=0)) + 1) > have:
            more = np.zeros((max(need, 2 * have) - have, len(FEATURES)), np.int64)
            self.sums = np.concatenate([self.sums, more])
        columns = (batch.offsets, batch.kind, batch.status, batch.flow, batch.start_ns, batch.end_ns)
        kernels.sum_flows(*columns, nats, self.sums)

    def advance(self, now_ns: int) -> Findings:
        """Findings about the slice that ended, if one did, by the boundary `now_ns`."""
        index = now_ns // self.slice_ns
        if index == self.index:
            return no_findings()
        first, self.index = self.index == NONE, index
        found = []
        for flow in [] if first else np.flatnonzero(self.sums[:, 0] >= CHAINS_MIN).tolist():
            said = self._judged(flow, self._features(self.sums[flow]))
            if said is not None:
                found.append((flow, *said))
        self.sums[:] = 0
        rows = no_findings(len(found))
        self.facts = {}
        for i, (flow, kind, p, feature, usual, seen) in enumerate(found):
            rows["kind"][i], rows["level"][i], rows["flow"][i], rows["p"][i] = kind, Level.FLOW, flow, p
            rows["expected"][i], rows["actual"][i], rows["detail"][i] = usual, seen, NONE
            self.facts[flow] = (feature, usual, seen)
        return rows

    def _features(self, sums: I64) -> F64:
        """Chains a second (log), share with errors, log duration, logs a chain (log), score."""
        chains = float(sums[0])
        means = sums[1:5] / chains / kernels.FINE
        rate = np.log(chains / (self.slice_ns / NS))
        return np.array([rate, means[0], means[1], np.log1p(means[2]), means[3]])

    def _judged(self, number: int, features: F64) -> tuple[int, float, str, float, float] | None:
        """Kind, p, feature, usual and seen when the slice is a finding; learns."""
        flow = self.flows.get(number)
        if flow is None:
            if len(self.flows) >= FLOWS_MAX:
                self.overflowed += 1
                return None
            flow = self.flows[number] = Flow(features.copy(), np.array([0.5, 0.02, 0.3, 0.1, 0.3]))
        z = np.clip((features - flow.mean) / flow.deviation, -Z_MAX, Z_MAX)
        squashed = (0.5 + z / (2 * Z_MAX)).tolist()
        score = flow.score(squashed)
        p = (1.0 + sum(other >= score for other in flow.scores)) / (len(flow.scores) + 1.0)
        unusual = flow.slices >= SLICES_MIN and p <= 1.0 / SLICES_MIN and float(np.abs(z).max()) >= Z_FINDING
        drifted = flow.has_drifted(p)
        out = self._finding(flow, features, z, p) if unusual else None
        if not unusual or drifted:
            self._learn(flow, features, squashed, score)
        return out

    @staticmethod
    def _learn(flow: Flow, features: F64, squashed: list[float], score: float) -> None:
        weight = max(1.0 / (flow.slices + 2.0), MEMORY)
        step = np.clip(features - flow.mean, -3.0 * flow.deviation, 3.0 * flow.deviation)
        flow.mean = flow.mean + weight * step
        spread = (1.0 - weight) * flow.deviation**2 + weight * step**2
        flow.deviation = np.maximum(np.sqrt(spread), [0.05, 0.002, 0.02, 0.01, 0.02])
        flow.learn(squashed)
        flow.scores = [*flow.scores, score][-SCORES_KEPT:]
        flow.slices += 1

    @staticmethod
    def _finding(flow: Flow, features: F64, z: F64, p: float) -> tuple[int, float, str, float, float] | None:
        """What stands out upwards, if that is something that the rate alone does not explain."""
        worst = int(np.argmax(z[1:4])) + 1
        if z[worst] < Z_FINDING:
            return None
        name = FEATURES[worst]
        kind = {"errors": Kind.ERROR, "duration": Kind.SLOW_OPERATION, "logs": Kind.RATE_SURGE}[name]
        usual, seen = float(flow.mean[worst]), float(features[worst])
        if name == "duration":
            usual, seen = float(np.exp(usual)) / NS, float(np.exp(seen)) / NS
        elif name == "logs":
            usual, seen = float(np.expm1(usual)), float(np.expm1(seen))
        return int(kind), p, name, usual, seen

    def sentence(self, flow: int, name: str) -> str | None:
        """What the last finding about `flow`, called `name`, says."""
        if flow not in self.facts:
            return None
        feature, usual, seen = self.facts[flow]
        if feature == "errors":
            return f"{seen:.1%} of the chains of {name} hold an error, usually {usual:.1%}"
        if feature == "duration":
            return f"Chains of {name} take {seen:.3g} s, usually {usual:.3g} s"
        return f"Chains of {name} write {seen:.3g} log lines each, usually {usual:.3g}"

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "index": self.index,
            "overflowed": self.overflowed,
            "sums": self.sums.copy(),
            "facts": [[flow, *fact] for flow, fact in self.facts.items()],
            "flows": [
                {
                    "flow": number,
                    "mean": flow.mean.copy(),
                    "deviation": flow.deviation.copy(),
                    "slices": flow.slices,
                    "samples": [list(sample) for sample in flow.samples],
                    "scores": list(flow.scores),
                    "p_values": list(flow.p_values),
                    "drifts": flow.drifts,
                }
                for number, flow in self.flows.items()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.index, self.overflowed = int(state["index"]), int(state["overflowed"])
        self.sums = np.array(state["sums"], np.int64)
        self.facts = {int(flow): (str(name), float(usual), float(seen)) for flow, name, usual, seen in state["facts"]}
        self.flows = {}
        for saved in state["flows"]:
            flow = Flow(np.array(saved["mean"]), np.array(saved["deviation"]), int(saved["slices"]))
            for sample in saved["samples"]:
                flow.learn([float(value) for value in sample])
            for p in saved["p_values"]:
                flow.has_drifted(float(p))
            flow.drifts = int(saved["drifts"])
            flow.scores = [float(score) for score in saved["scores"]]
            self.flows[int(saved["flow"])] = flow
