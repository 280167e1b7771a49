"""Export requests to an OTLP receiver, over gRPC or HTTP, with the receiver's answer in the words of the queue.

How it works. Requests are bytes already: two requests written one behind the other are one request with the contents of
both (repeated fields of protobuf), so a batch is a concatenation, and what waited on disk is sent as it is. What may be
tried again is what the OTLP specification lists: RESOURCE_EXHAUSTED only when the receiver says when.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol
from urllib.parse import urlsplit

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from collector_processor.config import OtlpExportConfig
from exporters.http import Poster, tls_context
from exporters.queue import Refused, RetryLater

Signal = Literal["spans", "logs"]

METHODS = {
    "spans": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
PATHS = {"spans": "/v1/traces", "logs": "/v1/logs"}
RETRYABLE = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

log = structlog.get_logger(__name__)


class Transport(Protocol):
    """A way to a receiver."""

    def send(self, signal: Signal, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> int:
        """Sends one export request, with `headers` besides those of the config; how many of its records were rejected.
        Raises `RetryLater` or `Refused`."""
        ...

    def close(self) -> None: ...


def connect(config: OtlpExportConfig) -> Transport:
    """The transport that the config asks for. Raises `OSError` when a certificate cannot be read."""
    return GrpcTransport(config) if config.protocol == "grpc" else HttpTransport(config)


class GrpcTransport:
    """OTLP/gRPC."""

    def __init__(self, config: OtlpExportConfig) -> None:
        address = urlsplit(config.endpoint)
        compression = grpc.Compression.Gzip if config.compression == "gzip" else grpc.Compression.NoCompression
        target = f"{address.hostname}:{address.port or (443 if address.scheme == 'https' else 4317)}"
        if address.scheme == "https":
            credentials = grpc.ssl_channel_credentials(
                _read(config.ca_file), _read(config.key_file), _read(config.cert_file)
            )
            self._channel = grpc.secure_channel(target, credentials, compression=compression)
        else:
            self._channel = grpc.insecure_channel(target, compression=compression)
        self._calls = {signal: self._channel.unary_unary(method) for signal, method in METHODS.items()}
        self._metadata = [(name.lower(), value.get_secret_value()) for name, value in config.headers.items()]
        self._timeout_s = config.timeout_s

    def send(self, signal: Signal, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> int:
        metadata = [*self._metadata, *((name.lower(), value) for name, value in headers.items())]
        try:
            answer = self._calls[signal](body, timeout=self._timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _verdict_on(error, signal) from error
        except ValueError as error:  # the channel was closed by shutdown
            raise RetryLater("closed") from error
        return rejected_in(signal, answer)

    def close(self) -> None:
        self._channel.close()


def _verdict_on(error: grpc.RpcError, signal: Signal) -> RetryLater | Refused:
    code = error.code()
    wait_s = _retry_info_s(error)
    if code in RETRYABLE or (code == grpc.StatusCode.RESOURCE_EXHAUSTED and wait_s is not None):
        return RetryLater(code.name.lower(), wait_s or 0.0)
    log.warning("a sink refuses what it is sent", signal=signal, status=code.name, detail=str(error.details())[:200])
    return Refused()


def _retry_info_s(error: grpc.RpcError) -> float | None:
    """The delay in the RetryInfo that came with `error`, in seconds; None when there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToMilliseconds()) / 1000
    return None


class HttpTransport:
    """OTLP/HTTP with protobuf."""

    def __init__(self, config: OtlpExportConfig) -> None:
        context = None
        if config.endpoint.startswith("https:"):
            context = tls_context(config.ca_file, config.cert_file, config.key_file)
        headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._poster = Poster(config.endpoint, headers, config.timeout_s, context)
        self._gzip = config.compression == "gzip"

    def send(self, signal: Signal, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> int:
        packed = gzip.compress(body, 1) if self._gzip else body
        more = {**headers, "Content-Encoding": "gzip"} if self._gzip else headers
        return rejected_in(signal, self._poster.post(PATHS[signal], packed, "application/x-protobuf", more))

    def close(self) -> None:
        """Every request has its own connection."""


def rejected_in(signal: Signal, answer: bytes) -> int:
    """How many records the receiver says it rejected; 0 when its answer cannot be read."""
    try:
        if signal == "spans":
            return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
        return int(ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records)
    except DecodeError:
        return 0


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
