"""Takes what is damaged out of an OTLP export request, or mends it; the rest stays byte for byte as it was sent.

How it works. A Collector checks neither UTF-8 nor the depth of values, and protobuf refuses a whole request for one
bad string: one bad record would cost its batch. So `examine` (kernels/examine.py) looks through the bytes and marks
the pieces that protobuf would refuse and the spans without proper ids. A request without marks, the normal case,
passes as it is. Else the marked pieces are cut out, or mended, and only the lengths of the groups around them are
written anew: unknown fields survive, and the work in Python is per damaged piece, not per record.

A resource or scope is always mended, since sound records hang on it. A record is mended or rejected as the caller
asks. Ids of a wrong length are cleared from a log, which is then uncorrelated; a span without proper ids is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.kernels import examine as kernel
from collector_processor.model import I64, Signal
from collector_processor.varint import as_varint

OWN_SCOPE = "spanchain"  # the instrumentation scope of everything spanchain emits
REASONS = (
    *("sound", "malformed", "truncated", "invalid_utf8", "too_deep", "trace_id", "span_id", "parent_span_id"),
    *("log_id", "length", "own"),
)
MENDED_BYTES_MAX = 512 << 10  # of one request; further damaged records are rejected: mending costs Python per field
NO_LIMIT = np.iinfo(np.int64).max
NEVER = np.frombuffer(b"\xff", np.uint8)  # a name that no sound scope has


class TooManyError(ValueError):
    """The request holds more records or more elements than the limits allow."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A request that protobuf accepts.

    rejected: records that are no longer in `data`, by reason. repaired: pieces that were changed, by reason. own:
    records of our own scope, left out as well, so that spanchain never feeds on its output.
    """

    data: bytes
    records: int
    own: int
    rejected: dict[str, int]
    repaired: dict[str, int]


def _schema() -> tuple[I64, dict[str, int]]:
    """The schema table of `examine` and the number of each message type, from the official descriptors."""
    numbers: dict[str, int] = {}
    found: list[Any] = []

    def visit(message: Any) -> int:
        if message.full_name not in numbers:
            numbers[message.full_name] = kernel.FIRST_TYPE + len(found)
            found.append(message)
            for field in message.fields:
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    visit(field.message_type)
        return numbers[message.full_name]

    visit(ExportTraceServiceRequest.DESCRIPTOR)
    visit(ExportLogsServiceRequest.DESCRIPTOR)
    table = np.zeros((kernel.FIRST_TYPE + len(found), kernel.FIELDS), np.int64)
    for message in found:
        for field in message.fields:
            if field.number < kernel.FIELDS:
                what = {FieldDescriptor.TYPE_STRING: kernel.STRING, FieldDescriptor.TYPE_BYTES: kernel.BYTES}
                is_message = field.type == FieldDescriptor.TYPE_MESSAGE
                value = numbers[field.message_type.full_name] if is_message else what.get(field.type, kernel.UNKNOWN)
                table[numbers[message.full_name], field.number] = value
    return table, numbers


SCHEMA, NUMBERS = _schema()
SPAN = NUMBERS["opentelemetry.proto.trace.v1.Span"]
LOG = NUMBERS["opentelemetry.proto.logs.v1.LogRecord"]
SCOPE = NUMBERS["opentelemetry.proto.common.v1.InstrumentationScope"]
PAIR = NUMBERS["opentelemetry.proto.common.v1.KeyValue"]


def _types(request: Any, groups: str, scopes: str, record: int) -> I64:
    group = request.fields_by_name[groups].message_type
    scope = group.fields_by_name[scopes].message_type
    around = [NUMBERS[message.full_name] for message in (request, group, scope)]
    return np.array([*around, record, SPAN, LOG, SCOPE, PAIR], np.int64)


TYPES = {
    Signal.TRACES: _types(ExportTraceServiceRequest.DESCRIPTOR, "resource_spans", "scope_spans", SPAN),
    Signal.LOGS: _types(ExportLogsServiceRequest.DESCRIPTOR, "resource_logs", "scope_logs", LOG),
}


def clean(
    data: bytes,
    signal: Signal,
    *,
    records_max: int = NO_LIMIT,
    elements_max: int = NO_LIMIT,
    keep_damaged: bool = False,
    own_scope: str | None = OWN_SCOPE,
) -> Cleaned:
    """The request in `data` (protobuf, traces or logs) as protobuf accepts it, and what had to go.

    records_max, elements_max: above that many records, or messages of any kind, `TooManyError` is raised before
    anything is built. keep_damaged: mend records with invalid UTF-8 (replacement characters) or too deep values (cut
    off) instead of rejecting them. own_scope: records of this instrumentation scope are left out.
    """
    if not data:
        return Cleaned(data, 0, 0, {}, {})
    buffer = np.frombuffer(data, np.uint8)
    own = NEVER if own_scope is None else np.frombuffer(own_scope.encode(), np.uint8)
    totals = np.zeros(kernel.TOTALS, np.int64)
    edits = np.empty((16, kernel.COLUMNS), np.int64)
    while True:
        kernel.examine(buffer, SCHEMA, TYPES[signal], own, records_max, elements_max, edits, totals)
        if totals[kernel.REFUSED] == kernel.TOO_MANY_RECORDS:
            raise TooManyError(f"more than {records_max} records in one request")
        if totals[kernel.REFUSED] == kernel.TOO_MANY_ELEMENTS:
            raise TooManyError(f"more than {elements_max} attributes, events and other elements in one request")
        if totals[kernel.EDITS] <= len(edits):
            break
        edits = np.empty((int(totals[kernel.EDITS]), kernel.COLUMNS), np.int64)
    if totals[kernel.EDITS] == 0:
        return Cleaned(data, int(totals[kernel.SEEN]), 0, {}, {})
    return _Edited(data, edits[: totals[kernel.EDITS]], keep_damaged).cleaned(int(totals[kernel.SEEN]))


def repair(data: bytes, signal: Signal) -> tuple[bytes, dict[str, int]]:
    """(the request as protobuf accepts it, {reason: records that had to be left out}); mends what can be mended."""
    cleaned = clean(data, signal, keep_damaged=True, own_scope=None)
    return cleaned.data, cleaned.rejected


class _Edited:
    """A request with the pieces that `examine` marked replaced."""

    def __init__(self, data: bytes, edits: I64, keep_damaged: bool) -> None:
        self.data = data
        self.keep_damaged = keep_damaged
        self.to_mend = MENDED_BYTES_MAX
        self.rejected: dict[str, int] = {}
        self.repaired: dict[str, int] = {}
        self.own = 0
        order = np.lexsort((-edits[:, kernel.LEVEL], edits[:, kernel.START]))
        self.edits: list[list[int]] = edits[order].tolist()

    def cleaned(self, seen: int) -> Cleaned:
        data = b"".join(self._rewritten(0, len(self.data), 0, 0, len(self.edits)))
        kept = seen - self.own - sum(self.rejected.values())
        return Cleaned(data, kept, self.own, self.rejected, self.repaired)

    def _rewritten(self, at: int, stop: int, level: int, first: int, last: int) -> Iterator[bytes]:
        """The content data[at:stop] of a group `level` deep with the edits first:last made."""
        while first < last:
            edit = self.edits[first]
            if edit[kernel.LEVEL] == level:
                yield self.data[at : edit[kernel.START]]
                yield self._replacement(edit)
                at = edit[kernel.STOP]
                first += 1
                continue
            column = kernel.SCOPE if level else kernel.GROUP
            tag, body, end = edit[column : column + 3]
            after = first
            while after < last and self.edits[after][column] == tag:
                after += 1
            content = b"".join(self._rewritten(body, end, level + 1, first, after))
            _, length_at = _varint(self.data, tag, end)
            yield self.data[at:length_at]
            yield as_varint(len(content))
            yield content
            at, first = end, after
        yield self.data[at:stop]

    def _replacement(self, edit: list[int]) -> bytes:
        """The bytes that take the place of a marked piece; counts what was done."""
        kind, reason = edit[kernel.TYPE], edit[kernel.REASON]
        if reason == kernel.LENGTH:
            _count(self.repaired, reason)
            return b""
        if reason == kernel.OWN:
            self.own += edit[kernel.RECORDS]
            return b""
        content = self._mended(edit) if self._may_mend(edit) else None
        if content is None:
            _count(self.rejected if edit[kernel.RECORDS] else self.repaired, reason)
            return b""
        if kind in {SPAN, LOG}:
            space = np.empty((2, kernel.DEPTH_MAX + 1), np.int64)
            array = np.frombuffer(content, np.uint8)
            depth = kernel.RECORD_DEPTH
            left, _ = kernel.piece(array, 0, array.size, kind, depth, SCHEMA, SPAN, LOG, PAIR, space[0], space[1])
            if left != kernel.SOUND:
                _count(self.rejected, left)
                return b""
        _count(self.repaired, reason)
        _, length_at = _varint(self.data, edit[kernel.START], edit[kernel.BODY])
        return self.data[edit[kernel.START] : length_at] + as_varint(len(content)) + content

    def _may_mend(self, edit: list[int]) -> bool:
        kind, reason = edit[kernel.TYPE], edit[kernel.REASON]
        if edit[kernel.STOP] - edit[kernel.BODY] > self.to_mend or kind == kernel.UNKNOWN:
            return False
        if kind in {SPAN, LOG}:
            damaged = self.keep_damaged and reason in {kernel.INVALID_UTF8, kernel.TOO_DEEP}
            return damaged or reason == kernel.LOG_ID
        return reason != kernel.TRUNCATED or not edit[kernel.RECORDS]

    def _mended(self, edit: list[int]) -> bytes:
        body, stop, kind = edit[kernel.BODY], edit[kernel.STOP], edit[kernel.TYPE]
        self.to_mend -= stop - body
        if kind == kernel.STRING:
            return _as_utf8(self.data[body:stop])
        return b"".join(_mend(self.data, body, stop, kind, edit[kernel.LEVEL] + 1))


def _count(counts: dict[str, int], reason: int) -> None:
    counts[REASONS[reason]] = counts.get(REASONS[reason], 0) + 1


def _mend(data: bytes, at: int, stop: int, kind: int, depth: int) -> Iterator[bytes]:
    """The whole fields of the message of type `kind` in data[at:stop], `depth` messages deep, made sound."""
    fields: list[int] = SCHEMA[kind].tolist()
    while at < stop:
        start = at
        tag, at = _varint(data, at, stop)
        if at < 0 or tag < 8 or tag > 0xFFFFFFFF:
            return
        length_at = at
        field, wire = tag >> 3, tag & 7
        if wire != 2:
            at = _after_scalar(data, at, stop, wire)
            if at < 0:
                return
            yield data[start:at]
            continue
        size, body = _varint(data, at, stop)
        if body < 0 or size > stop - body:
            return
        at = body + size
        what = fields[field] if field < kernel.FIELDS else kernel.UNKNOWN
        if what == kernel.STRING:
            content = _as_utf8(data[body:at])
        elif what >= kernel.FIRST_TYPE:
            if depth + 1 > kernel.DEPTH_MAX:
                continue
            content = b"".join(_mend(data, body, at, what, depth + 1))
        elif kind == LOG and ((field == 9 and size not in {0, 16}) or (field == 10 and size not in {0, 8})):
            continue
        else:
            yield data[start:at]
            continue
        yield data[start:length_at] + as_varint(len(content)) + content


def _as_utf8(text: bytes) -> bytes:
    return text.decode("utf-8", "replace").encode()


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """(value, next position); position -1 when truncated or longer than 10 bytes."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    return 0, -1


def _after_scalar(data: bytes, at: int, stop: int, wire: int) -> int:
    """Position after a varint or fixed field, -1 when it does not fit or is a group."""
    if wire == 0:
        return _varint(data, at, stop)[1]
    at += {1: 8, 5: 4}.get(wire, stop + 1)
    return at if at <= stop else -1


__all__ = ["OWN_SCOPE", "Cleaned", "TooManyError", "clean", "repair"]
