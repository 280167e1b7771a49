"""Incidents against faults: by hand, and against the reference implementation when it lies beside the data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from collector_processor.decide.verdicts import incident_row
from collector_processor.evaluation.faults import judge, suspects
from collector_processor.evaluation.labels import NS, Fault
from collector_processor.model import Incident
from tests.examples import examples


def incident(at_s: float, *services: str, subject: str | None = None) -> Incident:
    named = [{"service": service, "operation": None, "score": 1.0} for service in services]
    at = int(at_s * NS)
    identity = f"{at:x}-{'-'.join(services)}"
    return Incident(
        identity, "t", "error", "system", "warning", {"service": subject}, named, [], at, at, None, 3, [], {}
    )


FAULTS = [Fault("f1", 1000 * NS, 1100 * NS, "a", "delay"), Fault("f2", 2000 * NS, 2100 * NS, "b", "error", 5.0)]


def test_found_named_and_false_by_hand() -> None:
    given_incidents = [
        incident(985, "x", "y", "z", "a"),  # in f1's window, a is only the fourth
        incident(1030, "y", "a"),
        incident(1990, "b"),  # before f2's early_s: false
        incident(2165, "b"),  # after the window for finding, but excused
        incident(2230, "b"),  # false
    ]
    report = judge(given_incidents, FAULTS, range(100, 220))
    first, second = report.results
    assert (first.found, first.incidents, first.first_rank, first.found_after_s) == (True, 2, 4, 30.0)
    assert (second.found, second.incidents, second.first_rank, second.found_after_s) == (False, 0, None, None)
    assert [i.detected_unix_nano // NS for i in report.false] == [1990, 2230]
    assert report.false_per_hour == 1.0
    assert (report.precision, report.recall) == (0.6, 0.5)
    assert report.time_to_detect_s == 30.0
    assert (report.named_first(1), report.named_first(3), report.named_first(5)) == (0.0, 0.0, 1.0)
    assert report.by_type() == {"delay": (1, 1), "error": (0, 1)}


def test_nothing_at_all() -> None:
    report = judge([], FAULTS, [])
    assert (report.found, report.precision, report.f1, report.false_per_hour) == (0, 0.0, 0.0, 0.0)
    assert report.time_to_detect_s is None
    assert report.named_first(1) is None


def test_the_subject_stands_in_for_suspects() -> None:
    assert suspects(incident(1, subject="a")) == ("a",)
    assert suspects(incident(1)) == ()
    assert suspects(incident(1, "a", "a", "b")) == ("a", "b")


def test_hours_are_minutes_with_traffic() -> None:
    minutes = [10, 10, 11, 12, 17, 18, 40]  # f1 reaches from 980 s to 1220 s: minutes 16.3 to 20.3
    report = judge([incident(50, "a")], FAULTS, minutes)
    assert (report.hours, report.covered_hours) == (4 / 60, 6 / 60)
    assert (report.false_per_hour, report.false_per_covered_hour) == (pytest.approx(15.0), pytest.approx(10.0))


@pytest.fixture(scope="module")
def reference() -> Any:
    path = Path(__file__).parents[4] / "shared" / "checks" / "score_incidents.py"
    if not path.is_file():
        pytest.skip(f"compared with a scorer that is not part of this repository, and not at {path}")
    spec = importlib.util.spec_from_file_location("score_incidents", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SERVICES = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=5)
WHEN = st.integers(900, 2300)


@given(
    found=st.lists(st.builds(lambda at, names, sub: incident(at, *names, subject=sub), WHEN, SERVICES, st.just("c"))),
    early=st.sampled_from([5.0, 20.0, 60.0]),
)
@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_reference_agrees(reference: Any, found: list[Incident], early: float) -> None:
    found = list({i.incident_id: i for i in found}.values())
    found = [i for n, i in enumerate(found) if i.detected_unix_nano not in {j.detected_unix_nano for j in found[:n]}]
    faults = [FAULTS[0], Fault("f2", 2000 * NS, 2100 * NS, "b", "error", early)]
    rows = [
        dict(
            zip(
                ("fault_id", "start_unix_nano", "end_unix_nano", "service", "type", "early_s"),
                (f.fault_id, f.start_ns, f.end_ns, f.service, f.type, f.early_s),
                strict=True,
            )
        )
        for f in faults
    ]
    theirs, their_rows, false = reference.score([incident_row(i) for i in found], rows, 2.0)
    ours = judge(found, faults, [])
    assert (ours.found, ours.incidents, len(ours.false)) == (theirs["found"], theirs["incidents"], len(false))
    for mine, row in zip(ours.results, their_rows, strict=True):
        assert (mine.found, mine.incidents) == (row["found"], row["alarms"])
        if row["found"]:
            assert mine.found_after_s == row["ttd"]
        rank = row["rank_first"]
        assert mine.first_rank == (rank if rank != 99 else None)
