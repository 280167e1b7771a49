"""Incidents and boards for the demo's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from collector_processor.demo.board import Board
from collector_processor.demo.story import story
from collector_processor.model import Incident
from collector_processor.simulator.faults import SECOND_NS

START_NS = 1_760_000_000 * SECOND_NS


def make_incident(
    key: str, at_s: float, *services: str, severity: str = "warning", text: str = "calls fail", **over: object
) -> Incident:
    """An incident detected `at_s` after START_NS that suspects `services` in that order."""
    fields = {
        "incident_id": key,
        "tenant": "default",
        "kind": "slow_call",
        "category": "system",
        "severity": severity,
        "subject": {"service": services[0], "operation": None, "instance": None},
        "suspects": [{"service": service, "operation": None, "score": 1.0} for service in services],
        "flows": [],
        "opened_unix_nano": START_NS + int((at_s - 2) * SECOND_NS),
        "detected_unix_nano": START_NS + int(at_s * SECOND_NS),
        "resolved_unix_nano": None,
        "chains": 5,
        "example_trace_ids": [],
        "explanation": {"trigger": text},
    }
    return Incident(**{**fields, **over})


@pytest.fixture
def incident() -> Callable[..., Incident]:
    return make_incident


@pytest.fixture
def start_ns() -> int:
    return START_NS


@pytest.fixture
def board() -> Board:
    """The two-minute story; nothing was said yet."""
    return Board(story(1, START_NS + 37 * SECOND_NS, 83.0))  # the first fault at 40 s
