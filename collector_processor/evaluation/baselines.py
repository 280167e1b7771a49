"""Simple detectors that any result has to beat, behind the same protocol, calibration and budget as the real ones.

How it works. Each is a score and what it has learned, in some twenty lines: unseen events, unseen pairs of events,
distance to the nearest count vector, and the on-call engineer's own rule: an error or a slow root. They learn as the
real ones do, prequentially, from what decide clears. `flag everything` needs no code: its F1 follows from the share of
anomalies.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from collector_processor.config import Config
from collector_processor.evaluation.prequential import Prequential
from collector_processor.model import F64, I64, NONE, U64, Bool, ChainBatch, Findings, Symbols, no_findings
from detectors.protocol import Detector, Scores

BUCKETS = 256  # of a count vector: events hashed by their content
VECTORS_MAX = 500  # per flow
PAIRS_MAX = 1_000_000
ERROR_LOG, ERROR_SPAN = 17, 2
DURATIONS_MAX = 300


class Baseline:
    """What the four have in common: no windows, no evidence, nothing to restore."""

    name = ""

    def advance(self, now_ns: int) -> Findings:
        del now_ns
        return no_findings()

    def evidence(self, finding: np.void) -> dict[str, Any]:
        del finding
        return {}

    def version(self) -> str:
        return "baseline"

    def describe_state(self) -> str | None:
        return None

    def snapshot(self) -> dict[str, Any]:
        return {"version": 1}

    def restore(self, state: dict[str, Any]) -> None:
        """Baselines live for one evaluation only."""


def _summed(values: F64, batch: ChainBatch) -> F64:
    """[n] sum of per-record `values` in each chain."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    sums: F64 = total[batch.offsets[1:]] - total[batch.offsets[:-1]]
    return sums


def _scores(value: F64) -> Scores:
    return Scores(value, no_findings())


class UnseenEvent(Baseline):
    """The number of records whose operation or template was never learned."""

    name = "unseen template"

    def __init__(self) -> None:
        self._seen = np.zeros(0, np.bool_)

    def score(self, batch: ChainBatch) -> Scores:
        self._grow(batch)
        return _scores(_summed((~self._seen[batch.event]).astype(np.float64), batch))

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        self._grow(batch)
        self._seen[batch.event[normal[batch.chain_of()]]] = True

    def _grow(self, batch: ChainBatch) -> None:
        missing = len(batch.symbols.events) - self._seen.size
        if missing > 0:
            self._seen = np.concatenate([self._seen, np.zeros(missing, np.bool_)])


class UnseenPair(Baseline):
    """The number of direct successions of two records that were never learned: an n-gram model of order two."""

    name = "n-gram"

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def score(self, batch: ChainBatch) -> Scores:
        codes, inverse = np.unique(self._pairs(batch), return_inverse=True)
        new = np.array([int(code) not in self._seen for code in codes], np.float64)
        return _scores(_summed(new[inverse] if codes.size else np.zeros(0), batch))

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        if len(self._seen) < PAIRS_MAX:
            self._seen.update(np.unique(self._pairs(batch)[normal[batch.chain_of()]]).tolist())

    def _pairs(self, batch: ChainBatch) -> U64:
        """[m] code of (event before, event), the first of a chain after nothing."""
        before = np.concatenate([[NONE], batch.event[:-1]]).astype(np.int64)
        before[batch.offsets[:-1][np.diff(batch.offsets) > 0]] = NONE
        codes: U64 = ((before + 1).astype(np.uint64) << np.uint64(32)) | batch.event.astype(np.uint64)
        return codes


class NearestCounts(Baseline):
    """1 - cosine similarity of the chain's count vector to the nearest one learned of the same flow."""

    name = "count-vector neighbour"

    def __init__(self) -> None:
        self._of_flow: dict[int, deque[F64]] = {}

    def score(self, batch: ChainBatch) -> Scores:
        vectors = self._vectors(batch)
        value = np.zeros(len(batch))
        for flow in np.unique(batch.flow).tolist():
            rows = np.flatnonzero(batch.flow == flow)
            known = self._of_flow.get(flow)
            value[rows] = 1.0 if not known else 1.0 - (vectors[rows] @ np.array(known).T).max(axis=1)
        return _scores(np.maximum(value, 0.0) * 10.0)

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        vectors = self._vectors(batch)
        for chain in np.flatnonzero(normal).tolist():
            known = self._of_flow.setdefault(int(batch.flow[chain]), deque(maxlen=VECTORS_MAX))
            if not known or (np.array(known) @ vectors[chain]).max() < 1.0 - 1e-9:
                known.append(vectors[chain])

    def _vectors(self, batch: ChainBatch) -> F64:
        """[n, BUCKETS] logarithmic counts, each of length one."""
        bucket = (batch.symbols.events.hash[batch.event] % np.uint64(BUCKETS)).astype(np.int64)
        cell: I64 = batch.chain_of().astype(np.int64) * BUCKETS + bucket
        counts = np.log1p(np.bincount(cell, minlength=len(batch) * BUCKETS)).reshape(len(batch), BUCKETS)
        vectors: F64 = counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)
        return vectors


class ErrorOrSlow(Baseline):
    """The on-call rule: an error log or span, or a root slower than most of its flow."""

    name = "ERROR log or slow root"

    def __init__(self) -> None:
        self._durations: dict[int, deque[float]] = {}

    def score(self, batch: ChainBatch) -> Scores:
        is_log = batch.kind == 0
        error = np.where(is_log, batch.status >= ERROR_LOG, batch.status == ERROR_SPAN)
        value = np.minimum(_summed(error.astype(np.float64), batch), 1.0) * 20.0
        took = self._roots(batch)
        for flow in np.unique(batch.flow).tolist():
            rows = np.flatnonzero(batch.flow == flow)
            known = np.sort(np.array(self._durations.get(flow, ())))
            slower = known.size - np.searchsorted(known, took[rows])
            value[rows] += -np.log((1.0 + slower) / (1.0 + known.size))
        return _scores(value)

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        took = self._roots(batch)
        for chain in np.flatnonzero(normal).tolist():
            self._durations.setdefault(int(batch.flow[chain]), deque(maxlen=DURATIONS_MAX)).append(float(took[chain]))

    def _roots(self, batch: ChainBatch) -> F64:
        """[n] duration of the root, of the whole chain when the root never came; ns."""
        whole = (batch.end_ns - batch.start_ns).astype(np.float64)
        return np.where(batch.root >= 0, batch.duration[np.maximum(batch.root, 0)] if batch.records else whole, whole)


def baselines(config: Config, symbols: Symbols) -> dict[str, Prequential]:
    """Every baseline with a calibration and budget of its own, by name."""
    every: list[Detector] = [UnseenEvent(), NearestCounts(), UnseenPair(), ErrorOrSlow()]
    return {one.name: Prequential(config, symbols, {one.name: one}, {one.name: "rec"}) for one in every}
