"""OTLP export requests for tests, from a few words, through the official protobuf classes."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

T0 = 1_700_000_000_000_000_000
MS = 1_000_000


def any_value(value: Any) -> AnyValue:
    """An AnyValue of the Python value's own type."""
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case dict():
            out = AnyValue()
            out.kvlist_value.values.extend(key_values(value))
            return out
        case _:
            return AnyValue(string_value=value)


def key_values(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def span(
    trace: int,
    span_id: int,
    parent: int = 0,
    *,
    name: str = "op",
    service: str = "gateway",
    start_ms: float = 0,
    ms: float = 1,
    kind: int = 2,
    status: int = 0,
    attributes: dict[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """(service, fields of a Span); times in ms after T0."""
    start = T0 + int(start_ms * MS)
    return service, {
        "trace_id": trace.to_bytes(16, "big"),
        "span_id": span_id.to_bytes(8, "big"),
        "parent_span_id": parent.to_bytes(8, "big") if parent else b"",
        "name": name,
        "kind": kind,
        "start_time_unix_nano": start,
        "end_time_unix_nano": start + int(ms * MS),
        "status": {"code": status},
        "attributes": key_values(attributes or {}),
    }


def log(
    body: Any,
    trace: int = 0,
    span_id: int = 0,
    *,
    service: str = "gateway",
    at_ms: float = 0,
    severity: int = 9,
    attributes: dict[str, Any] | None = None,
    **fields: Any,
) -> tuple[str, dict[str, Any]]:
    """(service, fields of a LogRecord); time in ms after T0."""
    return service, {
        "trace_id": trace.to_bytes(16, "big") if trace else b"",
        "span_id": span_id.to_bytes(8, "big") if span_id else b"",
        "time_unix_nano": T0 + int(at_ms * MS),
        "severity_number": severity,
        "body": any_value(body),
        "attributes": key_values(attributes or {}),
        **fields,
    }


def traces(*spans: tuple[str, dict[str, Any]], scope: str = "app") -> bytes:
    """An ExportTraceServiceRequest; spans of one service in a row share a resource."""
    request = ExportTraceServiceRequest()
    for service, fields in spans:
        if not request.resource_spans or _service(request.resource_spans[-1]) != service:
            new = request.resource_spans.add()
            new.resource.attributes.extend(key_values({"service.name": service, "service.instance.id": f"{service}-0"}))
            new.scope_spans.add().scope.name = scope
        request.resource_spans[-1].scope_spans[0].spans.add(**fields)
    return request.SerializeToString()


def logs(*records: tuple[str, dict[str, Any]], scope: str = "app") -> bytes:
    """An ExportLogsServiceRequest; records of one service in a row share a resource."""
    request = ExportLogsServiceRequest()
    for service, fields in records:
        if not request.resource_logs or _service(request.resource_logs[-1]) != service:
            new = request.resource_logs.add()
            new.resource.attributes.extend(key_values({"service.name": service, "service.instance.id": f"{service}-0"}))
            new.scope_logs.add().scope.name = scope
        request.resource_logs[-1].scope_logs[0].log_records.add(**fields)
    return request.SerializeToString()


def _service(group: Any) -> str:
    return str(group.resource.attributes[0].value.string_value)
