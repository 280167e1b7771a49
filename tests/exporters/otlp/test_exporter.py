"""Tee mode end to end against a receiver in the test: what is told, what is not, and in which sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sinks import Behaviour, GrpcSink, attribute, eventually, records
from verdicts import incident, rows, verdict_ids, verdicts

from collector_processor.config import OtlpExportConfig, QueueConfig
from collector_processor.model import Severity
from exporters.otlp.events import own_span_id
from exporters.otlp.exporter import OtlpExporter
from exporters.prometheus.telemetry import Telemetry

Make = Callable[..., OtlpExporter]
START = 1_700_000_000_000_000_000
FAST = QueueConfig(retry_initial_s=0.05, retry_max_s=0.1)


@pytest.fixture
def sink() -> Iterator[GrpcSink]:
    with GrpcSink() as made:
        yield made


@pytest.fixture
def make(sink: GrpcSink, tmp_path: Path) -> Iterator[Make]:
    made: list[OtlpExporter] = []

    def start(**options: Any) -> OtlpExporter:
        config = OtlpExportConfig(**({"endpoint": sink.address, "queue": FAST} | options))
        exporter = OtlpExporter(config, tmp_path, rows(), Telemetry("1"), "1")
        exporter.start()
        made.append(exporter)
        return exporter

    yield start
    for exporter in made:
        exporter.shutdown(5)


def taken(sink: GrpcSink, signal: str) -> list[Any]:
    return [record for record in records(sink) if hasattr(record, "severity_number") == (signal == "logs")]


def test_each_unusual_chain_is_one_span_and_one_log_in_its_own_trace(make: Make, sink: GrpcSink) -> None:
    batch = verdicts(10, 4, first_trace=100)
    make().export(batch, [])
    assert eventually(lambda: len(list(records(sink))) == 8)
    unusual = verdict_ids(batch, unusual=True)
    chains, symbols = batch.chains, batch.chains.symbols
    checks = [row for row, event in enumerate(chains.event) if symbols.events.text[event] == "check"][-4:]
    about = [int(chains.span_id[row]).to_bytes(8, "big") for row in checks]
    ended = [int(chains.time_ns[row]) + int(chains.duration[row]) for row in checks]
    logs, spans = taken(sink, "logs"), taken(sink, "spans")
    assert [attribute(log, "spanchain.anomaly.verdict_id") for log in logs] == unusual
    assert [log.span_id for log in logs] == [span.parent_span_id for span in spans] == about
    assert [log.time_unix_nano for log in logs] == [span.start_time_unix_nano for span in spans] == ended
    assert [span.span_id for span in spans] == [own_span_id(each).to_bytes(8, "big") for each in unusual]
    assert [span.trace_id.hex() for span in spans] == [f"{100 + n:032x}" for n in range(6, 10)]


def test_normal_chains_say_nothing(make: Make, sink: GrpcSink) -> None:
    exporter = make()
    exporter.export(verdicts(10, 0), [])
    exporter.shutdown(5)
    assert sink.tried == 0


def test_span_events_can_be_off(make: Make, sink: GrpcSink) -> None:
    exporter = make(span_events=False)
    exporter.export(verdicts(3, 2), [])
    exporter.shutdown(5)
    assert len(taken(sink, "logs")) == 2
    assert taken(sink, "spans") == []


def test_a_chain_without_a_trace_id_is_a_log_only(make: Make, sink: GrpcSink) -> None:
    batch = verdicts(1, 1)
    batch.chains.trace_lo[:] = 0
    exporter = make()
    exporter.export(batch, [])
    exporter.shutdown(5)
    assert len(taken(sink, "logs")) == 1
    assert taken(sink, "spans") == []


def test_each_change_of_an_incident_is_told_once(make: Make, sink: GrpcSink) -> None:
    exporter = make()
    changes = [("opened", "warning", 3), ("updated", "critical", 9), ("resolved", "critical", 12)]
    for state, severity, chains in changes:
        for _ in range(2):
            exporter.export(verdicts(0, 0), [incident(1, state, severity, chains)])
    exporter.shutdown(5)
    names = ("spanchain.incident.state", "spanchain.anomaly.severity", "spanchain.incident.chains")
    assert [tuple(attribute(record, name) for name in names) for record in records(sink)] == changes
    assert {record.event_name for record in records(sink)} == {"spanchain.incident"}


def test_a_chain_about_the_service_of_an_open_incident_carries_its_id(make: Make, sink: GrpcSink) -> None:
    exporter = make()
    elsewhere = incident(2)
    elsewhere.subject = elsewhere.subject | {"service": "ledger"}
    exporter.export(verdicts(1, 1, first_trace=10), [elsewhere, incident(3, tenant="other")])
    exporter.export(verdicts(1, 1, first_trace=20), [incident(1)])
    exporter.export(verdicts(1, 1, first_trace=30), [incident(1, "resolved")])
    exporter.export(verdicts(1, 1, first_trace=40), [])
    exporter.shutdown(5)
    found = {
        (type(record).__name__, int(record.trace_id.hex(), 16)): attribute(record, "spanchain.incident.id")
        for record in records(sink)
        if attribute(record, "spanchain.anomaly.verdict_id")
    }
    expected = {10: None, 20: None, 30: incident(1).incident_id, 40: None}
    assert found == {(kind, trace): wanted for kind in ("Span", "LogRecord") for trace, wanted in expected.items()}


def test_a_flood_of_anomalies_is_told_in_part_the_most_severe_first(sink: GrpcSink, tmp_path: Path) -> None:
    telemetry = Telemetry("1")
    config = OtlpExportConfig(endpoint=sink.address, events_per_s_max=2.0, queue=FAST)
    exporter = OtlpExporter(config, tmp_path, rows(), telemetry, "1")
    exporter.start()
    flood = verdicts(50, 50, severity=Severity.WARNING)
    flood.chains.closed_ns[:] = START
    flood.severity[[30, 40]] = Severity.CRITICAL
    exporter.export(flood, [])
    later = verdicts(10, 10, first_trace=1000)
    later.chains.closed_ns[:] = START + 3_000_000_000
    exporter.export(later, [])
    exporter.shutdown(5)
    first, second = 2 * 10, 2 * 3  # what may be saved up, and what three seconds bring
    ids = [attribute(log, "spanchain.anomaly.verdict_id") for log in taken(sink, "logs")]
    assert len(ids) == first + second
    assert {verdict_ids(flood)[30], verdict_ids(flood)[40]} <= set(ids[:first])
    for queue in ("otlp_logs", "otlp_spans"):
        dropped = telemetry.value("exporter_dropped_total", exporter=queue, reason="rate")
        sent = telemetry.value("exporter_sent_total", exporter=queue)
        assert (dropped, sent) == (60 - first - second, first + second)


def test_requests_stay_below_the_limit_of_receivers(make: Make, sink: GrpcSink) -> None:
    sink.behave(Behaviour(status=14), Behaviour(status=14))
    exporter = make(request_bytes_max=50_000)
    for start in range(0, 400, 50):
        exporter.export(verdicts(50, 50, first_trace=1 + start), [])
    # Not `shutdown` at once: while the sink is down that leaves the rest on disk.
    assert eventually(lambda: len(list(records(sink))) == 2 * 400, timeout_s=60)
    exporter.shutdown(60)
    assert max(len(body) for _, body in sink.taken) <= 50_000
    assert len(sink.taken) > 4
    ids = Counter(attribute(log, "spanchain.anomaly.verdict_id") for log in taken(sink, "logs"))
    assert len(ids) == 400
    assert set(ids.values()) == {1}


def test_an_event_larger_than_a_request_is_dropped_and_counted(sink: GrpcSink, tmp_path: Path) -> None:
    telemetry = Telemetry("1")
    config = OtlpExportConfig(endpoint=sink.address, request_bytes_max=100, queue=FAST)
    exporter = OtlpExporter(config, tmp_path, rows(), telemetry, "1")
    exporter.start()
    exporter.export(verdicts(2, 2), [])
    exporter.shutdown(5)
    for queue in ("otlp_spans", "otlp_logs"):
        assert telemetry.value("exporter_dropped_total", exporter=queue, reason="too_large") == 2
    assert sink.tried == 0
