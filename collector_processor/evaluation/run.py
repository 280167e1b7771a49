"""`spanchain evaluate`: a labelled recording through the engine, and what its verdicts and incidents are worth.

How it works. The engine replays the recording once, in event time, at the given config; labels are read by the measures
only. Every chain leaves a row (`Seen`), every incident its first and its last state; the baselines judge the same
chains in the same order, each at the threshold that is best for it in hindsight. Chains are measured all together, once
per distinct event sequence, and those whose sequence had never come before. Our own threshold is the shipped one: a
chain is flagged when its severity is not `none`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from collector_processor.config import Config
from collector_processor.decode import otlp_json
from collector_processor.engine import Engine, Output
from collector_processor.evaluation.baselines import baselines
from collector_processor.evaluation.faults import FaultReport, judge
from collector_processor.evaluation.labels import NS, Labels
from collector_processor.evaluation.measures import Decisions, auc_pr, best_threshold, decisions, j_value, roc_auc
from collector_processor.evaluation.prequential import Prequential
from collector_processor.ingest.recording import open_recording
from collector_processor.join.joiner import DEFAULT_TENANT
from collector_processor.model import F64, I64, U64, Bool, ChainBatch, Incident, Payload, Severity, VerdictBatch

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one judge said of each chain of a stream, in closing order; [n] each."""

    trace_id: list[str]
    start_ns: I64
    closed_ns: I64
    sequence: U64
    score: F64
    flagged: Bool

    def take(self, rows: I64) -> Seen:
        """The same with only `rows`."""
        return Seen(
            [self.trace_id[row] for row in rows.tolist()],
            self.start_ns[rows],
            self.closed_ns[rows],
            self.sequence[rows],
            self.score[rows],
            self.flagged[rows],
        )


class Collected:
    """Rows of `Seen` as verdict batches come by."""

    def __init__(self) -> None:
        self._trace_id: list[str] = []
        self._columns: list[tuple[I64, I64, U64, F64, Bool]] = []

    def add(self, verdicts: VerdictBatch) -> None:
        batch = verdicts.chains
        self._trace_id += [batch.trace_id(chain) for chain in range(len(batch))]
        flagged = verdicts.severity > Severity.NONE
        self._columns.append((batch.start_ns, batch.closed_ns, batch.sequence, verdicts.score, flagged))

    def rows(self) -> Seen:
        """Everything so far."""
        none = (
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros(0, np.uint64),
            np.zeros(0),
            np.zeros(0, np.bool_),
        )
        columns = [np.concatenate(parts) for parts in zip(none, *self._columns, strict=True)]
        return Seen(self._trace_id, *columns)


@dataclass(slots=True)
class Observed:
    """One replay: what the engine said, what the baselines said, and how long the answers took."""

    engine: Seen
    baselines: dict[str, Seen]
    opened: dict[str, Incident]  # each incident as it was first told
    last: dict[str, Incident]  # and as it stood at the end
    latency_s: F64  # [chains] CPU time of the engine call that gave the verdict
    records: int
    seconds: float  # CPU time of the engine's calls

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.latency_s, 0.99)) if self.latency_s.size else 0.0


class Observer:
    """Feeds payloads to an engine and keeps what comes out."""

    def __init__(self, config: Config, with_baselines: bool = True) -> None:
        self.engine = Engine(config)
        self._seen = Collected()
        self._rivals = baselines(config, self.engine.symbols) if with_baselines else {}
        self._rivals_seen = {name: Collected() for name in self._rivals}
        self._opened: dict[str, Incident] = {}
        self._last: dict[str, Incident] = {}
        self._latency: list[F64] = []
        self._seconds = 0.0

    def run(self, paths: Iterable[Path], progress: Progress | None = None) -> Observed:
        """Replays `paths` to their end.

        Raises:
            OSError: a file cannot be read.
        """
        bytes_max = self.engine.config.receivers.limits.request_bytes_max
        recording = open_recording(paths, otlp_json.to_protobuf, tenant=DEFAULT_TENANT, bytes_max=bytes_max)

        def payloads() -> Iterator[Payload]:
            for count, (payload, reading) in enumerate(recording):
                yield payload
                if progress is not None and count % 64 == 0:
                    progress(reading.bytes_read)

        return self.watch(payloads())

    def watch(self, payloads: Iterable[Payload]) -> Observed:
        """Feeds `payloads`, in order of arrival, to their end."""
        for payload in payloads:
            started = time.thread_time()
            output = self.engine.process((payload,), payload.arrival_ns)
            self._take(output, time.thread_time() - started)
        self._take(self.engine.flush(), None)
        return Observed(
            self._seen.rows(),
            {name: seen.rows() for name, seen in self._rivals_seen.items()},
            self._opened,
            self._last,
            np.concatenate([np.zeros(0), *self._latency]),
            self.engine.records_closed,
            self._seconds,
        )

    def _take(self, output: Output, seconds: float | None) -> None:
        """`seconds` is None for what the end of the recording brings at once: nobody waited for it."""
        self._seconds += seconds or 0.0
        for incident in output.incidents:
            self._opened.setdefault(incident.incident_id, incident)
            self._last[incident.incident_id] = incident
        for verdicts in output.verdicts:
            self._seen.add(verdicts)
            if seconds is not None:
                self._latency.append(np.full(len(verdicts), seconds))
            for name, rival in self._rivals.items():
                feed(rival, verdicts.chains, self._rivals_seen[name])


