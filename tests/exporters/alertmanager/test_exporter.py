"""Alerts reach Alertmanager, a real one too: fire, are repeated, change severity, end, and survive its absence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sinks import Behaviour, HttpSink, alerts, eventually
from verdicts import incident, rows, verdicts

from collector_processor.config import AlertmanagerConfig, QueueConfig
from exporters.alertmanager.alerts import timestamp
from exporters.alertmanager.exporter import AlertmanagerExporter
from exporters.prometheus.telemetry import Telemetry
from tests.e2e.processes import Processes, free_ports, http_get

Make = Callable[..., AlertmanagerExporter]
FAST = QueueConfig(retry_initial_s=0.05, retry_max_s=0.1)
NOW = 1_800_000_000_000_000_000
NOTHING = verdicts(0, 0)


@pytest.fixture
def sink() -> Iterator[HttpSink]:
    with HttpSink() as made:
        yield made


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[AlertmanagerExporter] = []

    def start(url: str, **options: Any) -> AlertmanagerExporter:
        config = AlertmanagerConfig(url=url, **({"queue": FAST} | options))
        exporter = AlertmanagerExporter(config, tmp_path, rows(), Telemetry("1"), clock_ns=lambda: NOW)
        exporter.start()
        made.append(exporter)
        return exporter

    yield start
    for exporter in made:
        exporter.shutdown(5)


def seen(sink: HttpSink) -> list[tuple[str, str, bool]]:
    """Incident, severity and whether it fires, of each alert in order."""
    now = timestamp(NOW)
    return [(alert["labels"]["incident"], alert["labels"]["severity"], alert["endsAt"] > now) for alert in alerts(sink)]


def test_an_alert_fires_and_ends(make: Make, sink: HttpSink) -> None:
    exporter = make(sink.address)
    one = incident(1).incident_id
    exporter.export(NOTHING, [incident(1)])
    assert eventually(lambda: seen(sink) == [(one, "critical", True)])
    exporter.export(NOTHING, [incident(1, "updated", chains_seen=50)])
    assert eventually(lambda: len(alerts(sink)) == 2)
    assert "(50 transactions)" in alerts(sink)[1]["annotations"]["summary"]
    exporter.export(NOTHING, [incident(1, "resolved")])
    assert eventually(lambda: seen(sink) == [(one, "critical", True)] * 2 + [(one, "critical", False)])
    assert {path for path, _ in sink.taken} == {"/api/v2/alerts"}


def test_while_it_lasts_it_is_sent_again_with_an_end_ahead(make: Make, sink: HttpSink) -> None:
    exporter = make(sink.address, resend_s=0.1)
    exporter.export(NOTHING, [incident(1), incident(2)])
    assert eventually(lambda: len(seen(sink)) >= 8)
    assert {alert["endsAt"] for alert in alerts(sink)} == {"2027-01-15T08:00:00.400Z"}
    exporter.export(NOTHING, [incident(1, "resolved")])
    assert eventually(lambda: (incident(1).incident_id, "critical", False) in seen(sink))
    before = len(sink.taken)
    assert eventually(lambda: len(sink.taken) >= before + 3)
    last = [json.loads(body) for _, body in sink.taken[-2:]]
    assert all([alert["labels"]["incident"] for alert in batch] == [incident(2).incident_id] for batch in last)


def test_a_new_severity_ends_the_old_alert(make: Make, sink: HttpSink) -> None:
    exporter = make(sink.address)
    one = incident(1).incident_id
    exporter.export(NOTHING, [incident(1, severity="warning")])
    exporter.export(NOTHING, [incident(1, "updated", severity="critical")])
    exporter.shutdown(5)
    assert {severity: fires for incident_id, severity, fires in seen(sink) if incident_id == one} == {
        "warning": False,
        "critical": True,
    }


def test_what_it_is_about_may_change_without_another_page(make: Make, sink: HttpSink) -> None:
    exporter = make(sink.address)
    exporter.export(NOTHING, [incident(1)])
    later = incident(1, "updated", chains_seen=9)
    later.kind, later.subject = "error", {"service": "ledger", "operation": None, "instance": None}
    exporter.export(NOTHING, [later])
    exporter.shutdown(5)
    assert len({tuple(alert["labels"].items()) for alert in alerts(sink)}) == 1
    assert alerts(sink)[-1]["annotations"]["summary"].startswith("Error: ledger")


def test_what_happened_while_it_was_down_is_told_once_it_is_back(make: Make, sink: HttpSink) -> None:
    sink.stop()
    exporter = make(sink.address, resend_s=0.1)
    exporter.export(NOTHING, [incident(1), incident(2)])
    exporter.export(NOTHING, [incident(1, "resolved")])
    exporter.shutdown(5)
    again = make(sink.address)
    again.export(NOTHING, [incident(2, "updated")])
    sink.start()
    wanted = {(incident(1).incident_id, "critical", False), (incident(2).incident_id, "critical", True)}
    assert eventually(lambda: set(seen(sink)) == wanted)


def test_an_overloaded_alertmanager_is_given_time(make: Make, sink: HttpSink) -> None:
    sink.behave(Behaviour(status=503), Behaviour(status=429, headers={"Retry-After": "1"}))
    make(sink.address).export(NOTHING, [incident(1)])
    assert eventually(lambda: len(seen(sink)) == 1)
    assert sink.tried == 3


@pytest.mark.e2e
@pytest.mark.slow
def test_a_real_alertmanager_shows_the_page_and_its_end(
    processes: Processes, tmp_path: Path, alertmanager: Path
) -> None:
    with HttpSink() as pager:
        (tmp_path / "am.yml").write_text(
            "route: {receiver: pager, group_by: [kind, service], group_wait: 0s, group_interval: 1s}\n"
            f"receivers: [{{name: pager, webhook_configs: [{{url: '{pager.address}', send_resolved: true}}]}}]\n"
        )
        [port] = free_ports(1)
        base = f"http://127.0.0.1:{port}"
        config = (f"--config.file={tmp_path / 'am.yml'}", f"--storage.path={tmp_path / 'am'}")
        listen = (f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=")
        process = processes.start("alertmanager", alertmanager, *config, *listen)
        process.wait_http(f"{base}/-/ready")
        settings = AlertmanagerConfig(url=base, trace_url="https://traces/{trace_id}", resend_s=1)
        exporter = AlertmanagerExporter(settings, tmp_path / "queues", rows(), Telemetry("1"))
        exporter.start()
        exporter.export(NOTHING, [incident(1), incident(2, severity="warning")])

        def pages() -> list[dict[str, Any]]:
            return [alert for _, body in pager.taken for alert in json.loads(body)["alerts"]]

        assert eventually(lambda: len(pages()) >= 2, 30)
        first = next(page for page in pages() if page["labels"]["incident"] == incident(1).incident_id)
        assert first["status"] == "firing"
        assert first["annotations"]["summary"] == "Slow operation: risk, check (4 transactions)"
        assert "What to do:\n- Look at what check" in first["annotations"]["description"]
        assert first["generatorURL"] == f"https://traces/{1:032x}"
        active = json.loads(http_get(f"{base}/api/v2/alerts"))
        assert {alert["labels"]["severity"] for alert in active} == {"critical", "warning"}
        exporter.export(NOTHING, [incident(1, "resolved")])
        assert eventually(
            lambda: any(
                page["labels"]["incident"] == incident(1).incident_id and page["status"] == "resolved"
                for page in pages()
            ),
            30,
        )
        exporter.shutdown(5)
