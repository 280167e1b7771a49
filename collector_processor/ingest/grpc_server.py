"""OTLP over gRPC: the three Export methods, raw bytes in, the answers a Collector understands out.

How it works. A unary call is served as a stream of one message: so the sender is authenticated before its message is
read, and a stranger's bytes never reach memory. gRPC is told not to decompress, since it would inflate up to the limit
before refusing; `inflate` does it within bounds. Messages are never parsed by gRPC, so a bad byte cannot make it answer
INTERNAL.

What cannot be helped here: a message compressed with zstd or snappy is refused by gRPC's core with INTERNAL before any
of our code runs, and the Collector drops it. Clients must use gzip or nothing.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import grpc

from collector_processor.config import ReceiversConfig
from collector_processor.ingest.answers import Answer, Code, RefusedError
from collector_processor.ingest.auth import Authenticator, host_and_port
from collector_processor.ingest.handler import Handler
from collector_processor.ingest.inflate import encoding_of_grpc
from collector_processor.ingest.status import response_bytes, status_bytes
from collector_processor.ingest.tls import Certificate
from collector_processor.model import Signal

TRANSPORT = "grpc"
METHODS = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": Signal.TRACES,
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": Signal.LOGS,
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": Signal.METRICS,
}
CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Deadlines:
    """Ends calls whose message does not come, since each holds a worker while it is waited for."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._due: dict[int, tuple[float, Any]] = {}  # in the order of their deadlines
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="otlp-grpc-deadlines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def waiting(self, context: Any) -> Iterator[None]:
        """Cancels the call `context` when the block takes longer than the timeout."""
        with self._lock:
            number = next(self._numbers)
            self._due[number] = (time.monotonic() + self._timeout_s, context)
        try:
            yield
        finally:
            with self._lock:
                self._due.pop(number, None)

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._timeout_s)):
            now = time.monotonic()
            with self._lock:
                late = [(number, context) for number, (due, context) in self._due.items() if due < now]
                for number, _ in late:
                    del self._due[number]
            for _, context in late:
                context.cancel()


class GrpcServer:
    """Serves `handler` from `start` until `stop`."""

    def __init__(
        self, config: ReceiversConfig, handler: Handler, authenticator: Authenticator, certificate: Certificate | None
    ) -> None:
        self._config = config
        self._handler = handler
        self._authenticator = authenticator
        self._certificate = certificate
        self._deadlines = _Deadlines(config.grpc.request_timeout_s)
        self._server: Any = None
        self.port = 0

    def start(self) -> None:
        """Binds and serves; `port` is the port then. Errors: OSError when the address cannot be had."""
        config = self._config
        pool = ThreadPoolExecutor(config.grpc.workers, thread_name_prefix="otlp-grpc")
        self._server = grpc.server(
            pool,
            handlers=[_Methods(self._export)],
            options=[
                ("grpc.max_receive_message_length", config.limits.request_bytes_max),
                ("grpc.per_message_decompression", 0),
                ("grpc.so_reuseport", 0),  # a second service on the port is an error, not a silent half of the traffic
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.max_concurrent_streams", 1000),
            ],
        )
        host, port = host_and_port(config.grpc.endpoint)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._certificate is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._certificate.grpc_credentials())
        except RuntimeError as error:
            raise OSError(f"receivers.grpc.endpoint: cannot listen on {address}; is the port taken?") from error
        self._server.start()
        self._deadlines.start()

    def stop(self, grace_s: float) -> None:
        """Refuses new requests at once and returns when those being handled are answered, after `grace_s` at most."""
        if self._server is not None:
            self._server.stop(grace_s).wait()
            self._server = None
            self._deadlines.stop()

    def _export(self, signal: Signal, messages: Iterator[bytes], context: Any) -> bytes:
        try:
            tenant = self._tenant(context)
        except RefusedError as refused:
            return _answered(signal, self._handler.refused(TRANSPORT, refused), context)
        with self._deadlines.waiting(context):
            body = next(messages, None)
        if body is None:
            return _answered(signal, Answer(Code.INVALID, "no message"), context)
        answer = self._handler.handle(signal, tenant, TRANSPORT, body, encoding=encoding_of_grpc(body))
        return _answered(signal, answer, context)

    def _tenant(self, context: Any) -> str:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        names: list[str] = []
        if self._certificate is not None:
            properties = context.auth_context()
            for key in ("x509_common_name", "x509_subject_alternative_name"):
                names.extend(value.decode("utf-8", "replace") for value in properties.get(key, ()))
        asked = metadata.get(self._authenticator.header)
        return self._authenticator.tenant(metadata.get("authorization"), asked, names, peer_address(context.peer()))


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the method; all others are UNIMPLEMENTED."""

    def __init__(self, export: Callable[[Signal, Iterator[bytes], Any], bytes]) -> None:
        def method(signal: Signal) -> Any:
            return grpc.stream_unary_rpc_method_handler(lambda messages, context: export(signal, messages, context))

        self._methods = {path: method(signal) for path, signal in METHODS.items()}

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


def _answered(signal: Signal, answer: Answer, context: Any) -> bytes:
    if answer.code is Code.OK:
        return response_bytes(signal, answer)
    details = status_bytes(answer.code.grpc, answer.message, answer.retry_after_s)
    context.set_trailing_metadata((("grpc-status-details-bin", details),))
    context.abort(CODES[answer.code.grpc], answer.message)
    raise AssertionError("abort raises")


def peer_address(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; empty for a local socket."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return ""
    return unquote(rest).rpartition(":")[0].removeprefix("[").removesuffix("]")
