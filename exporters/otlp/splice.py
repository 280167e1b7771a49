"""Edits an export request as bytes: adds events to spans, cuts one that is too large. All else stays as it was sent.

How it works. A message of protobuf inside another is its length and its fields one after the other, and a field that
may be repeated may stand anywhere. So an event is added to a span by writing it behind the span's last field and
writing anew the lengths of the span, its scope and its resource group: ids, flags, order, dropped counts and fields
that nobody here knows are copied, never read. A request that is too large for the receiver becomes several: the groups
are dealt out, and one that is too large by itself is cut between its scopes or records, each part with the same
resource and scope.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector_processor.kernels import spans as kernel
from collector_processor.model import U64
from collector_processor.varint import as_varint

EVENT_TAG = b"\x5a"  # field 11 of a span, length-delimited
LEVELS = (kernel.GROUP_TAG, kernel.SCOPE_TAG, kernel.SPAN_TAG)  # each followed by body and end
LENGTH_MAX = 11  # bytes of a tag and a length around a part

Edit = tuple[list[int], bytes]
"""A row of `kernels/spans.py`, and what to write behind the fields of its span."""


def with_events(data: bytes, rows: U64, events: Mapping[int, Sequence[bytes]]) -> bytes:
    """`data`, whose spans are `rows`, with `events` (encoded Span.Event by row) behind those that the spans have."""
    added = {
        row: b"".join(EVENT_TAG + as_varint(len(event)) + event for event in events[row]) for row in sorted(events)
    }
    return b"".join(_rebuilt(data, 0, len(data), 0, [(rows[row].tolist(), what) for row, what in added.items()]))


def carries(data: bytes, row: U64, name: str) -> bool:
    """Whether the span already has an event of that name."""
    span = Span.FromString(data[int(row[kernel.SPAN_BODY]) : int(row[kernel.SPAN_END])])
    return any(event.name == name for event in span.events)


def _rebuilt(data: bytes, at: int, stop: int, level: int, edits: list[Edit]) -> Iterator[bytes]:
    """data[at:stop], the content of a message `level` deep, with the edits made."""
    column = LEVELS[level]
    for tag, inside in groupby(edits, key=lambda edit: edit[0][column]):
        inner = list(inside)
        body, end = inner[0][0][column + 1 : column + 3]
        if column == kernel.SPAN_TAG:
            content = data[body:end] + b"".join(what for _, what in inner)
        else:
            content = b"".join(_rebuilt(data, body, end, level + 1, inner))
        yield data[at : _after_varint(data, tag)]
        yield as_varint(len(content))
        yield content
        at = end
    yield data[at:stop]


def pieces(data: bytes, bytes_max: int) -> list[bytes]:
    """`data` as requests of at most `bytes_max` bytes; larger ones only where a single record is larger."""
    return list(_pieces(data, bytes_max, 0))


def _pieces(message: bytes, bytes_max: int, level: int) -> Iterator[bytes]:
    """A request, group, scope or record as several of its kind, which together hold the same records in order."""
    if len(message) <= bytes_max or level == len(kernel.INNER):
        yield message
        return
    shared, parts = [], []
    for number, at, body, end in _fields(message):
        if number == kernel.INNER[level] and body:
            parts.append(message[body:end])
        else:
            shared.append(message[at:end])
    head = b"".join(shared)
    room = max(bytes_max - len(head), 0)
    tag = as_varint(kernel.INNER[level] << 3 | 2)
    batch, size = [head], 0
    for part in parts:
        for piece in _pieces(part, room - LENGTH_MAX, level + 1):
            whole = tag + as_varint(len(piece)) + piece
            if size and size + len(whole) > room:
                yield b"".join(batch)
                batch, size = [head], 0
            batch.append(whole)
            size += len(whole)
    yield b"".join(batch)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(number, start, content, end) of each field; content 0 when it is not length-delimited. What cannot be read is
    one last field, of number 0."""
    at, stop = 0, len(message)
    while at < stop:
        value = _after_varint(message, at)
        tag = _varint(message, at)
        wire = tag & 7
        body = 0
        if wire == 2:
            body = _after_varint(message, value)
            end = body + _varint(message, value)
        elif wire == 0:
            end = _after_varint(message, value)
        else:
            end = value + {1: 8, 5: 4}.get(wire, stop)
        if end > stop:
            yield 0, at, 0, stop
            return
        yield tag >> 3, at, body, end
        at = end


def _after_varint(data: bytes, at: int) -> int:
    while at < len(data) and data[at] > 127:
        at += 1
    return at + 1


def _varint(data: bytes, at: int) -> int:
    value = 0
    for shift, byte in enumerate(data[at : _after_varint(data, at)]):
        value |= (byte & 0x7F) << 7 * shift
    return value
