"""The main path, with nothing simulated but the applications: from a Collector to a page.

How it works. The payment platform and a foreign client send to a real Collector with the shipped `otel-collector.yaml`;
spanchain gets its copy from there. A fault begins after the platform has been learned. Prometheus must then show it
with an exemplar, its rule must fire, Alertmanager must page with a text that names the culprit, and the Collector must
receive the log event and the child span and pass them to the backend, but not to spanchain again.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import pytest

from collector_processor.demo import story
from tests.e2e.processes import Process, Processes
from tests.e2e.site import ROOT, Binaries, Pager, Site, attributes
from tests.e2e.test_site import generate

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EVENT = "spanchain.anomaly"
OURS = "spanchain"  # the instrumentation scope of what spanchain sends
FOREIGN_TRACES = 25
WARM_UP_S, FAULT_S, AFTER_S = int(story.WARMUP_S), 60, 5
CULPRIT = "account"
SECOND_NS = 1_000_000_000

# What a real site learns in hours is learned in a minute here, with the demo's times; else the shipped defaults.
QUICK = story.SETTINGS


@dataclass(frozen=True, slots=True)
class Run:
    """The site after the fault, everything still running."""

    site: Site
    subject: str  # the service that the incident is about
    pager: Pager
    incident: dict[str, Any]
    backend_spans: list[dict[str, Any]]
    backend_logs: list[dict[str, Any]]

    def events(self) -> list[dict[str, Any]]:
        """The log events of single chains that spanchain sent."""
        return [log for log in self.backend_logs if log["scope"] == OURS and log["eventName"] == EVENT]

    def event_spans(self) -> list[dict[str, Any]]:
        """The spans that spanchain sent."""
        return [span for span in self.backend_spans if span["scope"] == OURS]

    def app_spans(self) -> list[dict[str, Any]]:
        """The spans that applications sent."""
        return [span for span in self.backend_spans if span["scope"] != OURS]

    def app_logs(self) -> list[dict[str, Any]]:
        """The log records that applications sent."""
        return [log for log in self.backend_logs if log["scope"] != OURS]


def payment_platform(processes: Processes, site: Site, start_ns: int) -> Process:
    """The simulator in a process of its own; its `account` service begins to throw after the warm-up."""
    fault = {
        "fault_id": "001-exception_thrown",
        "kind": "exception_thrown",
        "service": CULPRIT,
        "place": "account.debit",
        "start_ns": start_ns + WARM_UP_S * SECOND_NS,
        "end_ns": start_ns + (WARM_UP_S + FAULT_S) * SECOND_NS,
        "size": 0.0,
        "share": 0.7,
        "title": "account throws while it debits",
    }
    return processes.start(
        "payment-platform",
        *(sys.executable, "-m", "collector_processor.simulator", "send", site.address("apps_grpc")),
        *(f"--duration={WARM_UP_S + FAULT_S + AFTER_S}", f"--start={start_ns}", "--faults", "--rate=80"),
        *(f"--swing={story.SWING}", f"--day={story.DAY_S}", f"--interval={story.INTERVAL_S}"),
        env={"PYTHONPATH": str(ROOT)},
        stdin=json.dumps(fault) + "\n",
    )


def incidents_that_name(culprit: str, site: Site, since_ns: int) -> list[dict[str, Any]]:
    """The incidents detected since then that have `culprit` among their first three suspects."""
    path = site.folder / "spanchain-data" / "incidents.jsonl"
    incidents = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        one
        for one in incidents
        if one["detected_unix_nano"] >= since_ns and culprit in [each["service"] for each in one["suspects"][:3]]
    ]


def fired_about(culprit: str, site: Site, since_ns: int) -> str | None:
    """The service of a firing alert about an incident that names `culprit`; None while there is none.

    An alert keeps the service that its incident was first about, while the incident may have come to know better.
    """
    named = {
        service
        for one in incidents_that_name(culprit, site, since_ns)
        for service in (one["subject"]["service"], *(each["service"] for each in one["suspects"]))
    }
    firing = site.query('ALERTS{alertname="SpanchainIncidentOpen", alertstate="firing"}')
    return next((labels["service"] for labels, _ in firing if labels["service"] in named), None)


def pages_about(service: str, pager: Pager) -> list[dict[str, Any]]:
    """The alerts that were paged and name `service` in their text."""
    return [
        alert
        for alert in pager.alerts()
        if re.search(rf"\b{service}\b", alert["annotations"]["summary"] + alert["annotations"]["description"])
    ]


@pytest.fixture(scope="module")
def run(binaries: Binaries, telemetrygen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One run for all tests of this file."""
    folder = tmp_path_factory.mktemp("site")
    with Processes(folder) as processes, Pager() as pager:
        site = Site(processes, folder, binaries)
        backend = site.start_backend()
        site.start_alertmanager(pager)
        prometheus = site.start_prometheus()
        spanchain = site.start_spanchain(QUICK)
        site.start_collector()
        start_ns = time.time_ns()
        platform = payment_platform(processes, site, start_ns)
        target = site.address("apps_grpc")
        generate(processes, telemetrygen, "traces", target, FOREIGN_TRACES).wait_end(60)
        generate(processes, telemetrygen, "logs", target, FOREIGN_TRACES).wait_end(60)
        fault_ns = start_ns + WARM_UP_S * SECOND_NS
        length_s = WARM_UP_S + FAULT_S + AFTER_S
        [first, *_] = spanchain.wait_for(
            "an incident that names the culprit",
            lambda: incidents_that_name(CULPRIT, site, fault_ns),
            timeout_s=length_s,
            poll_s=1.0,
        )
        subject = prometheus.wait_for(
            "the alert to fire", lambda: fired_about(CULPRIT, site, fault_ns), timeout_s=90, poll_s=0.5
        )
        prometheus.wait_for("the page", lambda: pages_about(subject, pager), timeout_s=90)
        platform.wait_end(length_s + 30)
        received = 'sum(spanchain_records_received_total{signal=~"traces|logs"})'

        def arrived() -> bool:
            """Whether nothing is under way any more: what the backend has of applications is what spanchain counts."""
            before = Run(site, subject, pager, first, site.backend_spans(), site.backend_logs())
            count = len(before.app_spans()) + len(before.app_logs())
            return [value for _, value in site.query(received)] == [count]

        backend.wait_for("both ends of the tee to be level", arrived, timeout_s=40, poll_s=2.0)
        backend.wait_for("the chains to close", lambda: site.query("spanchain_open_chains == 0"), timeout_s=40)
        yield Run(site, subject, pager, first, site.backend_spans(), site.backend_logs())


