"""A real Collector sends in every way it can, is told to come back, and loses nothing that is not bad itself."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.ingest.answers import RetryLaterError
from collector_processor.model import Signal
from tests.collector_processor.ingest.serving import METHODS, serving
from tests.e2e.processes import Process, Processes, free_ports, http_get
from tests.otlp import log, logs, span, traces

pytestmark = pytest.mark.e2e

HTTP_WAYS = [("proto", how) for how in ("none", "gzip", "zstd", "snappy", "x-snappy-framed", "zlib", "deflate")]
HTTP_WAYS += [("json", "none"), ("json", "zstd")]
GRPC_WAYS = ["none", "gzip"]


def started(
    collector: Path, processes: Processes, folder: Path, exporters: str, names: list[str]
) -> tuple[Process, int]:
    """A Collector that passes what it gets over gRPC on to all `exporters`; and its port."""
    port, health = free_ports(2)
    pipeline = f"{{receivers: [otlp], exporters: [{', '.join(names)}]}}"
    (folder / "collector.yaml").write_text(
        f"receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n"
        f"exporters:\n{exporters}"
        f"extensions: {{health_check: {{endpoint: '127.0.0.1:{health}'}}}}\n"
        f"service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}}}\n"
        f"  pipelines: {{traces: {pipeline}, logs: {pipeline}, metrics: {pipeline}}}\n"
    )
    running = processes.start("collector", collector, f"--config={folder / 'collector.yaml'}")
    running.wait_for("health", lambda: http_get(f"http://127.0.0.1:{health}/") or True)
    return running, port


def sent(port: int, signal: Signal, data: bytes) -> None:
    """Sends to the Collector instead of to us."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary(METHODS[signal])(data, timeout=20)


def test_every_way_a_collector_sends_is_understood(collector: Path, processes: Processes, tmp_path: Path) -> None:
    with serving() as served:
        lines, names = [], []
        for how in GRPC_WAYS:
            names.append(f"otlp_grpc/{how}")
            lines.append(
                f"  {names[-1]}: {{endpoint: '127.0.0.1:{served.grpc_port}', tls: {{insecure: true}}, "
                f"compression: {how}, sending_queue: {{enabled: false}}}}\n"
            )
        for encoding, how in HTTP_WAYS:
            names.append(f"otlp_http/{encoding}-{how}")
            lines.append(
                f"  {names[-1]}: {{endpoint: 'http://127.0.0.1:{served.http_port}', encoding: {encoding}, "
                f"compression: {how}, sending_queue: {{enabled: false}}}}\n"
            )
        running, port = started(collector, processes, tmp_path, "".join(lines), names)
        sent(port, Signal.TRACES, traces(*[span(1, n + 1, attributes={"payment.id": "x"}) for n in range(50)]))
        sent(port, Signal.LOGS, logs(*[log(f"line {n}", 1, 2) for n in range(50)]))
        running.wait_for("all", lambda: len(served.payloads) >= 2 * len(names) or None)
        received = {payload.data for payload in served.payloads if payload.signal == Signal.TRACES}
        contents = {ExportTraceServiceRequest.FromString(data).SerializeToString() for data in received}
        assert len(contents) == 1
        for signal in ("traces", "logs"):
            for transport, count in (("grpc", len(GRPC_WAYS)), ("http", len(HTTP_WAYS))):
                total = served.counters.get("records_received_total", signal=signal, transport=transport)
                assert total == 50 * count
        assert "error" not in running.output().lower()


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_a_collector_that_is_told_to_come_back_comes_back(
    collector: Path, processes: Processes, tmp_path: Path, transport: str
) -> None:
    with serving() as served:
        served.trouble.append(RetryLaterError("disk_full", "the disk is full"))
        if transport == "grpc":
            name, where = "otlp_grpc", f"endpoint: '127.0.0.1:{served.grpc_port}', tls: {{insecure: true}}"
        else:
            name, where = "otlp_http", f"endpoint: 'http://127.0.0.1:{served.http_port}'"
        running, port = started(collector, processes, tmp_path, f"  {name}: {{{where}}}\n", [name])
        for number in range(5):
            sent(port, Signal.TRACES, traces(span(number + 1, 1)))

        def refused() -> bool:
            return served.counters.get("requests_refused_total", transport=transport, reason="disk_full") >= 5

        running.wait_for("refusals", lambda: refused() or None)
        assert served.payloads == []
        served.trouble.clear()
        running.wait_for("what was refused", lambda: len(served.payloads) >= 5 or None)
        found = {
            one.trace_id
            for payload in served.payloads
            for group in ExportTraceServiceRequest.FromString(payload.data).resource_spans
            for one in group.scope_spans[0].spans
        }
        assert len(found) == 5
        assert "Dropping data" not in running.output()


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_a_collector_drops_nothing_beside_a_bad_record(
    collector: Path, processes: Processes, tmp_path: Path, transport: str
) -> None:
    """The Collector itself looks neither at UTF-8 nor at depth, so such records do reach us."""
    data = logs(log("bad MARK"), *[log("fine") for _ in range(99)]).replace(b"MARK", b"\xff\xfe\xfd\xfc")
    with serving() as served:
        if transport == "grpc":
            name, where = "otlp_grpc", f"endpoint: '127.0.0.1:{served.grpc_port}', tls: {{insecure: true}}"
        else:
            name, where = "otlp_http", f"endpoint: 'http://127.0.0.1:{served.http_port}'"
        running, port = started(collector, processes, tmp_path, f"  {name}: {{{where}}}\n", [name])
        sent(port, Signal.LOGS, data)
        running.wait_for("it", lambda: len(served.payloads) >= 1 or None)
        assert served.counters.get("records_received_total", signal="logs", transport=transport) == 100
        assert served.counters.get("records_rejected_total", signal="logs", reason="invalid_utf8") == 1
        running.wait_for("the Collector's word", lambda: "invalid_utf8: 1" in running.output() or None)
