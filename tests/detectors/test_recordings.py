"""Quality gates: real faults in real recordings, one pass in time order, settings as shipped, no label used.

How it works. Every recording goes through the whole engine once; `collector_processor/evaluation` measures it as
`make evaluate` does. The limits are the goals of the project, not what the present code just reaches. What is *false*
by the labels includes real trouble that they do not mention; `docs/detection.md` lists it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from collector_processor.config import Config
from collector_processor.evaluation.faults import FaultReport
from collector_processor.evaluation.labels import load
from collector_processor.evaluation.run import Report, evaluate

pytestmark = [pytest.mark.data, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Goal:
    """What must be reached on a recording."""

    recording: str
    found: int
    roc_auc: float  # of single chains, as is the next
    f1: float
    false_per_covered_hour: float = 1.0
    named_first: float = 0.9
    named_third: float = 0.97
    median_s: float = 60.0


GOALS = (
    Goal("nezha_tt_0130", 15, roc_auc=0.85, f1=0.72),
    Goal("tt_stream_0130", 15, roc_auc=0.85, f1=0.65),
    Goal("nezha_tt_0129_part", 8, roc_auc=0.70, f1=0.50),
)


@cache
def measured(folder: Path) -> Report:
    labels = load([folder / "labels.jsonl"])
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(".zst"))
    return evaluate(paths, labels, Config(), rivals=False)


def faults(data_dir: Path, recording: str) -> FaultReport:
    report = measured(data_dir / "recordings" / recording).faults
    assert report is not None
    return report


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.recording)
def test_real_faults_are_found_and_named(data_dir: Path, goal: Goal) -> None:
    report = faults(data_dir, goal.recording)
    missed = [result.fault.fault_id for result in report.results if not result.found]
    assert report.found >= goal.found, f"missed: {missed}"
    first, third = report.named_first(1), report.named_first(3)
    assert first is not None
    assert first >= goal.named_first
    assert third is not None
    assert third >= goal.named_third
    assert report.time_to_detect_s is not None
    assert report.time_to_detect_s <= goal.median_s


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.recording)
def test_hardly_anything_is_paged_without_a_fault(data_dir: Path, goal: Goal) -> None:
    report = faults(data_dir, goal.recording)
    told = [(incident.kind, incident.subject["service"]) for incident in report.false]
    assert report.false_per_covered_hour <= goal.false_per_covered_hour, f"false: {told}"


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.recording)
def test_single_chains_are_told_apart(data_dir: Path, goal: Goal) -> None:
    chains = measured(data_dir / "recordings" / goal.recording).selections["all"]
    assert chains.roc_auc is not None
    assert chains.roc_auc >= goal.roc_auc
    assert chains.decisions.f1 > goal.f1


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.recording)
def test_every_incident_can_be_looked_into(data_dir: Path, goal: Goal) -> None:
    """Each tells what happened in a sentence, suspects somebody, and leads to traces."""
    incidents = list(measured(data_dir / "recordings" / goal.recording).observed.last.values())
    assert all(incident.explanation["trigger"] and incident.suspects for incident in incidents)
    with_traces = np.mean([bool(incident.example_trace_ids) for incident in incidents])
    assert with_traces >= 0.9
