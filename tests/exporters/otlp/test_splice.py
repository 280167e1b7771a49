"""Edited requests, held against the official classes: nothing but the event is new, whatever the request holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector_processor.kernels import spans as kernel
from exporters.otlp.splice import carries, pieces, with_events
from tests.otlp import key_values, log, logs, span, traces

EVENT = Span.Event(name="spanchain.anomaly", time_unix_nano=7, attributes=key_values({"a": "b"})).SerializeToString()


def varint(value: int, padded: int = 0) -> bytes:
    """A varint, with `padded` more bytes than it needs: allowed, though nobody writes it."""
    out = bytearray()
    while value > 127 or padded:
        if value <= 127:
            padded -= 1
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# Fields of numbers that no message of OTLP has yet.
unknown = st.one_of(
    st.builds(lambda field, value: varint(field << 3) + varint(value), st.integers(100, 5000), st.integers(0, 2**60)),
    st.builds(
        lambda field, value: varint(field << 3 | 2) + varint(len(value)) + value,
        st.integers(100, 5000),
        st.binary(max_size=200),
    ),
    st.builds(
        lambda field, value: varint(field << 3 | 5) + value, st.integers(100, 5000), st.binary(min_size=4, max_size=4)
    ),
    st.builds(
        lambda field, value: varint(field << 3 | 1) + value, st.integers(100, 5000), st.binary(min_size=8, max_size=8)
    ),
)
texts = st.text(max_size=8)
attributes = st.dictionaries(texts, st.one_of(texts, st.integers(-(2**60), 2**60), st.binary(max_size=150)), max_size=3)


@st.composite
def mixed(draw: Any, parts: list[bytes]) -> bytes:
    """`parts`, in order, with unknown fields before, between and behind them."""
    out = [draw(unknown)] if draw(st.booleans()) else []
    for part in parts:
        out.append(part)
        if draw(st.integers(0, 3)) == 0:
            out.append(draw(unknown))
    return b"".join(out)


@st.composite
def field(draw: Any, number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content), draw(st.sampled_from([0, 0, 0, 1]))) + content


@st.composite
def a_span(draw: Any) -> bytes:
    made = Span(
        trace_id=draw(st.sampled_from([b"t" * 16, b"u" * 16])),
        span_id=draw(st.sampled_from([b"s" * 8, b"r" * 8])),
        name=draw(texts),
        kind=draw(st.integers(0, 5)),
        trace_state=draw(texts),
        flags=draw(st.integers(0, 2**32 - 1)),
        dropped_attributes_count=draw(st.integers(0, 9)),
        dropped_events_count=draw(st.integers(0, 9)),
        dropped_links_count=draw(st.integers(0, 9)),
        attributes=key_values(draw(attributes)),
    )
    for name in draw(st.lists(texts, max_size=2)):
        made.events.add(name=name, time_unix_nano=draw(st.integers(0, 2**64 - 1)), attributes=key_values({"k": name}))
        made.links.add(trace_id=b"l" * 16, span_id=b"l" * 8)
    return draw(mixed([made.SerializeToString()]))


@st.composite
def request(draw: Any) -> bytes:
    groups = []
    for _ in range(draw(st.integers(0, 3))):
        resource = draw(mixed([draw(field(1, k.SerializeToString())) for k in key_values(draw(attributes))]))
        scopes = [draw(field(1, resource)), draw(field(3, b"https://schema"))]
        for _ in range(draw(st.integers(0, 3))):
            spans = [draw(field(1, draw(field(1, b"scope")))), draw(field(3, b"https://scope"))]
            spans += [draw(field(2, draw(a_span()))) for _ in range(draw(st.integers(0, 4)))]
            scopes.append(draw(field(2, draw(mixed(spans)))))
        groups.append(draw(field(1, draw(mixed(draw(st.permutations(scopes)))))))
    return draw(mixed(groups))


def spans_of(parsed: ExportTraceServiceRequest) -> Iterator[Span]:
    for group in parsed.resource_spans:
        for scope in group.scope_spans:
            yield from scope.spans


@given(request())
def test_every_span_is_found_with_its_ids(data: bytes) -> None:
    expected = [
        (span.trace_id, span.span_id, span.kind) for span in spans_of(ExportTraceServiceRequest.FromString(data))
    ]
    rows = kernel.rows_of(data)
    found = [
        (int(row[0]).to_bytes(8, "big") + int(row[1]).to_bytes(8, "big"), int(row[2]).to_bytes(8, "big"), int(row[3]))
        for row in rows
    ]
    assert found == expected
    for row, one in zip(rows.tolist(), spans_of(ExportTraceServiceRequest.FromString(data)), strict=True):
        assert Span.FromString(data[row[kernel.SPAN_BODY] : row[kernel.SPAN_END]]) == one


@given(request(), st.data())
def test_nothing_but_the_event_is_new(data: bytes, draw: st.DataObject) -> None:
    rows = kernel.rows_of(data)
    chosen = draw.draw(st.sets(st.integers(0, max(len(rows) - 1, 0)), max_size=len(rows)))
    events = {row: [EVENT] * draw.draw(st.integers(1, 2)) for row in chosen}
    spliced = with_events(data, rows, events)
    before, after = ExportTraceServiceRequest.FromString(data), ExportTraceServiceRequest.FromString(spliced)
    for index, (old, new) in enumerate(zip(spans_of(before), spans_of(after), strict=True)):
        added = len(events.get(index, ()))
        assert [each.SerializeToString() for each in new.events[len(old.events) :]] == [EVENT] * added
        for _ in range(added):
            new.events.pop()
    assert after.SerializeToString() == before.SerializeToString()
    assert len(spliced) > len(data) or not chosen


def test_a_request_that_nothing_is_added_to_is_the_same_bytes() -> None:
    data = traces(span(1, 1), span(1, 2, 1, service="risk"))
    assert with_events(data, kernel.rows_of(data), {}) == data


def test_a_span_that_has_the_event_is_known() -> None:
    data = traces(span(1, 1), span(1, 2))
    rows = kernel.rows_of(data)
    once = with_events(data, rows, {1: [EVENT]})
    rows = kernel.rows_of(once)
    assert [carries(once, row, "spanchain.anomaly") for row in rows] == [False, True]


def test_records_of_logs_are_counted() -> None:
    assert kernel.records_in(logs(log("a"), log("b", 1, 1), log("c", service="risk"))) == 3
    assert kernel.records_in(b"") == 0


@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_are_no_reason_to_fail(data: bytes) -> None:
    rows = kernel.rows_of(data)
    with_events(data, rows, {row: [EVENT] for row in range(len(rows))})
    pieces(data, 20)


@given(request(), st.integers(1, 400))
def test_a_request_in_pieces_holds_the_same_spans_under_the_same_resources(data: bytes, bytes_max: int) -> None:
    def flat(parts: list[bytes]) -> list[Any]:
        out = []
        for part in parts:
            for group in ExportTraceServiceRequest.FromString(part).resource_spans:
                for scope in group.scope_spans:
                    out += [
                        (group.resource.SerializeToString(), group.schema_url, scope.scope.name, scope.schema_url, span)
                        for span in scope.spans
                    ]
        return out

    cut = pieces(data, bytes_max)
    assert flat(cut) == flat([data])
    for part in cut:
        assert len(part) <= bytes_max or kernel.records_in(part) <= 1
    if len(data) <= bytes_max:
        assert cut == [data]


def test_logs_are_cut_alike() -> None:
    data = logs(*(log("x" * 100, 1, n, service=f"s{n // 7}") for n in range(1, 40)))
    cut = pieces(data, 1000)
    assert len(cut) > 3
    assert max(map(len, cut)) <= 1000
    bodies = [
        record.span_id
        for part in cut
        for group in ExportLogsServiceRequest.FromString(part).resource_logs
        for record in group.scope_logs[0].log_records
    ]
    assert bodies == [n.to_bytes(8, "big") for n in range(1, 40)]


def test_rows_beyond_the_room_are_counted_only() -> None:
    data = np.frombuffer(traces(span(1, 1), span(1, 2)), np.uint8)
    rows = np.zeros((1, kernel.COLUMNS), np.uint64)
    assert kernel.locate(data, rows) == 2
    assert rows[0, kernel.SPAN_ID] == 1
