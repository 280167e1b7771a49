"""OTLP over HTTP: POST /v1/traces, /v1/logs, /v1/metrics, protobuf or JSON, compressed or not.

How it works. uvicorn runs in a thread of its own with one event loop, which only reads and writes; a request that has
arrived is handled in a pool of threads, since it waits for the disk. Everything that is known from the head is checked
before the body is read: method, path, sender, content type, encoding, length. Every answer carries a body in the
request's own content type, exactly as OTLP asks: the Export response, or google.rpc.Status.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import uvicorn
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from collector_processor.config import ReceiversConfig
from collector_processor.ingest.answers import Answer, Code, RefusedError, RetryLaterError
from collector_processor.ingest.auth import Authenticator, host_and_port
from collector_processor.ingest.handler import Handler
from collector_processor.ingest.inflate import PIECES, TooLargeError
from collector_processor.ingest.status import response_bytes, response_json, status_bytes, status_json
from collector_processor.ingest.tls import Certificate, names_in
from collector_processor.model import Signal

TRANSPORT = "http"
PATHS = {"/v1/traces": Signal.TRACES, "/v1/logs": Signal.LOGS, "/v1/metrics": Signal.METRICS}
PROTOBUF, JSON = "application/x-protobuf", "application/json"
UNIMPLEMENTED, NOT_FOUND, DEADLINE_EXCEEDED = 12, 5, 4  # of google.rpc.Code
BACKLOG = 2048


class HttpServer:
    """Serves `handler` from `start` until `stop`."""

    def __init__(
        self, config: ReceiversConfig, handler: Handler, authenticator: Authenticator, certificate: Certificate | None
    ) -> None:
        self._config = config
        self._certificate = certificate
        self._handler = handler
        self._pool = ThreadPoolExecutor(config.http.workers, thread_name_prefix="otlp-http")
        self._app = _Application(config, handler, authenticator, self._pool)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        """Binds and serves; `port` is the port then. Errors: OSError when the address cannot be had."""
        host, port = host_and_port(self._config.http.endpoint)
        listener = _listener(host, port)
        self.port = listener.getsockname()[1]
        certificate = self._certificate
        self._server = _Server(
            uvicorn.Config(
                self._app,
                http=_protocol(self._config, self._handler),
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="critical",  # bad requests are counted; a line for each would fill the disk
                access_log=False,
                server_header=False,
                ssl_context_factory=None if certificate is None else lambda *_: certificate.http_context(),
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="otlp-http", daemon=True)
        self._thread.start()
        self._server.ready.wait()

    def stop(self, grace_s: float) -> None:
        """Refuses new connections at once; returns when open requests are answered, after `grace_s` at most."""
        if self._server is None or self._thread is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, int(grace_s))
        self._server.should_exit = True
        self._thread.join(grace_s + 2)
        self._pool.shutdown(wait=False)
        self._server = None


class _Server(uvicorn.Server):
    """uvicorn that tells when it has begun to listen."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()