def feed(rival: Prequential, chains: ChainBatch, seen: Collected) -> None:
    """Lets `rival` judge `chains` and keeps what it says."""
    for verdicts in rival.feed(chains):
        seen.add(verdicts)


@dataclass(frozen=True, slots=True)
class ChainMeasures:
    """One judge on one selection of labelled chains."""

    chains: int
    anomalous: int
    decisions: Decisions
    auc_pr: float | None
    roc_auc: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All measures of one recording. `selections` are `all`, `distinct` and `new` chains."""

    selections: dict[str, ChainMeasures]
    recall_by_type: dict[str, tuple[int, int]]  # fault type -> (anomalous chains flagged, all)
    baselines: dict[str, ChainMeasures]
    faults: FaultReport | None
    named_at_once: FaultReport | None  # the same by the suspects that an incident had when it opened
    flagged_outside: float  # share of the chains outside fault windows that were flagged
    records_per_second: float
    p99_s: float
    j: float
    observed: Observed = field(repr=False)

    @property
    def concerned(self) -> bool:
        """Whether any label is about this recording: a chain in it, or a fault while it ran."""
        seen = self.observed.engine
        if any(measures.chains for measures in self.selections.values()):
            return True
        if self.faults is None or not seen.start_ns.size:
            return False
        first, last = int(seen.start_ns.min()), int(seen.closed_ns.max())
        return any(one.fault.start_ns <= last and first <= one.fault.end_ns for one in self.faults.results)


def report(observed: Observed, labels: Labels) -> Report:
    """Measures what was observed against `labels`."""
    seen = observed.engine
    labelled = np.array([i for i, trace in enumerate(seen.trace_id) if trace in labels.chains], np.int64)
    anomalous = np.array([labels.chains[seen.trace_id[i]] for i in labelled], np.bool_)
    first = _first_of_sequence(seen.sequence)
    distinct = _first_of_sequence(seen.sequence[labelled])
    selections = {
        "all": _measured(seen, labelled, anomalous),
        "distinct": _measured(seen, labelled[distinct], anomalous[distinct]),
        "new": _measured(seen, labelled[first[labelled]], anomalous[first[labelled]]),
    }
    rivals = {name: _rival(rows, labels) for name, rows in observed.baselines.items()}
    rivals["flag everything"] = ChainMeasures(
        len(labelled),
        int(anomalous.sum()),
        decisions(anomalous, np.ones(len(labelled), np.bool_)),
        float(anomalous.mean()) if labelled.size else None,
        0.5,
    )
    outside = np.array([labels.fault_at(int(ns)) is None for ns in seen.start_ns], np.bool_)
    minutes = (seen.start_ns // (60 * NS)).tolist()
    judged = judge(list(observed.last.values()), labels.faults, minutes) if labels.faults else None
    at_once = judge(list(observed.opened.values()), labels.faults, minutes) if labels.faults else None
    if labels.chains:
        f1, recall = selections["all"].decisions.f1, selections["all"].decisions.recall
    else:
        f1, recall = (judged.f1, judged.recall) if judged else (0.0, 0.0)
    return Report(
        selections if labels.chains else {},
        _by_type(seen, labelled, anomalous, labels),
        rivals if labels.chains else {},
        judged,
        at_once,
        float(seen.flagged[outside].mean()) if outside.any() else 0.0,
        observed.records / max(observed.seconds, 1e-9),
        observed.p99_s,
        j_value(f1, recall, observed.p99_s),
        observed,
    )


def evaluate(
    paths: Iterable[Path], labels: Labels, config: Config, progress: Progress | None = None, rivals: bool = True
) -> Report:
    """The report on the recordings `paths` under `config`.

    Raises:
        OSError: a file cannot be read.
    """
    return report(Observer(config, rivals).run(paths, progress), labels)


def _first_of_sequence(sequence: U64) -> Bool:
    """[n] whether the chain is the first with its event sequence."""
    out = np.zeros(sequence.size, np.bool_)
    out[np.unique(sequence, return_index=True)[1]] = True
    return out


def _measured(seen: Seen, rows: I64, anomalous: Bool) -> ChainMeasures:
    score, flagged = seen.score[rows], seen.flagged[rows]
    return ChainMeasures(
        len(rows),
        int(anomalous.sum()),
        decisions(anomalous, flagged),
        auc_pr(anomalous, score),
        roc_auc(anomalous, score),
    )


def _rival(seen: Seen, labels: Labels) -> ChainMeasures:
    """A baseline at the threshold that suits it best on these very labels: more than it could know."""
    rows = np.array([i for i, trace in enumerate(seen.trace_id) if trace in labels.chains], np.int64)
    anomalous = np.array([labels.chains[seen.trace_id[i]] for i in rows], np.bool_)
    at_best = replace(seen, flagged=seen.score >= best_threshold(anomalous, seen.score[rows]))
    return _measured(at_best, rows, anomalous)


def _by_type(seen: Seen, rows: I64, anomalous: Bool, labels: Labels) -> dict[str, tuple[int, int]]:
    out: dict[str, tuple[int, int]] = {}
    for row in rows[anomalous].tolist():
        fault = labels.fault_at(int(seen.start_ns[row]))
        if fault is not None:
            flagged, every = out.get(fault.type, (0, 0))
            out[fault.type] = (flagged + bool(seen.flagged[row]), every + 1)
    return out
