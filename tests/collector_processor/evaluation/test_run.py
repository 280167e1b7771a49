"""A small labelled recording, written as a Collector writes it, from the files to the report and its figures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from collector_processor.config import Config
from collector_processor.evaluation import show
from collector_processor.evaluation.labels import Labels, load
from collector_processor.evaluation.run import Report, evaluate
from tests.collector_processor.evaluation.small_recording import FAULT_S, LENGTH_S, write

pytestmark = pytest.mark.slow  # the recording is made and replayed first


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recording, labels)"""
    return write(tmp_path_factory.mktemp("recording"))


@pytest.fixture(scope="module")
def report(recording: tuple[Path, Path]) -> Report:
    return evaluate([recording[0]], load([recording[1]]), Config())


def test_the_fault_is_found_and_named(report: Report) -> None:
    assert report.faults is not None
    assert report.faults.found == 1
    assert report.faults.results[0].first_rank == 1
    assert 0 < report.faults.results[0].found_after_s < 90  # type: ignore[operator]
    assert len(report.faults.false) == 0
    assert report.faults.hours == pytest.approx((LENGTH_S - 240) / 3600, abs=0.05)


def test_chains_are_told_apart(report: Report) -> None:
    every = report.selections["all"]
    assert (every.chains, every.anomalous) == (LENGTH_S - 601, FAULT_S[1] - FAULT_S[0] + 1)
    assert every.roc_auc is not None
    assert every.roc_auc > 0.95
    assert every.decisions.recall == 1.0
    assert every.decisions.f1 > 0.7  # windows remember the fault for a while after its end
    assert report.recall_by_type["slow"][1] == every.anomalous
    assert report.selections["distinct"].chains == 2
    assert report.j == pytest.approx(every.decisions.f1 + every.decisions.recall - report.p99_s)
    assert report.flagged_outside < 0.1


def test_baselines_stand_beside_it(report: Report) -> None:
    assert set(report.baselines) == {
        *("unseen template", "count-vector neighbour", "n-gram", "ERROR log or slow root", "flag everything"),
    }
    assert report.baselines["ERROR log or slow root"].decisions.f1 > 0.85
    assert report.baselines["flag everything"].decisions.recall == 1.0


def test_labels_change_no_verdict(recording: tuple[Path, Path], report: Report) -> None:
    blind = evaluate([recording[0]], Labels(), Config(), rivals=False)
    assert blind.observed.engine.score.tobytes() == report.observed.engine.score.tobytes()
    assert blind.selections == {}
    assert blind.faults is None
    assert blind.j == 0.0 - blind.p99_s
    json.loads(orjson.dumps(show.as_dict(blind)))


def test_it_is_shown_as_tables_json_and_pictures(recording: tuple[Path, Path], report: Report, tmp_path: Path) -> None:
    measures = json.loads(orjson.dumps(show.as_dict(report)))
    assert measures["incidents"]["found"] == 1
    assert measures["incidents"]["root_cause"] == {"top_1": 1.0, "top_3": 1.0, "top_5": 1.0}
    assert measures["faults"][0]["service"] == "ledger"
    assert measures["chains"]["all"]["f1"] == pytest.approx(report.selections["all"].decisions.f1, abs=1e-3)
    console = Console(width=140, record=True, file=io.StringIO())
    for table in show.tables("small", report):
        console.print(table)
    text = console.export_text()
    assert "1 of 1 faults found" in text
    assert "flag everything" in text
    pytest.importorskip("matplotlib", reason="the extra `evaluate` is not installed")
    written = show.figures(report, load([recording[1]]), tmp_path / "figures", "small")
    assert [path.name for path in written] == ["small_scores.png", "small_precision_recall.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in written)
