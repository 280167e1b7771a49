"""Receivers for the tests of exporters: healthy, slow, refusing, hanging or dead, as a test wishes, and what they took.

How it works. `Sink.behave` says how the next requests are answered. A dead sink has closed its port; one that comes
back listens on the same one. Bodies are kept as they came, unpacked.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from exporters.otlp.transport import METHODS


@dataclass
class Behaviour:
    """How a request is answered."""

    status: int = 200  # HTTP; for gRPC 0 or 200 is OK, else a grpc status code
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay_s: float = 0.0
    trailers: tuple[tuple[str, bytes], ...] = ()


class Sink:
    """What the kinds of sinks share. Use as a context; `address` is `http://127.0.0.1:port`."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []  # path or method, body
        self.headers: list[dict[str, str]] = []
        self.behaviour = Behaviour()
        self._scripted: list[Behaviour] = []
        self._released = threading.Event()
        self.port = 0
        self.tried = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def behave(self, *scripted: Behaviour, then: Behaviour | None = None) -> None:
        """The next answers, one each, and what comes after."""
        self._scripted = list(scripted)
        self.behaviour = then or Behaviour()

    def hang(self) -> None:
        """Answers nothing until the sink is stopped."""
        self.behave(then=Behaviour(delay_s=60))

    def answer(self, path: str, body: bytes, headers: dict[str, str]) -> Behaviour:
        self.tried += 1
        behaviour = self._scripted.pop(0) if self._scripted else self.behaviour
        if behaviour.delay_s:
            self._released.wait(behaviour.delay_s)
        if behaviour.status in {0, 200}:
            self.headers.append(headers)
            self.taken.append((path, body))
        return behaviour

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class HttpSink(Sink):
    """An HTTP server."""

    _server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        self._released.clear()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                behaviour = sink.answer(self.path, body, dict(self.headers))
                try:
                    self.send_response(behaviour.status)
                    for name, value in behaviour.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(behaviour.body)
                except OSError:
                    pass  # the client has given up

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class GrpcSink(Sink):
    """An OTLP/gRPC server for traces and logs; with `certificate` (PEM files: certificate, key) it speaks TLS only."""

    _server: grpc.Server | None = None

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__()
        self._certificate = certificate

    def start(self) -> None:
        self._released.clear()

        def handler(name: str) -> Callable[[bytes, Any], bytes]:
            def handle(body: bytes, context: Any) -> bytes:
                metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
                behaviour = self.answer(name, body, metadata)
                if behaviour.trailers:
                    context.set_trailing_metadata(behaviour.trailers)
                if behaviour.status not in {0, 200}:
                    code = next(code for code in grpc.StatusCode if code.value[0] == behaviour.status)
                    context.abort(code, "as told")
                return behaviour.body

            return handle

        handlers = [
            grpc.method_handlers_generic_handler(
                method.split("/")[1], {"Export": grpc.unary_unary_rpc_method_handler(handler(signal))}
            )
            for signal, method in METHODS.items()
        ]
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(handlers)
        address = f"127.0.0.1:{self.port}"
        if self._certificate is None:
            self.port = self._server.add_insecure_port(address)
        else:
            cert, key = self._certificate
            credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    def stop(self) -> None:
        self._released.set()
        if self._server is not None:
            self._server.stop(0).wait(5)
            self._server = None


def records(sink: Sink) -> Iterator[Any]:
    """Every span and log record that an OTLP sink took."""
    for name, body in sink.taken:
        if "log" in name:
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
                yield from (record for scope in resource.scope_logs for record in scope.log_records)
        else:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                yield from (span for scope in resource.scope_spans for span in scope.spans)


def attribute(record: Any, key: str) -> Any:
    """The text, number or list of texts in an attribute; None when it is absent."""
    for pair in record.attributes:
        if pair.key == key:
            kind = pair.value.WhichOneof("value")
            if kind == "array_value":
                return [each.string_value for each in pair.value.array_value.values]
            return getattr(pair.value, kind)
    return None


def alerts(sink: Sink) -> list[dict[str, Any]]:
    """Every alert that an Alertmanager sink took, in order."""
    return [alert for _, body in sink.taken for alert in json.loads(body)]


def partial_success(signal: str, rejected: int) -> bytes:
    """An answer that rejects some of the records."""
    if signal == "logs":
        answer = ExportLogsServiceResponse()
        answer.partial_success.rejected_log_records = rejected
        return answer.SerializeToString()
    traces = ExportTraceServiceResponse()
    traces.partial_success.rejected_spans = rejected
    return traces.SerializeToString()


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    """Whether `condition` comes true within `timeout_s`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
