"""The hand-written bytes are what the official classes read and would have written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from collector_processor.simulator import wire

TIMES = st.integers(0, 2**63)
NAMES = st.text(max_size=300)
VALUES = st.one_of(NAMES, st.integers(0, 2**62), st.booleans(), st.floats(allow_nan=False))


@given(VALUES)
def test_any_value_of_each_type(value):
    parsed = AnyValue.FromString(wire.any_value(value))
    assert getattr(parsed, parsed.WhichOneof("value")) == value
    assert type(getattr(parsed, parsed.WhichOneof("value"))) is type(value)


@given(st.floats(allow_nan=False))
def test_double_attribute_is_an_attribute(value):
    made = wire.DoubleAttribute(wire.SPAN_ATTRIBUTE, "payment.amount")(value)
    assert made == wire.attribute(wire.SPAN_ATTRIBUTE, "payment.amount", value)


@given(
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(min_size=8, max_size=8),
    parent_id=st.one_of(st.just(b""), st.binary(min_size=8, max_size=8)),
    name=NAMES,
    kind=st.integers(1, 5),
    start_ns=TIMES,
    end_ns=TIMES,
    values=st.dictionaries(NAMES, VALUES, max_size=6),
    message=st.text(max_size=5000),
)
def test_span(trace_id, span_id, parent_id, name, kind, start_ns, end_ns, values, message):
    rest = wire.exception_event(start_ns, "java.io.IOException", message, "at x") + wire.error_status(message)
    data = wire.span(trace_id, span_id, parent_id, wire.span_shape(name, kind, values), start_ns, end_ns, rest)
    request = ExportTraceServiceRequest.FromString(wire.group(*wire.resource_fields({"a": 1}, "scope", "3"), [data]))
    (resource,) = request.resource_spans
    (scope,) = resource.scope_spans
    (span,) = scope.spans
    assert resource.resource.attributes[0] == KeyValue(key="a", value=AnyValue(int_value=1))
    assert (scope.scope.name, scope.scope.version) == ("scope", "3")
    assert (span.trace_id, span.span_id, span.parent_span_id) == (trace_id, span_id, parent_id)
    assert (span.name, span.kind, span.flags) == (name, kind, 1)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (start_ns, end_ns)
    assert {pair.key for pair in span.attributes} == set(values)
    assert span.status == Status(code=Status.STATUS_CODE_ERROR, message=message)
    (event,) = span.events
    assert (event.name, event.time_unix_nano) == ("exception", start_ns)
    assert event.attributes[1].value.string_value == message
    assert not Span.FromString(span.SerializeToString()).DiscardUnknownFields()


@given(
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(min_size=8, max_size=8),
    time_ns=TIMES,
    body=st.text(max_size=5000),
    traced=st.booleans(),
)
def test_log(trace_id, span_id, time_ns, body, traced):
    rest = wire.attribute(wire.LOG_ATTRIBUTE, "payment.id", "PAY1")
    rest += wire.correlation(trace_id, span_id) if traced else b""
    data = wire.log(wire.log_shape(13, "WARN", {"logger.name": "x"}), time_ns, body, rest)
    request = ExportLogsServiceRequest.FromString(wire.group(*wire.resource_fields({"a": True}, "scope", "3"), [data]))
    (log,) = request.resource_logs[0].scope_logs[0].log_records
    assert log == LogRecord(
        time_unix_nano=time_ns,
        observed_time_unix_nano=time_ns + 40_000,
        severity_number=13,
        severity_text="WARN",
        body=AnyValue(string_value=body),
        attributes=[
            KeyValue(key="logger.name", value=AnyValue(string_value="x")),
            KeyValue(key="payment.id", value=AnyValue(string_value="PAY1")),
        ],
        trace_id=trace_id if traced else b"",
        span_id=span_id if traced else b"",
        flags=1 if traced else 0,
    )