def test_prometheus_shows_chains_of_both_clients(run: Run) -> None:
    flows = {labels["flow"] for labels, value in run.site.query("spanchain_chains_total > 0")}
    assert any("foreign" in flow for flow in flows), flows
    assert any("gateway" in flow for flow in flows), flows


def test_an_exemplar_leads_to_a_trace_that_exists(run: Run) -> None:
    # A span that was still open when the platform stopped is known only by the logs that it wrote.
    known = {(record.get("traceId"), record.get("spanId")) for record in [*run.app_spans(), *run.app_logs()]}
    for metric in ("spanchain_anomalies_total", "spanchain_chain_score_bucket"):
        exemplars = run.site.exemplars(metric)
        assert exemplars, metric
        for exemplar in exemplars:
            assert (exemplar["labels"]["trace_id"], exemplar["labels"]["span_id"]) in known


def test_the_alert_pages_with_a_text_that_names_the_culprit(run: Run) -> None:
    alerts = run.pager.alerts()
    texts = [f"{one['annotations']['summary']} {one['annotations']['description']}" for one in alerts]
    assert pages_about(run.subject, run.pager), texts
    for alert, text in zip(alerts, texts, strict=True):
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert "runbook_url" in alert["annotations"]
        assert len(text) > 30
        assert "{{" not in text
        assert "<no value>" not in text
        assert "%!" not in text