def _listener(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"receivers.http.endpoint: cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _protocol(config: ReceiversConfig, handler: Handler) -> type[asyncio.Protocol]:
    """The protocol class of uvicorn with the client's certificate, a limit on connections, and an end to idling."""
    head_timeout_s = config.http.request_timeout_s
    connections_max = config.http.connections_max

    class Protocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            tls = transport.get_extra_info("ssl_object")
            names = names_in(tls.getpeercert()) if tls is not None else ()
            is_full = len(self.connections) > connections_max
            self.app_state = {**self.app_state, "client_names": names, "is_full": is_full}
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            cycle: RequestResponseCycle | None = self.cycle  # None before the first request
            if self._head_timer is not None and cycle is not None and not cycle.response_complete:
                self._head_timer.cancel()
                self._head_timer = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_head()

        def send_400_response(self, msg: str) -> None:
            handler.refused(TRANSPORT, RefusedError(Code.INVALID, "bad_http", msg))
            super().send_400_response(msg)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._head_timer is not None:
                self._head_timer.cancel()

        def _await_head(self) -> None:
            """A sender that never finishes the head of a request does not keep its connection."""
            if self._head_timer is not None:
                self._head_timer.cancel()
            self._head_timer = self.loop.call_later(head_timeout_s, self.transport.abort)

    return Protocol


class _HttpError(Exception):
    """An answer that only HTTP has."""

    def __init__(self, http: int, code: int, message: str) -> None:
        super().__init__(message)
        self.http = http
        self.code = code


class _Application:
    """The ASGI application."""

    def __init__(
        self, config: ReceiversConfig, handler: Handler, authenticator: Authenticator, pool: ThreadPoolExecutor
    ) -> None:
        self._config = config
        self._handler = handler
        self._authenticator = authenticator
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        is_json = _media_type(request.headers) == JSON
        try:
            response = await self._response(request, is_json)
        except _HttpError as error:
            response = _error(error.http, error.code, str(error), is_json=is_json)
        except RefusedError as refused:
            response = _refusal(self._handler.refused(TRANSPORT, refused), is_json=is_json)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _response(self, request: Request, is_json: bool) -> Response:
        signal, encoding = self._checked_head(request)
        with ExitStack() as held:
            body = await self._body(request, held)
            held.close()  # `handle` accounts for the whole body from here on
        answer = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._handled, signal, request.state.tenant, body, encoding, is_json
        )
        if answer.code is not Code.OK:
            return _refusal(answer, is_json=is_json)
        content = response_json(signal, answer) if is_json else response_bytes(signal, answer)
        return _Plain(200, content, is_json=is_json)

    def _handled(self, signal: Signal, tenant: str, body: bytes, encoding: str, is_json: bool) -> Answer:
        return self._handler.handle(signal, tenant, TRANSPORT, body, encoding=encoding, is_json=is_json)

    def _checked_head(self, request: Request) -> tuple[Signal, str]:
        """(signal, content encoding) of a request whose head is in order; notes the tenant in its state."""
        signal = PATHS.get(request.scope["path"])
        headers = request.headers
        if signal is None:
            raise _HttpError(404, NOT_FOUND, "there are /v1/traces, /v1/logs and /v1/metrics")
        if request.method != "POST":
            raise _HttpError(405, UNIMPLEMENTED, "only POST")
        if request.state.is_full:
            raise RetryLaterError("connections", "too many connections")
        peer = request.client.host if request.client else ""
        asked = headers.get(self._authenticator.header)
        names = request.state.client_names
        request.state.tenant = self._authenticator.tenant(headers.get("authorization"), asked, names, peer)
        if _media_type(headers) not in {PROTOBUF, JSON}:
            raise _HttpError(415, Code.INVALID.grpc, f"content type is not {PROTOBUF} or {JSON}")
        encoding = headers.get("content-encoding", "identity").strip().lower() or "identity"
        if encoding != "identity" and encoding not in PIECES:
            raise _HttpError(415, Code.INVALID.grpc, "content encoding is not " + ", ".join(PIECES))
        if int(headers.get("content-length", "0")) > self._config.limits.request_bytes_max:
            raise TooLargeError(self._config.limits.request_bytes_max)
        return signal, encoding

    async def _body(self, request: Request, held: ExitStack) -> bytes:
        """The whole body as sent. Errors: TooLargeError, RetryLaterError, _HttpError when it takes too long."""
        limit = self._config.limits.request_bytes_max
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.http.request_timeout_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise TooLargeError(limit)
                    if chunk:
                        held.enter_context(self._handler.holding(len(chunk)))
                        chunks.append(chunk)
        except TimeoutError:
            raise _HttpError(408, DEADLINE_EXCEEDED, "the request took too long to arrive") from None
        return b"".join(chunks)


class _Plain(Response):
    """A body with exactly one of the two content types: no charset, which OTLP clients would not expect."""

    def __init__(self, status: int, content: bytes, *, is_json: bool, headers: dict[str, str] | None = None) -> None:
        super().__init__(content, status, {"content-type": JSON if is_json else PROTOBUF, **(headers or {})})


def _refusal(answer: Answer, *, is_json: bool) -> Response:
    return _error(answer.code.http, answer.code.grpc, answer.message, answer.retry_after_s, is_json=is_json)


def _error(http: int, code: int, message: str, retry_after_s: int = 0, *, is_json: bool) -> Response:
    content = (status_json if is_json else status_bytes)(code, message, retry_after_s)
    headers = {"allow": "POST"} if http == 405 else {"www-authenticate": "Bearer"} if http == 401 else {}
    if retry_after_s:
        headers["retry-after"] = str(retry_after_s)
    return _Plain(http, content, is_json=is_json, headers=headers)


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
