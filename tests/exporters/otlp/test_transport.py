"""What a receiver answers, in the words of the queue, over both transports, plain and encrypted."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from sinks import Behaviour, GrpcSink, HttpSink, Sink, eventually, partial_success

from collector_processor.config import OtlpExportConfig
from exporters.http import Poster, retry_after_s, tls_context
from exporters.otlp.transport import Signal, Transport, connect
from exporters.queue import Refused, RetryLater


@pytest.fixture(params=["grpc", "http"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    with GrpcSink() if request.param == "grpc" else HttpSink() as made:
        yield made


@pytest.fixture
def transport(sink: Sink) -> Iterator[Transport]:
    protocol = "grpc" if isinstance(sink, GrpcSink) else "http"
    headers = {"Authorization": "Bearer secret"}
    made = connect(OtlpExportConfig(endpoint=sink.address, protocol=protocol, headers=headers, timeout_s=1))
    yield made
    made.close()


def retry_info(seconds: float) -> tuple[tuple[str, bytes], ...]:
    detail = Any()
    detail.Pack(RetryInfo(retry_delay=Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))))
    return (("grpc-status-details-bin", Status(code=8, details=[detail]).SerializeToString()),)


@pytest.mark.parametrize("signal", ["spans", "logs"])
def test_bytes_and_headers_arrive(sink: Sink, transport: Transport, signal: Signal) -> None:
    body = b"\x0a\x00" * 1000
    assert transport.send(signal, body) == 0
    [(place, taken)] = sink.taken
    assert place in {signal, {"spans": "/v1/traces", "logs": "/v1/logs"}[signal]}
    assert taken == body
    headers = {name.lower(): value for name, value in sink.headers[0].items()}
    assert headers["authorization"] == "Bearer secret"
    if isinstance(sink, HttpSink):
        assert headers["content-type"] == "application/x-protobuf"
        assert int(headers["content-length"]) < len(body), "compressed"


@pytest.mark.parametrize("signal", ["spans", "logs"])
def test_what_was_rejected_in_part_is_told(sink: Sink, transport: Transport, signal: Signal) -> None:
    sink.behave(Behaviour(body=partial_success(signal, 3)), then=Behaviour(body=b"\xff not protobuf"))
    assert transport.send(signal, b"") == 3
    assert transport.send(signal, b"") == 0


GRPC_RETRYABLE = {1, 4, 10, 11, 14, 15}


@pytest.mark.parametrize("code", [code.value[0] for code in grpc.StatusCode if code.value[0]])
def test_grpc_answers(code: int) -> None:
    with GrpcSink() as sink:
        transport = connect(OtlpExportConfig(endpoint=sink.address))
        sink.behave(then=Behaviour(status=code))
        with pytest.raises(RetryLater if code in GRPC_RETRYABLE else Refused):
            transport.send("logs", b"")
        sink.behave(then=Behaviour(status=code, trailers=retry_info(7.5)))
        if code in GRPC_RETRYABLE | {8}:
            with pytest.raises(RetryLater) as later:
                transport.send("logs", b"")
            assert later.value.after_s == 7.5
        transport.close()


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 413, 429, 500, 501, 502, 503, 504])
def test_http_answers(status: int) -> None:
    with HttpSink() as sink, HttpSink() as elsewhere:
        transport = connect(OtlpExportConfig(endpoint=sink.address, protocol="http"))
        sink.behave(then=Behaviour(status=status, headers={"Retry-After": "7", "Location": elsewhere.address}))
        if status in {429, 502, 503, 504}:
            with pytest.raises(RetryLater) as later:
                transport.send("spans", b"")
            assert (later.value.reason, later.value.after_s) == (f"http_{status}", 7)
        else:
            with pytest.raises(Refused):
                transport.send("spans", b"")
        assert elsewhere.tried == 0, "no redirect is followed"


@pytest.mark.slow
def test_a_receiver_that_hangs_or_is_gone_is_tried_again(sink: Sink, transport: Transport) -> None:
    sink.hang()
    with pytest.raises(RetryLater):
        transport.send("logs", b"")
    sink.stop()
    with pytest.raises(RetryLater):
        transport.send("logs", b"")
    sink.behave()
    sink.start()

    def is_taken() -> bool:
        try:
            return transport.send("logs", b"") == 0
        except RetryLater:
            return False

    assert eventually(is_taken)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (None, 0, 0),
        ("12", 12, 12),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
    ids=["absent", "seconds", "words", "negative", "date gone by"],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, least: float, most: float) -> None:
    assert least <= retry_after_s(header) <= most


def test_retry_after_is_a_date_to_come() -> None:
    assert 300 <= retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=500))) <= 500


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            key,
            "-out",
            cert,
            *subject,
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_https_is_verified(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with HttpSink() as sink:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        assert sink._server is not None
        sink._server.socket = context.wrap_socket(sink._server.socket, server_side=True)
        address = f"https://127.0.0.1:{sink.port}"
        assert Poster(address, {}, 5, tls_context(str(cert))).post("/x", b"hello", "text/plain") == b""
        with pytest.raises(RetryLater):
            Poster(address, {}, 5).post("/x", b"hello", "text/plain")
    assert [body for _, body in sink.taken] == [b"hello"]


def test_grpc_over_tls_is_verified(certificate: tuple[Path, Path]) -> None:
    with GrpcSink(certificate) as sink:
        address = f"https://127.0.0.1:{sink.port}"
        known = connect(OtlpExportConfig(endpoint=address, ca_file=str(certificate[0])))
        assert known.send("logs", b"") == 0
        known.close()
        unknown = connect(OtlpExportConfig(endpoint=address, timeout_s=2))
        with pytest.raises(RetryLater):
            unknown.send("logs", b"")
        unknown.close()


def test_a_certificate_that_is_missing_is_told_at_once() -> None:
    for protocol in ("grpc", "http"):
        config = OtlpExportConfig(endpoint="https://127.0.0.1:1", protocol=protocol, ca_file="/nowhere.pem")
        with pytest.raises(OSError, match="No such file"):
            connect(config)