def test_the_log_event_reaches_the_backend_by_the_second_receiver(run: Run) -> None:
    events = run.events()
    assert events
    # A trace that was still open when the platform stopped may be known only by the logs that it wrote.
    traces = {record.get("traceId") for record in [*run.app_spans(), *run.app_logs()]}
    assert {event["traceId"] for event in events} <= traces
    said = [attributes(event) for event in events]
    for event, about in zip(events, said, strict=True):
        assert event["severityNumber"] in {13, 17}
        assert 0.0 < about["spanchain.anomaly.score"] <= 1.0
        assert about["spanchain.anomaly.severity"] in {"info", "warning", "critical"}
        for part in ("trigger", "context", "affected", "actions"):
            assert about[f"spanchain.anomaly.explanation.{part}"]
    assert any(event["resource"]["service.name"] in {run.subject, CULPRIT} for event in events)


def test_the_child_span_carries_the_event_and_links_to_what_it_is_about(run: Run) -> None:
    originals = {(span["traceId"], span["spanId"]) for span in run.app_spans()}
    spans = run.event_spans()
    assert spans
    for span in spans:
        assert (span["traceId"], span["parentSpanId"]) in originals
        assert (span["traceId"], span["spanId"]) not in originals
        assert span["kind"] == 1
        assert span["startTimeUnixNano"] == span["endTimeUnixNano"]
        assert [event["name"] for event in span["events"]] == [EVENT]
        [link] = span["links"]
        assert (link["traceId"], link["spanId"]) in originals


def test_each_event_comes_once(run: Run) -> None:
    spans = [(span["traceId"], span["spanId"]) for span in run.event_spans()]
    assert len(spans) == len(set(spans))
    verdicts = [attributes(event)["spanchain.anomaly.verdict_id"] for event in run.events()]
    assert len(verdicts) == len(set(verdicts))


def test_what_spanchain_says_does_not_come_back_to_it(run: Run) -> None:
    """Both ends of the tee were level when the run was handed out: spanchain counted what applications sent."""
    assert run.events()
    flows = {labels["flow"] for labels, _ in run.site.query("spanchain_chains_total")}
    assert not any(flow.startswith("spanchain") for flow in flows), flows


def test_the_incident_says_what_who_and_what_to_do(run: Run) -> None:
    explanation = run.incident["explanation"]
    assert len(explanation["trigger"]) > 20
    assert CULPRIT in explanation["affected"]["services"]
    assert explanation["actions"]
    assert run.incident["severity"] in {"warning", "critical"}


def requests(path: Path, count: int) -> list[bytes]:
    """The first `count` JSON requests of a recording."""
    text = bytes(cramjam.zstd.decompress(path.read_bytes()))
    return text.split(b"\n", count)[:count]


@pytest.mark.data
def test_a_real_recording_comes_through_the_collector_whole(
    processes: Processes, tmp_path: Path, binaries: Binaries, data_dir: Path
) -> None:
    """Part of TrainTicket as OTLP JSON into the Collector: spanchain counts every record and joins the logs."""
    site = Site(processes, tmp_path, binaries)
    site.start_backend()
    spanchain = site.start_spanchain(QUICK)
    site.start_prometheus()
    site.start_collector()
    sent = {"traces": 0, "logs": 0}
    recording = data_dir / "recordings" / "nezha_tt_0130"
    for signal, groups, scopes, records in (
        ("logs", "resourceLogs", "scopeLogs", "logRecords"),
        ("traces", "resourceSpans", "scopeSpans", "spans"),
    ):
        for body in requests(recording / f"{signal}.jsonl.zst", 200):
            for group in json.loads(body)[groups]:
                sent[signal] += sum(len(scope[records]) for scope in group[scopes])
            request = urllib.request.Request(
                f"http://{site.address('apps_http')}/v1/{signal}", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                assert response.status == 200
    assert min(sent.values()) > 5000

    def received() -> dict[str, float]:
        return {
            labels["signal"]: value
            for labels, value in site.query("sum by (signal) (spanchain_records_received_total) > 0")
        }

    spanchain.wait_for("every record", lambda: received() == sent, timeout_s=60, poll_s=1.0)
    spanchain.wait_for("the chains to close", lambda: site.query("spanchain_open_chains == 0"), timeout_s=60)
    assert site.query('sum(spanchain_logs_joined_total{outcome="trace"})')[0][1] == sent["logs"]
    assert not site.query("sum(spanchain_records_rejected_total) > 0")
