"""The duties of an OTLP server over HTTP, each against a running server with a real client."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
import zlib
from typing import Any

import cramjam
import pytest
import zstandard
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from collector_processor.ingest.answers import RetryLaterError
from collector_processor.model import Signal
from tests.collector_processor.ingest.serving import JSON, PATHS, PROTOBUF, Served, serving
from tests.otlp import log, logs, span, traces

GOOD_SPANS = traces(*[span(1, n + 1) for n in range(5)])
GOOD_LOGS = logs(*[log(f"line {n}") for n in range(3)])
JSON_SPANS = (
    b'{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"pay"}}]},'
    b'"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"op",'
    b'"kind":2,"startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000,"unknown":[1]}]}]}]}'
)
BOTH = pytest.mark.parametrize("content_type", [PROTOBUF, JSON])


def status_of(body: bytes, content_type: str) -> Status:
    if content_type == JSON:
        return json_format.Parse(body, Status())
    return Status.FromString(body)


def test_full_success_leaves_partial_success_unset(served: Served) -> None:
    status, headers, body = served.post("/v1/traces", GOOD_SPANS)
    assert (status, headers["content-type"]) == (200, PROTOBUF)
    assert not ExportTraceServiceResponse.FromString(body).HasField("partial_success")
    assert [payload.data for payload in served.payloads] == [GOOD_SPANS]
    assert served.counters.get("records_received_total", signal="traces", transport="http") == 5


def test_json_is_answered_in_json(served: Served) -> None:
    status, headers, body = served.post("/v1/traces", JSON_SPANS, {"content-type": "application/json; charset=utf-8"})
    assert (status, headers["content-type"], json.loads(body)) == (200, JSON, {})
    [payload] = served.payloads
    one: Any = ExportTraceServiceRequest.FromString(payload.data)
    [received] = one.resource_spans[0].scope_spans[0].spans
    assert received.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert received.end_time_unix_nano - received.start_time_unix_nano == 10**9


@pytest.mark.parametrize(("content_type", "empty"), [(PROTOBUF, b""), (JSON, b"{}")])
def test_an_empty_request_is_success(served: Served, content_type: str, empty: bytes) -> None:
    for path in PATHS.values():
        assert served.post(path, empty, {"content-type": content_type})[0] == 200
    assert served.payloads == []


@BOTH
def test_metrics_are_accepted_and_ignored(served: Served, content_type: str) -> None:
    assert served.post("/v1/metrics", b"whatever", {"content-type": content_type})[0] == 200
    assert served.payloads == []


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(GOOD_LOGS)),
        ("gzip", gzip.compress(GOOD_LOGS[:50]) + gzip.compress(GOOD_LOGS[50:])),
        ("deflate", zlib.compress(GOOD_LOGS)),
        ("deflate", zlib.compress(GOOD_LOGS)[2:-4]),
        ("zstd", zstandard.compress(GOOD_LOGS)),
        ("snappy", bytes(cramjam.snappy.compress_raw(GOOD_LOGS))),
        ("snappy", bytes(cramjam.snappy.compress(GOOD_LOGS))),
        ("x-snappy-framed", bytes(cramjam.snappy.compress(GOOD_LOGS))),
        ("identity", GOOD_LOGS),
        ("", GOOD_LOGS),
    ],
)
def test_every_encoding_a_collector_sends_is_taken(served: Served, encoding: str, body: bytes) -> None:
    status, _, answer = served.post("/v1/logs", body, {"content-encoding": encoding})
    assert (status, answer) == (200, b"")
    assert [payload.data for payload in served.payloads] == [GOOD_LOGS]


def test_compressed_json_is_taken(served: Served) -> None:
    headers = {"content-type": JSON, "content-encoding": "zstd"}
    assert served.post("/v1/traces", zstandard.compress(JSON_SPANS), headers)[0] == 200
    assert len(served.payloads) == 1


def test_a_bad_record_is_a_partial_success(served: Served) -> None:
    data = logs(log("bad MARK"), *[log("fine") for _ in range(999)]).replace(b"MARK", b"\xff\xfe\xfd\xfc")
    status, headers, body = served.post("/v1/logs", data)
    assert (status, headers["content-type"]) == (200, PROTOBUF)
    answer = ExportLogsServiceResponse.FromString(body)
    assert answer.partial_success.rejected_log_records == 1
    assert "invalid_utf8: 1" in answer.partial_success.error_message
    kept: Any = ExportLogsServiceRequest.FromString(served.payloads[0].data)
    assert len(kept.resource_logs[0].scope_logs[0].log_records) == 999


def test_a_bad_span_in_json_is_a_partial_success_in_json(served: Served) -> None:
    bad = JSON_SPANS.replace(b'"eee19b7ec3c1b174"', b'""')
    status, _, body = served.post("/v1/traces", bad, {"content-type": JSON})
    assert status == 200
    partial = json.loads(body)["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert json_format.Parse(body, ExportTraceServiceResponse()).partial_success.rejected_spans == 1


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (PROTOBUF, b"garbage"),
        (PROTOBUF, JSON_SPANS),
        (JSON, b"{"),
        (JSON, b""),
        (JSON, GOOD_SPANS),
        (JSON, b"[" * 100_000),
        (JSON, b'{"resourceSpans":' + b'[{"scopeSpans":' * 100_000),
        (JSON, b'{"x":' * 100_000 + b"1" + b"}" * 100_000),
        (JSON, b'{"resourceSpans":"text"}'),
    ],
)
def test_bad_data_is_400_in_the_requests_content_type(served: Served, content_type: str, body: bytes) -> None:
    status, headers, answer = served.post("/v1/traces", body, {"content-type": content_type})
    assert (status, headers["content-type"]) == (400, content_type)
    assert len(answer) < 65536
    assert status_of(answer, content_type).code == 3
    assert status_of(answer, content_type).message
    assert served.payloads == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "snappy", "x-snappy-framed"])
@BOTH
def test_a_damaged_compression_is_400(served: Served, encoding: str, content_type: str) -> None:
    headers = {"content-type": content_type, "content-encoding": encoding}
    status, _, answer = served.post("/v1/traces", b"\xff\x06\x00\x00nonsense", headers)
    assert (status, status_of(answer, content_type).code) == (400, 3)


@BOTH
def test_overload_is_503_with_whole_seconds_to_come_back(served: Served, content_type: str) -> None:
    served.trouble.append(RetryLaterError("disk_full", "the disk is full", retry_after_s=90))
    body = JSON_SPANS if content_type == JSON else GOOD_SPANS
    status, headers, answer = served.post("/v1/traces", body, {"content-type": content_type})
    assert (status, headers["content-type"], headers["retry-after"]) == (503, content_type, "30")
    assert status_of(answer, content_type).code == 14
    assert status_of(answer, content_type).message == "the disk is full"
    assert served.counters.get("requests_refused_total", transport="http", reason="disk_full") == 1
    served.trouble.clear()
    assert served.post("/v1/traces", body, {"content-type": content_type})[0] == 200


def test_a_failure_of_our_own_is_503_and_not_500(served: Served) -> None:
    served.trouble.append(ZeroDivisionError("a fault of ours"))
    status, headers, answer = served.post("/v1/traces", GOOD_SPANS)
    assert (status, headers["retry-after"]) == (503, "5")
    assert b"fault of ours" not in answer


@BOTH
def test_the_size_limit_holds_before_and_after_decompression(content_type: str) -> None:
    with serving(limits={"request_bytes_max": 100_000}) as served:
        for body, encoding in ((bytes(100_001), "identity"), (gzip.compress(bytes(100_001)), "gzip")):
            headers = {"content-type": content_type, "content-encoding": encoding}
            status, headers, answer = served.post("/v1/traces", body, headers)
            assert (status, headers["content-type"]) == (413, content_type)
            assert status_of(answer, content_type).code == 8


def test_a_body_without_a_length_is_limited_as_it_comes() -> None:
    def chunks() -> Any:
        for _ in range(40):
            yield bytes(10_000)

    with serving(limits={"request_bytes_max": 100_000}) as served:
        connection = http.client.HTTPConnection("localhost", served.http_port, timeout=20)
        connection.request("POST", "/v1/traces", chunks(), {"content-type": PROTOBUF}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_too_many_records_are_413() -> None:
    with serving(limits={"records_max": 10}) as served:
        assert served.post("/v1/logs", logs(*[log("x")] * 10))[0] == 200
        status, _, answer = served.post("/v1/logs", logs(*[log("x")] * 11))
        assert (status, status_of(answer, PROTOBUF).code) == (413, 8)
        empty = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%s]}]}]}' % b",".join([b"{}"] * 11)
        assert served.post("/v1/logs", empty, {"content-type": JSON})[0] == 413


@BOTH
@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("POST", "/v1/spans", {}, 404),
        ("POST", "/", {}, 404),
        ("GET", "/v1/traces", {}, 405),
        ("PUT", "/v1/logs", {}, 405),
        ("POST", "/v1/traces", {"content-encoding": "br"}, 415),
    ],
)
def test_other_requests_are_answered_with_a_status_as_well(
    served: Served, content_type: str, method: str, path: str, headers: dict[str, str], expected: int
) -> None:
    headers = {"content-type": content_type, **headers}
    status, answered, body = served.post(path, b"", headers, method=method)
    assert (status, answered["content-type"]) == (expected, content_type)
    assert status_of(body, content_type).message


def test_other_content_types_are_415(served: Served) -> None:
    assert served.post("/v1/traces", GOOD_SPANS, {"content-type": "text/plain"})[0] == 415


def test_a_connection_is_used_again_after_a_refusal(served: Served) -> None:
    connection = http.client.HTTPConnection("localhost", served.http_port, timeout=20)
    for body, expected in ((b"garbage", 400), (GOOD_LOGS, 200), (b"garbage", 400), (GOOD_LOGS, 200)):
        connection.request("POST", "/v1/logs", body, {"content-type": PROTOBUF})
        response = connection.getresponse()
        response.read()
        assert response.status == expected
    connection.close()
    assert len(served.payloads) == 2


@pytest.mark.slow
def test_a_sender_that_never_finishes_loses_its_connection() -> None:
    with serving(http={"request_timeout_s": 0.3}) as served:
        for begun in (b"", b"POST /v1/tra", b"POST /v1/traces HTTP/1.1\r\nhost: x\r\n"):
            with socket.create_connection(("127.0.0.1", served.http_port), timeout=10) as connection:
                connection.sendall(begun)
                began = time.monotonic()
                assert connection.recv(100) == b""
                assert time.monotonic() - began < 5


def test_what_is_not_http_is_counted_and_not_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", served.http_port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert served.counters.get("requests_refused_total", transport="http", reason="bad_http") == 1
    assert caplog.records == []


def test_a_body_that_never_ends_is_408() -> None:
    head = f"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 100\r\n\r\n"
    with (
        serving(http={"request_timeout_s": 0.3}) as served,
        socket.create_connection(("127.0.0.1", served.http_port), timeout=10) as connection,
    ):
        connection.sendall(head.encode() + b"some")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_connections_above_the_limit_are_503() -> None:
    with serving(http={"connections_max": 2}) as served:
        idle = [socket.create_connection(("127.0.0.1", served.http_port), timeout=10) for _ in range(2)]
        status, headers = 200, dict[str, str]()
        deadline = time.monotonic() + 10
        while status != 503 and time.monotonic() < deadline:  # until the server has seen both
            status, headers, _ = served.post("/v1/traces", GOOD_SPANS)
        for connection in idle:
            connection.close()
        assert (status, headers["retry-after"]) == (503, "1")
        deadline = time.monotonic() + 10
        while served.post("/v1/traces", GOOD_SPANS)[0] != 200:
            assert time.monotonic() < deadline


def test_our_own_output_is_not_taken_in_again(served: Served) -> None:
    assert served.post("/v1/logs", logs(log("anomaly"), scope="spanchain"))[0] == 200
    assert served.payloads == []
    assert served.counters.get("records_rejected_total", signal="logs", reason="own") == 1


def test_the_foreign_exporter_of_the_sdk_is_served(served: Served) -> None:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = OTLPSpanExporter(f"http://localhost:{served.http_port}/v1/traces", compression=Compression.Gzip)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("shop").start_as_current_span("POST /order"):
        pass
    provider.shutdown()
    request: Any = ExportTraceServiceRequest.FromString(served.payloads[0].data)
    assert "POST /order" in str(request)
    assert served.counters.get("requests_total", signal="traces", transport="http", code="ok") == 1


@pytest.mark.parametrize("signal", list(Signal))
def test_both_transports_give_the_same_payload(served: Served, signal: Signal) -> None:
    data = GOOD_LOGS if signal == Signal.LOGS else GOOD_SPANS
    served.export(signal, data)
    served.post(PATHS[signal], data)
    assert len({(payload.signal, payload.tenant, payload.data) for payload in served.payloads}) <= 1
    assert len(served.payloads) == (0 if signal == Signal.METRICS else 2)
