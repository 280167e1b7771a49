"""Inline mode with a real Collector on both sides: applications -> Collector -> spanchain -> Collector -> backend.

How it works. The payment platform and a foreign client send to a Collector with the shipped `collector-inline.yaml`,
whose only way to the backend is through spanchain; a rule calls every foreign trace unusual. Meanwhile spanchain is
ended by SIGKILL and started again. What reached the backend must be what the Collector had accepted from applications,
each span and record once or as a copy, with an event for each foreign trace.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Processes, http_get
from tests.e2e.site import ROOT, Binaries, Site, attributes, merged
from tests.e2e.test_collector_to_page import EVENT, OURS, QUICK
from tests.e2e.test_site import generate

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FOREIGN = 25  # traces, before spanchain is killed and again while it is away
PLATFORM_S = 20
RULE = """
rules:
  - name: nobody-is-foreign
    category: compliance
    severity: critical
    text: "a foreign client came in"
    forbid: [{present: foreign okey*}]
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What the backend has, and what the Collector took from applications."""

    spans: list[dict[str, Any]]
    logs: list[dict[str, Any]]
    accepted: dict[str, int]  # by signal

    def apps(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of `records` that applications sent."""
        return [record for record in records if record["scope"] != OURS]


def accepted(site: Site) -> dict[str, int]:
    """Spans and log records that the receiver for applications has accepted."""
    counts = Counter[str]()
    names = {"spans": "otelcol_receiver_accepted_spans", "logs": "otelcol_receiver_accepted_log_records"}
    for line in http_get(f"http://{site.address('collector_metrics')}/metrics").splitlines():
        for signal, name in names.items():
            if line.startswith(name) and 'receiver="otlp"' in line:
                counts[signal] += int(float(line.rpartition(" ")[2]))
    return dict(counts)


@pytest.fixture(scope="module")
def run(binaries: Binaries, telemetrygen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One run for all tests of this file."""
    folder = tmp_path_factory.mktemp("inline")
    rules = folder / "rules.yaml"
    rules.write_text(RULE)
    settings = merged(QUICK, {"detectors": {"context": {"rules": [str(rules)]}}})
    with Processes(folder) as processes:
        site = Site(processes, folder, binaries)
        target = site.address("apps_grpc")
        backend = site.start_backend()
        spanchain = site.start_spanchain(settings, "spanchain-inline.yaml")
        site.start_collector("configs/collector-inline.yaml")
        platform = processes.start(
            "payment-platform",
            *(sys.executable, "-m", "collector_processor.simulator", "send", target),
            *(f"--duration={PLATFORM_S}", f"--start={time.time_ns()}", "--rate=80"),
            env={"PYTHONPATH": str(ROOT)},
        )
        generate(processes, telemetrygen, "traces", target, FOREIGN).wait_end(60)
        generate(processes, telemetrygen, "logs", target, FOREIGN).wait_end(60)
        spanchain.wait_for("events on spans", lambda: any(map(told, site.backend_spans())), timeout_s=60, poll_s=1.0)
        spanchain.kill()
        generate(processes, telemetrygen, "traces", target, FOREIGN).wait_end(60)
        site.start_spanchain(settings, "spanchain-inline.yaml")
        platform.wait_end(PLATFORM_S + 60)

        def whole() -> Run | None:
            now = Run(site.backend_spans(), site.backend_logs(), accepted(site))
            enough = len(ids(now.apps(now.spans))) == now.accepted["spans"]
            enough = enough and len(now.apps(now.logs)) >= now.accepted["logs"]
            return now if enough and len(foreign_events(now)) == 2 * FOREIGN else None

        yield backend.wait_for("everything at the backend", whole, timeout_s=120, poll_s=2.0)


def ids(spans: list[dict[str, Any]]) -> Counter[tuple[str, str, int]]:
    """How often each span is there."""
    return Counter((span["traceId"], span["spanId"], span.get("kind", 0)) for span in spans)


def told(span: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of ours on a span of an application."""
    return [event for event in span.get("events", []) if event["name"] == EVENT and span["scope"] != OURS]


def foreign_events(run: Run) -> Counter[str]:
    """Trace of a foreign client -> verdicts of which there are events, on its spans or on child spans."""
    traces = {span["traceId"] for span in run.spans if span["resource"]["service.name"] == "foreign"}
    found = {
        (span["traceId"], attributes(event)["spanchain.anomaly.verdict_id"])
        for span in run.spans
        for event in span.get("events", [])
        if event["name"] == EVENT and span["traceId"] in traces
    }
    return Counter(trace for trace, _ in found)


def test_what_went_in_came_out(run: Run) -> None:
    """Copies may come: the Collector gives spanchain again what it had no answer to. Losses may not."""
    assert len(ids(run.apps(run.spans))) == run.accepted["spans"] > 1000
    assert len(run.apps(run.logs)) >= run.accepted["logs"] > 500
    foreign = [span for span in run.apps(run.spans) if span["resource"]["service.name"] == "foreign"]
    assert len(ids(foreign)) == 2 * 2 * FOREIGN


def test_there_is_no_loop(run: Run) -> None:
    copies = ids(run.apps(run.spans))
    assert max(copies.values()) <= 3, "one, and one for each side that was in doubt when spanchain was killed"
    assert sum(count > 1 for count in copies.values()) < len(copies) / 2


def test_each_foreign_trace_has_its_event_and_nearly_all_on_the_span(run: Run) -> None:
    assert set(foreign_events(run).values()) == {1}
    spans = [span for span in run.spans if told(span) and span["resource"]["service.name"] == "foreign"]
    assert len(ids(spans)) > FOREIGN
    for span in spans:
        assert span["name"].startswith("okey")
        [event] = told(span)
        about = attributes(event)
        assert about["spanchain.subject.service"] == "foreign"
        assert about["spanchain.anomaly.explanation.trigger"]


def test_each_event_has_its_log_record(run: Run) -> None:
    logged = {attributes(log)["spanchain.anomaly.verdict_id"] for log in run.logs if log.get("eventName") == EVENT}
    on_spans = {attributes(event)["spanchain.anomaly.verdict_id"] for span in run.spans for event in told(span)}
    assert on_spans <= logged
