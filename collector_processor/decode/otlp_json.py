"""OTLP JSON request -> OTLP protobuf request.

How it works. The tables that drive the compiled transcoder (`kernels/json.py`) are made once, from the descriptors of
the official protobuf messages: every field under its lowerCamelCase and its original name, what it holds, and the names
of enum values. What the transcoder refuses (a number with twenty digits, an integer written `1e3`, an escape inside
base64) is tried again the slow, exact way: orjson, then `json_format` with the ids turned from hexadecimal to base64.
When that refuses it too, the error names the byte and what was expected there.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.kernels import json as kernel
from collector_processor.kernels.json_numbers import POWERS
from collector_processor.model import Signal

DEPTH_MAX: Final = 1024
SLOW_BYTES_MAX: Final = 128 << 10  # of a request that goes the slow way, which takes up to 20 us and 300 B per element
REQUESTS: Final[dict[Signal, type[Message]]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
}
MEMBERS: Final = {
    Signal.TRACES: ("resourceSpans", "resource_spans"),
    Signal.LOGS: ("resourceLogs", "resource_logs"),
    Signal.METRICS: ("resourceMetrics", "resource_metrics"),
}
IDS: Final = frozenset(("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"))

EXPECTED: Final = {
    kernel.DEEP: f"nesting of at most {DEPTH_MAX} levels",
    kernel.WANT_OBJECT: "an object",
    kernel.WANT_ARRAY: "an array",
    kernel.WANT_KEY: "a key in quotes",
    kernel.WANT_COLON: "a colon",
    kernel.WANT_COMMA: "a comma or the closing bracket",
    kernel.WANT_STRING: "a string",
    kernel.WANT_INTEGER: "an integer within the field's range",
    kernel.WANT_NUMBER: "a number",
    kernel.WANT_BOOL: "true or false",
    kernel.WANT_VALUE: "a value",
    kernel.BAD_ESCAPE: "a valid escape",
    kernel.BAD_CONTROL: "the end of the string",
    kernel.BAD_BASE64: "base64",
    kernel.TRAILING: "the end of the request",
    kernel.TWO_SIGNALS: "only one of spans, logs and metrics in a request",
}

_SCALARS: Final = {
    FieldDescriptor.TYPE_STRING: (kernel.STRING, 2, 0),
    FieldDescriptor.TYPE_BYTES: (kernel.BASE64, 2, 0),
    FieldDescriptor.TYPE_INT64: (kernel.INT, 0, 64),
    FieldDescriptor.TYPE_INT32: (kernel.INT, 0, 32),
    FieldDescriptor.TYPE_UINT64: (kernel.UINT, 0, 64),
    FieldDescriptor.TYPE_UINT32: (kernel.UINT, 0, 32),
    FieldDescriptor.TYPE_SINT32: (kernel.SINT, 0, 32),
    FieldDescriptor.TYPE_SINT64: (kernel.SINT, 0, 64),
    FieldDescriptor.TYPE_BOOL: (kernel.BOOL, 0, 0),
    FieldDescriptor.TYPE_DOUBLE: (kernel.DOUBLE, 1, 0),
    FieldDescriptor.TYPE_FIXED64: (kernel.FIXED64, 1, 64),
    FieldDescriptor.TYPE_SFIXED64: (kernel.SFIXED64, 1, 64),
    FieldDescriptor.TYPE_FIXED32: (kernel.FIXED32, 5, 32),
}


@dataclass(frozen=True, slots=True)
class Tables:
    """What the transcoder reads; shapes in `kernel.transcode`."""

    roots: dict[Signal | None, int]
    signal_of: dict[int, Signal]  # member field of the root for any signal
    fields: Any
    slots: Any
    targets: Any


class _Builder:
    """Numbers messages and enums (both are scopes of names) and lists their fields and names."""

    def __init__(self) -> None:
        self.scopes: dict[str, int] = {}
        self.fields: list[tuple[int, int, int, int]] = []
        self.names: list[tuple[int, int]] = []  # hash and target

    def scope(self, key: str) -> int:
        return self.scopes.setdefault(key, len(self.scopes))

    def name(self, scope: int, text: str, target: int) -> None:
        name = np.frombuffer(text.encode(), np.uint8)
        self.names.append((int(kernel.name_hash(name, scope)), target))

    def enum(self, descriptor: Any) -> int:
        key = descriptor.full_name
        if key in self.scopes:
            return self.scopes[key]
        scope = self.scope(key)
        for value in descriptor.values:
            self.name(scope, value.name, value.number)
        return scope

    def message(self, descriptor: Any) -> int:
        key = descriptor.full_name
        if key in self.scopes:
            return self.scopes[key]
        scope = self.scope(key)
        for field in descriptor.fields:
            self.field(scope, field)
        return scope

    def field(self, scope: int, field: Any) -> int:
        """Adds `field` under its names in `scope`; returns its number in `fields`."""
        number = len(self.fields)
        self.fields.append((0, 0, 0, 0))
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            kind, wire, child = kernel.MESSAGE, 2, self.message(field.message_type)
        elif field.type == FieldDescriptor.TYPE_ENUM:
            kind, wire, child = kernel.ENUM, 0, self.enum(field.enum_type)
        elif field.camelcase_name in IDS:
            kind, wire, child = kernel.HEX, 2, 0
        else:
            kind, wire, child = _SCALARS[field.type]
        self.fields[number] = (field.number << 3 | wire, kind, child, int(field.is_repeated))
        for name in sorted({field.json_name, field.name}):
            self.name(scope, name, number)
        return number


@cache
def tables() -> Tables:
    """The tables of all three requests, and of a request whose signal its content tells."""
    builder = _Builder()
    roots: dict[Signal | None, int] = {s: builder.message(r.DESCRIPTOR) for s, r in REQUESTS.items()}
    roots[None] = builder.scope("any signal")
    signal_of = {
        builder.field(roots[None], request.DESCRIPTOR.fields[0]): signal for signal, request in REQUESTS.items()
    }
    size = 1 << (4 * len(builder.names)).bit_length()
    slots = np.zeros(size, np.uint64)
    targets = np.zeros(size, np.int32)
    for name, target in builder.names:
        slot = name % size
        while slots[slot]:
            slot = (slot + 1) % size
        slots[slot], targets[slot] = name, target
    return Tables(roots, signal_of, np.array(builder.fields, np.int32), slots, targets)


def to_protobuf(data: bytes, signal: Signal | None = None) -> tuple[Signal, bytes]:
    """The protobuf encoding of the OTLP JSON request `data`; its signal by content when None is given.

    Ids that are no hexadecimal become ids of a wrong length, so that decode rejects their record and no other; unknown
    fields and enum names are left out.

    Raises:
        ValueError: not JSON, not an OTLP request of that signal, or nested too deep; it names the byte.
    """
    text = data[3:] if data.startswith(b"\xef\xbb\xbf") else data
    table = tables()
    buf = np.frombuffer(text, np.uint8)
    stack = np.empty((DEPTH_MAX, 4), np.int64)
    size = len(text) + 64
    while True:
        out = np.empty(size, np.uint8)
        arrays = (out, table.fields, table.slots, table.targets, POWERS, stack)
        status, position, member = kernel.transcode(buf, table.roots[signal], *arrays)
        if status != kernel.FULL:
            break
        size *= 2
    if status >= 0:
        if signal is None:
            signal = table.signal_of.get(member)
            if signal is None:
                raise ValueError(f"not an OTLP request: no {', '.join(m[0] for m in MEMBERS.values())} at byte 0")
        return signal, out[:status].tobytes()
    if status in (kernel.DEEP, kernel.TWO_SIGNALS) or len(text) > SLOW_BYTES_MAX:
        raise ValueError(_fault(status, position))
    try:
        return slowly(text, signal)
    except (ValueError, TypeError, json_format.ParseError, RecursionError) as error:
        raise ValueError(_fault(status, position)) from error


def _fault(status: int, position: int) -> str:
    return f"OTLP JSON: at byte {position}, expected {EXPECTED[status]}"


def slowly(data: bytes, signal: Signal | None) -> tuple[Signal, bytes]:
    """As `to_protobuf`, by way of Python objects. Raises ValueError, TypeError or `json_format.ParseError`."""
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise TypeError("a request is an object")
    if signal is None:
        found = [candidate for candidate, members in MEMBERS.items() if any(value.get(m) is not None for m in members)]
        if len(found) != 1:
            raise ValueError("a request holds one of spans, logs and metrics")
        signal = found[0]
    message = REQUESTS[signal]()
    json_format.ParseDict(_plain(value), message, ignore_unknown_fields=True)
    return signal, message.SerializeToString()


def _plain(value: Any) -> Any:
    """`value` as protobuf's JSON mapping has it: ids in base64, no nulls."""
    if isinstance(value, list):
        return [_plain(item) for item in value if item is not None]
    if not isinstance(value, dict):
        return value
    return {
        key: _id(item) if key in IDS and isinstance(item, str) else _plain(item)
        for key, item in value.items()
        if item is not None
    }


def _id(text: str) -> str:
    """A hexadecimal id in base64; anything else as the one byte that stands for a bad id."""
    try:
        if len(text) in {12, 24} and text.endswith("="):
            return text if len(base64.b64decode(text)) in {8, 16} else "/w=="
        return base64.b64encode(binascii.a2b_hex(text)).decode()
    except ValueError:
        return "/w=="
