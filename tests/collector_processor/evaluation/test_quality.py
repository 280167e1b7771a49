"""Detection quality at the shipped defaults, on real labelled traffic: what may not get worse.

How it works. One prequential pass, no label used, thresholds by the budget. The floors stand a little below what is
measured (`make evaluate`), so that a change that costs quality fails here and noise of the clock does not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from collector_processor.config import Config
from collector_processor.evaluation import show
from collector_processor.evaluation.datasets import DATASETS
from collector_processor.evaluation.labels import load
from collector_processor.evaluation.run import Report, evaluate
from collector_processor.evaluation.sets import evaluate_set

pytestmark = [pytest.mark.data, pytest.mark.slow]


def measured(data_dir: Path, name: str) -> Report:
    files, labels = show.recording_files(data_dir / "recordings" / name)
    return evaluate(files, load(labels), Config(), rivals=False)


@pytest.mark.parametrize(
    ("name", "found", "roc_auc", "f1"),
    [
        ("nezha_tt_0130", 15, 0.85, 0.72),
        ("tt_stream_0130", 15, 0.85, 0.65),
        ("nezha_tt_0129_part", 8, 0.70, 0.50),
    ],
)
def test_faults_are_found_named_and_not_invented(
    data_dir: Path, name: str, found: int, roc_auc: float, f1: float
) -> None:
    report = measured(data_dir, name)
    assert report.faults is not None
    assert report.faults.found >= found
    assert report.faults.false_per_covered_hour <= 1.0
    assert (report.faults.named_first(1) or 0.0) >= 0.9
    assert (report.faults.named_first(3) or 0.0) >= 0.97
    assert (report.faults.time_to_detect_s or 0.0) <= 60.0
    every = report.selections["all"]
    assert every.roc_auc is not None
    assert every.roc_auc >= roc_auc
    assert every.decisions.f1 > f1


@pytest.mark.parametrize(("name", "f1"), [("hdfs", 0.93), ("p2p-1", 0.92), ("p2p-2", 0.93), ("p2p-3", 0.93)])
def test_sets_of_sequences(data_dir: Path, name: str, f1: float) -> None:
    report = evaluate_set(DATASETS[name], data_dir, Config())
    assert report.selections["all"].decisions.f1 >= f1
