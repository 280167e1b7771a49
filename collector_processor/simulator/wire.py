"""OTLP protobuf written by hand: the few messages the platform sends, as bytes from constant parts.

How it works. Whatever never changes (names, kinds, constant attributes, resources) is serialised once; a span or a log
is then one `bytes.join` of those parts with its ids, times and values. That is some ten times faster than filling the
official classes, which is what lets a simulated day be written in minutes. Field numbers are those of
opentelemetry-proto 1.x (`trace.proto`, `logs.proto`, `common.proto`, `resource.proto`); the tests read every byte back
with the official classes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from collector_processor.varint import as_varint

Value = str | int | float | bool

SPAN_ATTRIBUTE = 9
LOG_ATTRIBUTE = 6
RESOURCE_ATTRIBUTE = 1

_DOUBLE = struct.Struct("<d")
_TIME = struct.Struct("<Q")
_TIMES = struct.Struct("<BQBQ")  # two fixed64 fields with their tags
_START, _END = 0x39, 0x41  # fields 7 and 8 of a span
_OBSERVED_AFTER_NS = 40_000  # an appender's thread sees a log a little after it was written
_STATUS_ERROR_CODE = b"\x18\x02"
_SAMPLED_SPAN = b"\x85\x01\x01\x00\x00\x00"  # flags, fixed32, field 16
_SAMPLED_LOG = b"\x45\x01\x00\x00\x00"  # flags, fixed32, field 8


LENGTHS = tuple(as_varint(length) for length in range(4096))  # most messages are shorter


def length(data: bytes) -> bytes:
    """The length prefix of `data`."""
    size = len(data)
    return LENGTHS[size] if size < 4096 else as_varint(size)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return b"".join((as_varint(number << 3 | 2), length(data), data))


def any_value(value: Value) -> bytes:
    """An `AnyValue` message."""
    if isinstance(value, str):
        return field(1, value.encode())
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + as_varint(value)
    return b"\x21" + _DOUBLE.pack(value)


def attribute(number: int, key: str, value: Value) -> bytes:
    """A `KeyValue` as field `number` of the message it belongs to."""
    return field(number, field(1, key.encode()) + field(2, any_value(value)))


def attributes(number: int, values: Mapping[str, Value]) -> bytes:
    """Several `KeyValue`s one after another."""
    return b"".join(attribute(number, key, value) for key, value in values.items())


class DoubleAttribute:
    """A `KeyValue` with a fixed key whose value is a double: everything but the eight bytes is made once."""

    def __init__(self, number: int, key: str) -> None:
        self.head = attribute(number, key, 0.0)[:-8]

    def __call__(self, value: float) -> bytes:
        return self.head + _DOUBLE.pack(value)


def span_shape(name: str, kind: int, constant: Mapping[str, Value]) -> tuple[bytes, bytes]:
    """What all spans of one operation share: (name and kind, constant attributes)."""
    return field(5, name.encode()) + b"\x30" + as_varint(kind), attributes(SPAN_ATTRIBUTE, constant)


def error_status(message: str) -> bytes:
    """A `Status` with code ERROR as a field of a span."""
    return field(15, (field(2, message.encode()) if message else b"") + _STATUS_ERROR_CODE)


def exception_event(time_ns: int, kind: str, message: str, stack: str) -> bytes:
    """The span event `exception` of the semantic conventions, as a field of a span."""
    values = {"exception.type": kind, "exception.message": message, "exception.stacktrace": stack}
    return field(11, b"\x09" + _TIME.pack(time_ns) + field(2, b"exception") + attributes(3, values))


def span(
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    shape: tuple[bytes, bytes],
    start_ns: int,
    end_ns: int,
    rest: bytes,
) -> bytes:
    """A `Span` as field 2 of `ScopeSpans`. `rest`: further attributes, events and the status, as fields."""
    head, constant = shape
    data = b"".join((
        b"\x0a\x10" + trace_id + b"\x12\x08" + span_id,
        b"\x22\x08" + parent_id if parent_id else b"",
        head,
        _TIMES.pack(_START, start_ns, _END, end_ns),
        constant,
        rest,
        _SAMPLED_SPAN,
    ))  # fmt: skip
    return b"\x12" + length(data) + data


def log_shape(severity: int, text: str, constant: Mapping[str, Value]) -> tuple[bytes, bytes]:
    """What all logs of one statement share: (severity, constant attributes)."""
    return b"\x10" + as_varint(severity) + field(3, text.encode()), attributes(LOG_ATTRIBUTE, constant)


def correlation(trace_id: bytes, span_id: bytes) -> bytes:
    """The fields that tie a log to its span."""
    return _SAMPLED_LOG + b"\x4a\x10" + trace_id + b"\x52\x08" + span_id


def log(shape: tuple[bytes, bytes], time_ns: int, body: str, rest: bytes) -> bytes:
    """A `LogRecord` as field 2 of `ScopeLogs`. `rest`: further attributes and the correlation, as fields."""
    head, constant = shape
    text = field(1, body.encode())
    data = b"".join((
        b"\x09" + _TIME.pack(time_ns),
        head,
        b"\x2a" + length(text) + text,
        constant,
        rest,
        b"\x59" + _TIME.pack(time_ns + _OBSERVED_AFTER_NS),
    ))  # fmt: skip
    return b"\x12" + length(data) + data


def resource_fields(resource: Mapping[str, Value], scope: str, version: str) -> tuple[bytes, bytes]:
    """(the `resource` field of ResourceSpans or ResourceLogs, the `scope` field of ScopeSpans or ScopeLogs)."""
    return (
        field(1, attributes(RESOURCE_ATTRIBUTE, resource)),
        field(1, field(1, scope.encode()) + field(2, version.encode())),
    )


def group(resource: bytes, scope: bytes, records: Iterable[bytes]) -> bytes:
    """The records of one instance as field 1 of an export request."""
    return field(1, resource + field(2, scope + b"".join(records)))
