"""Running receivers on loopback, clients for them, and certificates: what the tests of ingest share."""

from __future__ import annotations

import http.client
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from collector_processor.config import ReceiversConfig
from collector_processor.decode.otlp_json import to_protobuf
from collector_processor.decode.repair import clean
from collector_processor.ingest.answers import Counters
from collector_processor.ingest.receivers import Receivers
from collector_processor.model import Payload, Signal

PROTOBUF, JSON = "application/x-protobuf", "application/json"
METHODS = {
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
PATHS = {Signal.TRACES: "/v1/traces", Signal.LOGS: "/v1/logs", Signal.METRICS: "/v1/metrics"}
OPTIONS = [("grpc.max_send_message_length", 1 << 30), ("grpc.max_receive_message_length", 1 << 20)]


@dataclass
class Served:
    """Running receivers: what they passed on, what they counted, and clients."""

    receivers: Receivers
    counters: Counters
    payloads: list[Payload]
    trouble: list[Exception] = field(default_factory=list)
    """When not empty, the sink raises the first of these instead of taking the payload."""
    gate: threading.Event = field(default_factory=threading.Event)
    """The sink waits for it; set from the beginning."""
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released whenever the sink is called."""

    @property
    def grpc_port(self) -> int:
        assert self.receivers.grpc is not None
        return self.receivers.grpc.port

    @property
    def http_port(self) -> int:
        assert self.receivers.http is not None
        return self.receivers.http.port

    def forget(self) -> None:
        """As if nothing had come yet. A request is counted before it is answered, so none comes in afterwards."""
        self.payloads.clear()
        self.trouble.clear()
        self.gate.set()
        self.counters._counts.clear()
        while self.entered.acquire(blocking=False):
            pass

    def export(
        self,
        signal: Signal,
        data: bytes,
        metadata: tuple[tuple[str, str], ...] = (),
        credentials: Any = None,
        compression: Any = grpc.Compression.NoCompression,
    ) -> bytes:
        """The bytes that a gRPC Export answers. Errors: grpc.RpcError."""
        address = f"localhost:{self.grpc_port}"
        if credentials is None:
            channel = grpc.insecure_channel(address, OPTIONS)
        else:
            channel = grpc.secure_channel(address, credentials, OPTIONS)
        with channel:
            call = channel.unary_unary(METHODS[signal])
            return bytes(call(data, timeout=20, metadata=metadata, compression=compression))

    def refusal(self, signal: Signal, data: bytes, **kwargs: Any) -> Any:
        """The error that a gRPC Export answers; it has `code()`, `details()` and `trailing_metadata()`."""
        try:
            self.export(signal, data, **kwargs)
        except grpc.RpcError as error:
            return error
        raise AssertionError("it was not refused")

    def post(
        self,
        path: str,
        data: bytes,
        headers: dict[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        method: str = "POST",
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body)."""
        if context is None:
            connection = http.client.HTTPConnection("localhost", self.http_port, timeout=20)
        else:
            connection = http.client.HTTPSConnection("localhost", self.http_port, timeout=20, context=context)
        try:
            connection.request(method, path, data, {"content-type": PROTOBUF, **(headers or {})})
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()


@contextmanager
def serving(**config: Any) -> Iterator[Served]:
    """Receivers on free ports with the settings `config` of `receivers`."""
    config["grpc"] = {"endpoint": "127.0.0.1:0", "workers": 4, **config.get("grpc", {})}
    config["http"] = {"endpoint": "127.0.0.1:0", "workers": 4, **config.get("http", {})}
    counters = Counters()
    payloads: list[Payload] = []

    def sink(payload: Payload) -> None:
        served.entered.release()
        served.gate.wait()
        if served.trouble:
            raise served.trouble[0]
        payloads.append(payload)

    def from_json(data: bytes, signal: Signal) -> bytes:
        return to_protobuf(data, signal)[1]

    receivers = Receivers(ReceiversConfig.model_validate(config), sink, clean, from_json, time.time_ns, counters)
    served = Served(receivers, counters, payloads)
    served.gate.set()
    receivers.start()
    try:
        yield served
    finally:
        served.gate.set()
        receivers.stop(5)


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """A certificate authority of the tests' own; makes certificates for localhost and for clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        subject = ["-subj", "/CN=spanchain tests", "-days", "2", "-nodes"]
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        openssl("req", "-x509", *new, *subject, "-keyout", str(self._key), "-out", str(self.certificate))

    def issue(self, name: str, alternative: str = "DNS:localhost") -> tuple[Path, Path]:
        """(certificate, key) files for the common name `name`."""
        key, request, certificate = (self.folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        extension = self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={alternative}\n")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"]
        openssl("req", "-new", *new, "-keyout", str(key), "-out", str(request))
        signer = ["-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial", "-days", "2"]
        openssl("x509", "-req", "-in", str(request), *signer, "-extfile", str(extension), "-out", str(certificate))
        return certificate, key

    def grpc_credentials(self, client: tuple[Path, Path] | None = None) -> Any:
        pair = (None, None) if client is None else (client[1].read_bytes(), client[0].read_bytes())
        return grpc.ssl_channel_credentials(self.certificate.read_bytes(), *pair)

    def context(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.certificate))
        if client is not None:
            context.load_cert_chain(*map(str, client))
        return context


def in_subprocess(code: str) -> str:
    """What `code` prints in a process of its own, so that its memory is its own."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
