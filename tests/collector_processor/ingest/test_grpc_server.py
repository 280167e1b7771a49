"""The duties of an OTLP server over gRPC, each against a running server with a real client."""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from collector_processor.ingest.answers import RetryLaterError
from collector_processor.ingest.grpc_server import peer_address
from collector_processor.model import Signal
from tests.collector_processor.ingest.serving import METHODS, Served, serving
from tests.otlp import log, logs, span, traces

GOOD_SPANS = traces(*[span(1, n + 1) for n in range(5)])
GOOD_LOGS = logs(*[log(f"line {n}") for n in range(3)])


def status_of(error: Any) -> Status:
    [details] = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    return Status.FromString(details)


def test_full_success_leaves_partial_success_unset(served: Served) -> None:
    answer = served.export(Signal.TRACES, GOOD_SPANS)
    assert not ExportTraceServiceResponse.FromString(answer).HasField("partial_success")
    [payload] = served.payloads
    assert (payload.signal, payload.tenant, payload.data) == (Signal.TRACES, "default", GOOD_SPANS)
    assert abs(payload.arrival_ns - time.time_ns()) < 10e9
    assert served.counters.get("records_received_total", signal="traces", transport="grpc") == 5


def test_an_empty_request_is_success_and_nothing_to_keep(served: Served) -> None:
    for signal in Signal:
        assert served.export(signal, b"") == b""
    assert served.payloads == []


def test_metrics_are_accepted_and_ignored(served: Served) -> None:
    assert served.export(Signal.METRICS, b"\x0a\x02\x08\x01") == b""
    assert served.payloads == []
    assert served.counters.get("requests_total", signal="metrics", transport="grpc", code="ok") == 1


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_taken(served: Served, compression: Any) -> None:
    served.export(Signal.LOGS, GOOD_LOGS, compression=compression)
    assert [payload.data for payload in served.payloads] == [GOOD_LOGS]


def test_messages_above_grpcs_own_limit_are_taken(served: Served) -> None:
    data = logs(*[log("x" * 100_000) for _ in range(60)])
    assert len(data) > 5 << 20
    served.export(Signal.LOGS, data)
    assert len(served.payloads[0].data) == len(data)


def test_a_bad_span_is_a_partial_success_and_the_rest_is_kept(served: Served) -> None:
    request = ExportTraceServiceRequest.FromString(GOOD_SPANS)
    request.resource_spans[0].scope_spans[0].spans.add(trace_id=b"short", span_id=b"12345678")
    answer = ExportTraceServiceResponse.FromString(served.export(Signal.TRACES, request.SerializeToString()))
    assert answer.partial_success.rejected_spans == 1
    assert "trace_id" in answer.partial_success.error_message
    kept: Any = ExportTraceServiceRequest.FromString(served.payloads[0].data)
    assert len(kept.resource_spans[0].scope_spans[0].spans) == 5
    assert served.counters.get("records_rejected_total", signal="traces", reason="trace_id") == 1
    assert served.counters.get("records_received_total", signal="traces", transport="grpc") == 6


def test_a_text_that_is_not_utf8_costs_its_record_and_not_the_batch(served: Served) -> None:
    data = logs(log("bad MARK"), *[log("fine") for _ in range(999)]).replace(b"MARK", b"\xff\xfe\xfd\xfc")
    answer = ExportLogsServiceResponse.FromString(served.export(Signal.LOGS, data))
    assert answer.partial_success.rejected_log_records == 1
    assert served.counters.get("records_rejected_total", signal="logs", reason="invalid_utf8") == 1
    assert served.counters.get("records_received_total", signal="logs", transport="grpc") == 1000


def test_damaged_records_are_repaired_when_so_configured() -> None:
    data = logs(log("bad MARK")).replace(b"MARK", b"\xff\xfe\xfd\xfc")
    with serving(limits={"damaged_records": "repair"}) as served:
        assert served.export(Signal.LOGS, data) == b""
        assert "\ufffd".encode() in served.payloads[0].data
        assert served.counters.get("records_repaired_total", signal="logs", reason="invalid_utf8") == 1


def test_log_ids_of_a_wrong_length_are_no_error(served: Served) -> None:
    service, fields = log("x")
    data = logs((service, {**fields, "trace_id": b"12", "span_id": b"3"}))
    assert served.export(Signal.LOGS, data) == b""
    assert len(served.payloads) == 1


@pytest.mark.parametrize("data", [b"garbage", b'{"resourceSpans":[]}', b"\xff" * 50, b"\x0a"])
def test_what_is_no_otlp_request_is_an_invalid_argument(served: Served, data: bytes) -> None:
    """Never INTERNAL or UNKNOWN, which the Collector takes for final as well, without saying why."""
    error = served.refusal(Signal.TRACES, data)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert status_of(error).code == 3


