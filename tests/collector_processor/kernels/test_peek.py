"""The signal and the time of a request show in its records alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from collector_processor.kernels import peek as kernel
from collector_processor.model import Signal
from tests.otlp import MS, T0, log, logs, span, traces


def peek(data: bytes) -> tuple[int, int, int]:
    votes, times = np.zeros(3, np.int64), np.zeros((2, kernel.SAMPLE), np.int64)
    signal, records, time_ns = kernel.peek(np.frombuffer(data, np.uint8), votes, times)
    return int(signal), int(records), int(time_ns)


def metrics(kind: str, name: str = "requests", description: str = "") -> bytes:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name=name, description=description)
    getattr(metric, kind).data_points.add(time_unix_nano=T0)
    return request.SerializeToString()


@pytest.mark.parametrize("kind", ["gauge", "sum", "histogram", "exponential_histogram", "summary"])
def test_metrics_are_told_apart(kind: str) -> None:
    assert peek(metrics(kind))[0] == Signal.METRICS
    # A name and a description as long as a trace id and a span id.
    assert peek(metrics(kind, "process.cpu.time", "CPU time"))[0] == Signal.METRICS


def test_spans_with_nothing_but_ids_and_with_nothing_but_times() -> None:
    bare = {"trace_id": bytes(range(16)), "span_id": bytes(range(8))}
    assert peek(traces(("a", bare)))[0] == Signal.TRACES
    assert peek(traces(("a", {**bare, "name": "op"})))[0] == Signal.TRACES
    assert peek(traces(("a", {"start_time_unix_nano": 5})))[0] == Signal.TRACES


def test_logs_with_nothing_but_a_body_a_severity_or_ids() -> None:
    for fields in (
        {"severity_number": 9},
        {"observed_time_unix_nano": 3},
        {"trace_id": b"t" * 16, "span_id": b"s" * 8},
    ):
        assert peek(logs(("a", fields)))[0] == Signal.LOGS
    assert peek(logs(("a", {"body": log("hello")[1]["body"]})))[0] == Signal.LOGS


spans = st.lists(
    st.builds(span, st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), ms=st.floats(0, 1e6)), max_size=9
)
records = st.lists(
    st.builds(log, st.text(max_size=20), st.integers(0, 9), st.integers(0, 9), severity=st.integers(0, 24)), max_size=9
)


@given(spans)
def test_any_trace_request_is_one(made: list[tuple[str, dict[str, object]]]) -> None:
    signal, count, _ = peek(traces(*made))
    assert count == len(made)
    assert signal == Signal.TRACES or not made


@given(records)
def test_any_log_request_is_one(made: list[tuple[str, dict[str, object]]]) -> None:
    signal, count, _ = peek(logs(*made))
    assert count == len(made)
    assert signal == Signal.LOGS or not made


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data: bytes) -> None:
    signal, count, _ = peek(data)
    assert -1 <= signal <= 2
    assert count >= -1


@given(st.integers(0, 2**31), st.binary(min_size=1, max_size=4), st.integers(0, 3))
def test_a_damaged_request_is_survived(at: int, piece: bytes, cut: int) -> None:
    data = bytearray(traces(*(span(1, n) for n in range(1, 6))))
    at %= len(data)
    data[at : at + cut] = piece
    assert -1 <= peek(bytes(data))[1] <= len(data)


def test_one_bad_record_does_not_change_the_signal() -> None:
    wrong = ("gateway", {"trace_id": b"short", "span_id": b"s", "name": "bad"})
    assert peek(traces(wrong, *(span(1, n) for n in range(1, 4))))[0] == Signal.TRACES


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200, 1000])
def test_the_time_is_the_median_and_no_crazy_clock_moves_it(count: int) -> None:
    good = [span(1, n + 1, start_ms=n, ms=0) for n in range(count)]
    _, found, time_ns = peek(traces(*good))
    assert found == count
    assert abs(time_ns - (T0 + count // 2 * MS)) <= max(1, count // 20) * MS
    for end in (1, 2**63 - 1, 2**64 - 1):
        if count > 2:
            crazy = ("gateway", {**good[0][1], "start_time_unix_nano": end, "end_time_unix_nano": end})
            assert abs(peek(traces(crazy, *good))[2] - time_ns) <= max(2, count // 20) * MS


def test_a_request_without_times_has_none() -> None:
    assert peek(traces(("a", {"trace_id": b"t" * 16, "span_id": b"s" * 8})))[2] == -1
    assert peek(logs(("a", {"severity_number": 9})))[2] == -1
    assert peek(b"")[1:] == (0, -1)


def test_what_is_no_request_is_told_from_one_without_records() -> None:
    assert peek(b"garbage")[1] == -1
    assert peek(traces(("a", {}))[:-2])[1] == -1
    assert peek(b"\x0a\x00")[1] == 0


def test_a_log_without_its_own_time_has_that_of_its_observation() -> None:
    assert peek(logs(("a", {"observed_time_unix_nano": T0, "time_unix_nano": 0})))[2] == T0
