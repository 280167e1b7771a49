"""Labelled sets of cases under the honest protocol: what comes later is judged by what came before.

How it works. Cases become chains (`cases.py`), and the second half of the time is measured. A *live* set, with its own
times and its natural share of anomalies, is one prequential pass in which no label is used. In any other set the normal
cases of the first half train detectors and calibration, each judged before it is learned, so that calibration is by
chains not yet learned; then nothing learns any more: templates, weights and thresholds are those of the first half. A
case is flagged when its severity is not `none`, that is by the alert budget over the rate of the set's own traffic.
Baselines see the same. They stand twice: with the threshold best for them in hindsight, and with the same calibration
and budget as spanchain, which is the floor that it has to reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from collector_processor.config import Config
from collector_processor.evaluation.baselines import baselines
from collector_processor.evaluation.cases import Case, build
from collector_processor.evaluation.datasets import Dataset
from collector_processor.evaluation.measures import auc_pr, best_threshold, decisions, roc_auc
from collector_processor.evaluation.prequential import Prequential
from collector_processor.evaluation.run import ChainMeasures, Collected, Seen
from collector_processor.model import Bool, ChainBatch, Symbols
from detectors import registry

TEST_BATCH = 256


@dataclass(frozen=True, slots=True)
class SetReport:
    """Measures on the test half. `selections` are `all`, `distinct` and `new` cases (sequence not in training)."""

    name: str
    train_cases: int
    selections: dict[str, ChainMeasures]
    recall_by_type: dict[str, tuple[int, int]]
    baselines: dict[str, ChainMeasures]
    floors: dict[str, ChainMeasures]  # the same baselines at the same budget


def evaluate_set(dataset: Dataset, data: Path, config: Config) -> SetReport:
    """The report on one set under the data folder.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    symbols = Symbols()
    cases = dataset.read(data)
    chains = ChainBatch.concat(build(cases, config, symbols))
    by_trace = {case.trace_id.hex(): case for case in cases}
    labels = [by_trace[chains.trace_id(i)] for i in range(len(chains))]
    anomalous = np.array([case.anomalous for case in labels], np.bool_)
    middle = sorted(case.spans[0].start_ns for case in cases if not case.anomalous)[_normal(cases) // 2]
    later = chains.start_ns >= middle
    detectors = registry.build(config, symbols)
    judges = {"": Prequential(config, symbols, detectors, registry.components(list(detectors)))}
    judges |= baselines(config, symbols)
    test, train = np.flatnonzero(later), ~later & (dataset.live | ~anomalous)
    if dataset.live:
        seen = {name: _live(judge, chains, later) for name, judge in judges.items()}
    else:
        seen = {name: _frozen(judge, chains.take(train), chains.take(test)) for name, judge in judges.items()}
    ours, truth = seen.pop(""), anomalous[test]
    known = np.unique(chains.sequence[train])
    return SetReport(
        dataset.name,
        int(train.sum()),
        _selections(ours, truth, ~np.isin(ours.sequence, known)),
        _by_type([labels[i] for i in test.tolist()], ours.flagged),
        _rivals(seen, truth),
        {name: measured(rows, truth, np.ones(len(truth), np.bool_)) for name, rows in seen.items()},
    )


def _normal(cases: list[Case]) -> int:
    return sum(not case.anomalous for case in cases)


def _frozen(judge: Prequential, train: ChainBatch, test: ChainBatch) -> Seen:
    """What `judge` says of the test chains after the training ones."""
    judge.train(train)
    seen = Collected()
    for start in range(0, len(test), TEST_BATCH):
        seen.add(judge.score(test.take(np.arange(start, min(start + TEST_BATCH, len(test))))))
    return seen.rows()


def _live(judge: Prequential, chains: ChainBatch, later: Bool) -> Seen:
    """What `judge` says of the later chains when all go by in order."""
    seen = Collected()
    for verdicts in judge.feed(chains):
        seen.add(verdicts)
    return seen.rows().take(np.flatnonzero(later))


def _selections(seen: Seen, anomalous: Bool, new: Bool) -> dict[str, ChainMeasures]:
    distinct = np.zeros(len(anomalous), np.bool_)
    distinct[np.unique(seen.sequence, return_index=True)[1]] = True
    every = np.ones(len(anomalous), np.bool_)
    return {
        name: measured(seen, anomalous, rows) for name, rows in (("all", every), ("distinct", distinct), ("new", new))
    }


def measured(seen: Seen, anomalous: Bool, rows: Bool) -> ChainMeasures:
    """Measures of `seen` on `rows` [n]."""
    truth, score = anomalous[rows], seen.score[rows]
    made = decisions(truth, seen.flagged[rows])
    return ChainMeasures(int(rows.sum()), int(truth.sum()), made, auc_pr(truth, score), roc_auc(truth, score))


def _rivals(seen: Mapping[str, Seen], anomalous: Bool) -> dict[str, ChainMeasures]:
    every = np.ones(len(anomalous), np.bool_)
    out = {}
    for name, rows in seen.items():
        at_best = replace(rows, flagged=rows.score >= best_threshold(anomalous, rows.score))
        out[name] = measured(at_best, anomalous, every)
    anything = decisions(anomalous, every)
    out["flag everything"] = ChainMeasures(
        len(anomalous), int(anomalous.sum()), anything, float(anomalous.mean()) if len(anomalous) else None, 0.5
    )
    return out


def _by_type(cases: list[Case], flagged: Bool) -> dict[str, tuple[int, int]]:
    out: dict[str, tuple[int, int]] = {}
    for case, hit in zip(cases, flagged.tolist(), strict=True):
        if case.anomalous and case.type:
            right, every = out.get(case.type, (0, 0))
            out[case.type] = (right + hit, every + 1)
    return out