@pytest.mark.parametrize("data", [gzip.compress(GOOD_SPANS)[:-20], b"\x1f\x8b\x08nonsense"])
def test_a_damaged_compression_is_an_invalid_argument(served: Served, data: bytes) -> None:
    assert served.refusal(Signal.TRACES, data).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_size_limit_holds_after_decompression_and_is_final() -> None:
    with serving(limits={"request_bytes_max": 100_000}) as served:
        for data in (b"\x0a" * 200_000, gzip.compress(bytes(200_000)), zlib.compress(bytes(200_000))):
            error = served.refusal(Signal.TRACES, data)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not [key for key, _ in error.trailing_metadata() or () if key == "grpc-retry-pushback-ms"]
        assert not status_of(error).details
        assert served.counters.get("requests_refused_total", transport="grpc", reason="too_large") == 2


def test_too_many_records_are_refused_before_they_are_parsed() -> None:
    with serving(limits={"records_max": 1000}) as served:
        served.export(Signal.LOGS, logs(*[log("x")] * 1000))
        error = served.refusal(Signal.LOGS, b"\x0a\x90\x50\x12\x8d\x50" + b"\x12\x00" * 5126)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 1000 records" in error.details()
        assert len(served.payloads) == 1


def test_overload_is_unavailable_with_a_time_to_come_back(served: Served) -> None:
    served.trouble.append(RetryLaterError("queue_full", "the queue is full", retry_after_s=7))
    error = served.refusal(Signal.TRACES, GOOD_SPANS)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    status, retry = status_of(error), RetryInfo()
    assert (status.code, status.message) == (14, "the queue is full")
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.seconds == 7
    assert served.counters.get("requests_refused_total", transport="grpc", reason="queue_full") == 1
    served.trouble.clear()
    assert served.export(Signal.TRACES, GOOD_SPANS) == b""


def test_a_failure_of_our_own_is_retryable(served: Served) -> None:
    served.trouble.append(ZeroDivisionError("a fault of ours"))
    error = served.refusal(Signal.TRACES, GOOD_SPANS)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "fault of ours" not in error.details()


def test_too_many_bytes_in_flight_are_refused_as_retryable() -> None:
    data = logs(log("x" * 60_000))
    with serving(limits={"request_bytes_max": 90_000, "inflight_bytes_max": 100_000}) as served:
        served.gate.clear()
        first = threading.Thread(target=served.export, args=(Signal.LOGS, data))
        first.start()
        assert served.entered.acquire(timeout=10)
        error = served.refusal(Signal.LOGS, data)
        served.gate.set()
        first.join()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert status_of(error).details
        assert len(served.payloads) == 1
        served.export(Signal.LOGS, data)


def test_our_own_output_is_not_taken_in_again(served: Served) -> None:
    own = traces(span(1, 2), scope="spanchain")
    assert served.export(Signal.TRACES, own) == b""
    assert served.payloads == []
    assert served.counters.get("records_rejected_total", signal="traces", reason="own") == 1


@pytest.mark.slow
def test_senders_that_never_finish_do_not_keep_others_out() -> None:
    stalled = threading.Event()

    def nothing() -> Iterator[bytes]:
        stalled.wait(20)
        yield from ()

    with serving(grpc={"workers": 2, "request_timeout_s": 0.5}) as served:
        address = f"localhost:{served.grpc_port}"
        channels = [grpc.insecure_channel(address) for _ in range(3)]
        calls = [channel.stream_unary(METHODS[Signal.TRACES]).future(nothing(), timeout=20) for channel in channels]
        began = time.monotonic()
        assert served.export(Signal.TRACES, GOOD_SPANS) == b""
        assert time.monotonic() - began < 10
        for call, channel in zip(calls, channels, strict=True):
            assert call.exception(20).code() is not grpc.StatusCode.DEADLINE_EXCEEDED
            channel.close()
        stalled.set()


def test_other_methods_are_unimplemented(served: Served) -> None:
    with grpc.insecure_channel(f"localhost:{served.grpc_port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHODS[Signal.TRACES] + "s")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_requests_at_once_are_each_answered_once_kept(served: Served) -> None:
    def send() -> None:
        for _ in range(25):
            served.export(Signal.LOGS, GOOD_LOGS)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served.payloads) == 100
    assert served.counters.get("records_received_total", signal="logs", transport="grpc") == 300


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[::1]:1", "::1"),
        ("unix:/nowhere/x", ""),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def test_the_foreign_exporter_of_the_sdk_is_served(served: Served) -> None:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = OTLPSpanExporter(f"localhost:{served.grpc_port}", insecure=True, compression=grpc.Compression.Gzip)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("shop").start_as_current_span("POST /order"):
        pass
    provider.shutdown()
    request: Message = ExportTraceServiceRequest.FromString(served.payloads[0].data)
    assert "POST /order" in str(request)
