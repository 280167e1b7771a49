"""The events as the specification and the public contract want them, decoded again by the official classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sinks import attribute
from verdicts import incident, incident_row, verdict_rows, verdicts

from collector_processor.kernels.decode import OWN_SCOPE
from exporters.otlp.events import SCOPE, Anomaly, EventWriter, incident_attributes, own_span_id, verdict_attributes

TIME = 1_700_000_000_123_456_789
ABOUT = 0x1122334455667788


@pytest.fixture
def row() -> dict[str, Any]:
    return next(verdict_rows(verdicts(1, 1, first_trace=0xABC), np.array([0])))


def anomaly(row: dict[str, Any], span_id: int = ABOUT) -> Anomaly:
    return Anomaly(row, span_id, TIME, TIME + 5, verdict_attributes(row, None))


def resource(of: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in of.resource.attributes}


def test_the_scope_is_the_one_that_our_receivers_drop() -> None:
    assert OWN_SCOPE.tobytes().decode() == SCOPE


def test_the_span_event_hangs_on_a_span_of_our_own(row: dict[str, Any]) -> None:
    request = ExportTraceServiceRequest.FromString(EventWriter("9.9").span_event(anomaly(row)))
    [of_service] = request.resource_spans
    [scope] = of_service.scope_spans
    [span] = scope.spans
    assert resource(of_service)["service.name"] == "spanchain"
    assert (scope.scope.name, scope.scope.version) == ("spanchain", "9.9")
    assert span.trace_id.hex() == row["trace_id"]
    assert span.parent_span_id == ABOUT.to_bytes(8, "big")
    assert span.span_id == own_span_id(row["verdict_id"]).to_bytes(8, "big") != span.parent_span_id
    assert span.kind == Span.SPAN_KIND_INTERNAL
    assert span.start_time_unix_nano == span.end_time_unix_nano == TIME
    [event] = span.events
    assert (event.name, event.time_unix_nano) == ("spanchain.anomaly", TIME)
    [link] = span.links
    assert (link.trace_id, link.span_id) == (span.trace_id, span.parent_span_id)
    for holder in (span, event):
        assert attribute(holder, "spanchain.anomaly.verdict_id") == row["verdict_id"]


def test_the_log_event_stands_under_the_service_it_is_about(row: dict[str, Any]) -> None:
    request = ExportLogsServiceRequest.FromString(EventWriter("1").log_event(anomaly(row)))
    [of_service] = request.resource_logs
    [scope] = of_service.scope_logs
    [record] = scope.log_records
    assert resource(of_service) == {"service.name": "risk", "service.instance.id": "risk-1"}
    assert scope.scope.name == "spanchain"
    assert record.event_name == "spanchain.anomaly"
    assert (record.trace_id.hex(), record.span_id) == (row["trace_id"], ABOUT.to_bytes(8, "big"))
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (TIME, TIME + 5)
    assert (record.severity_text, record.severity_number) == ("ERROR", 17)
    assert record.body.string_value == row["explanation"]["trigger"]


def test_every_attribute_of_the_contract_is_there(row: dict[str, Any]) -> None:
    request = ExportLogsServiceRequest.FromString(EventWriter("1").log_event(anomaly(row)))
    record = request.resource_logs[0].scope_logs[0].log_records[0]
    prefix = "spanchain.anomaly."
    found = {
        name: attribute(record, prefix + name) for name in ("score", "severity", "category", "kinds", "verdict_id")
    }
    assert found == {
        "score": 0.9995,
        "severity": "critical",
        "category": "system",
        "kinds": ["slow_operation"],
        "verdict_id": row["verdict_id"],
    }
    assert attribute(record, prefix + "explanation.trigger") == row["explanation"]["trigger"]
    assert attribute(record, prefix + "explanation.context") == row["explanation"]["context"]
    affected = attribute(record, prefix + "explanation.affected")
    assert affected == "flows: gateway pay; services: risk; instances: risk-1; chains: 1"
    assert attribute(record, prefix + "explanation.actions") == row["explanation"]["actions"]


@pytest.mark.parametrize(("severity", "text"), [("critical", "ERROR"), ("warning", "WARN"), ("info", "WARN")])
def test_severities(row: dict[str, Any], severity: str, text: str) -> None:
    request = EventWriter("1").log_event(anomaly(row | {"severity": severity}))
    record = ExportLogsServiceRequest.FromString(request).resource_logs[0].scope_logs[0].log_records[0]
    assert record.severity_text == text


def test_the_same_verdict_gives_the_same_bytes(row: dict[str, Any]) -> None:
    first, second = (EventWriter("1").span_event(anomaly(row)) for _ in range(2))
    assert first == second
    assert own_span_id("a") != own_span_id("b")


def test_a_chain_without_trace_id_has_no_ids_in_its_log(row: dict[str, Any]) -> None:
    request = EventWriter("1").log_event(anomaly(row | {"trace_id": "0" * 32, "findings": []}, 0))
    [of_service] = ExportLogsServiceRequest.FromString(request).resource_logs
    record = of_service.scope_logs[0].log_records[0]
    assert (record.trace_id, record.span_id) == (b"", b"")
    assert resource(of_service) == {"service.name": "spanchain"}


def test_two_requests_in_a_row_are_one_request(row: dict[str, Any]) -> None:
    body = EventWriter("1").log_event(anomaly(row)) * 3
    assert len(ExportLogsServiceRequest.FromString(body).resource_logs) == 3


def test_text_that_is_no_text_does_not_stop_the_event(row: dict[str, Any]) -> None:
    hostile = row | {
        "tenant": "\ud800",
        "explanation": row["explanation"] | {"trigger": "x" * 100_000, "context": None},
    }
    request = EventWriter("1").log_event(anomaly(hostile))
    record = ExportLogsServiceRequest.FromString(request).resource_logs[0].scope_logs[0].log_records[0]
    assert len(request) < 20_000
    assert attribute(record, "spanchain.tenant") == "?"
    assert attribute(record, "spanchain.anomaly.explanation.context") is None


@pytest.mark.parametrize("state", ["opened", "resolved"])
def test_an_incident_is_an_event_that_points_at_its_example(state: str) -> None:
    of = incident(7, state)
    request = EventWriter("1").incident_event(incident_row(of), state)
    [of_service] = ExportLogsServiceRequest.FromString(request).resource_logs
    record = of_service.scope_logs[0].log_records[0]
    assert resource(of_service)["service.name"] == "risk"
    assert record.event_name == "spanchain.incident"
    assert record.trace_id.hex() == f"{7:032x}"
    assert attribute(record, "spanchain.incident.id") == of.incident_id
    assert attribute(record, "spanchain.incident.state") == state
    assert attribute(record, "spanchain.incident.suspects") == ["risk check"]
    assert record.time_unix_nano == (of.resolved_unix_nano or of.detected_unix_nano)


def test_the_document_lists_every_attribute_and_no_other(row: dict[str, Any], repository: Path) -> None:
    subject = {"service": "risk", "operation": "check", "instance": "risk-1"}
    sent = {
        *verdict_attributes(row, "i"),
        *incident_attributes(incident_row(incident(1)) | {"subject": subject}, "opened"),
    }
    document = (repository / "docs" / "events.md").read_text()
    assert set(re.findall(r"^\| `(spanchain\.[a-z_.]+)` \|", document, re.MULTILINE)) == sent
