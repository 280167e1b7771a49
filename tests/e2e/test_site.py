"""A site without spanchain: traffic reaches both ends of the tee, events take the way back, an alert becomes a page."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.processes import Process, Processes
from tests.e2e.site import ROOT, Binaries, Pager, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRACES = 40


def generate(processes: Processes, telemetrygen: Path, kind: str, target: str, count: int) -> Process:
    """Sends `count` traces (two spans each) or log records of the service `foreign` by telemetrygen."""
    return processes.start(
        f"telemetrygen-{kind}",
        *(telemetrygen, kind, f"--{kind}={count}", "--rate=0", "--otlp-insecure"),
        *(f"--otlp-endpoint={target}", "--service=foreign"),
    )


def test_the_tee_carries_traffic_both_ways_without_a_loop(
    processes: Processes, tmp_path: Path, binaries: Binaries, telemetrygen: Path
) -> None:
    site = Site(processes, tmp_path, binaries)
    backend = site.start_backend()
    # A second recorder stands where spanchain would listen, to see exactly what spanchain is sent.
    copy = Site(processes, tmp_path / "copy", binaries)
    copy.folder.mkdir()
    copy.ports["backend_grpc"] = site.ports["spanchain_grpc"]
    copy.start_backend()
    site.start_collector()

    generate(processes, telemetrygen, "traces", site.address("apps_grpc"), TRACES).wait_end(60)
    generate(processes, telemetrygen, "logs", site.address("apps_grpc"), TRACES).wait_end(60)
    for end in (site, copy):
        backend.wait_for("all spans", lambda end=end: len(end.backend_spans()) == 2 * TRACES)
        backend.wait_for("all logs", lambda end=end: len(end.backend_logs()) == TRACES)

    generate(processes, telemetrygen, "traces", site.address("events_grpc"), 1).wait_end(60)
    backend.wait_for("the event's spans", lambda: len(site.backend_spans()) == 2 * TRACES + 2)
    assert len(copy.backend_spans()) == 2 * TRACES, "what spanchain says must not come back to it"


def test_an_alert_pages_with_its_text(processes: Processes, tmp_path: Path, binaries: Binaries) -> None:
    site = Site(processes, tmp_path, binaries)
    with Pager() as pager:
        alertmanager = site.start_alertmanager(pager)
        alert = {
            "labels": {"alertname": "Try", "severity": "critical", "tenant": "default", "service": "ledger"},
            "annotations": {"summary": "ledger is slow", "description": "Look at ledger."},
        }
        request = urllib.request.Request(
            f"http://{site.address('alertmanager')}/api/v2/alerts",
            data=json.dumps([alert]).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            assert response.status == 200
        alertmanager.wait_for("a page", pager.alerts, timeout_s=30)
    assert [page["annotations"]["summary"] for page in pager.alerts()] == ["ledger is slow"]


def test_prometheus_reads_the_shipped_rules_and_keeps_exemplars(
    processes: Processes, tmp_path: Path, binaries: Binaries
) -> None:
    site = Site(processes, tmp_path, binaries)
    prometheus = site.start_prometheus()
    flags = site.prometheus_api("status/flags")
    assert "exemplar-storage" in flags["enable-feature"]
    rules = {rule["name"] for group in site.prometheus_api("rules")["groups"] for rule in group["rules"]}
    shipped = "".join(path.read_text() for path in (ROOT / "dashboards").glob("*.rules.yaml"))
    assert "SpanchainIncidentOpen" in rules
    assert all(name in shipped for name in rules)
    prometheus.wait_for(
        "the target to be tried",
        lambda: (
            site.query('up{job="spanchain"}')
            == [({"__name__": "up", "instance": site.address("spanchain_metrics"), "job": "spanchain"}, 0.0)]
        ),
    )
