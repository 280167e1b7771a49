"""What the benchmarks send: a payment mix made here, and the TrainTicket recording where it is to be had.

The payment mix: 8 spans and 10 logs a trace, 6 attributes a span, one of them a payment id, 202 bytes a record, 50
traces in a pair of requests unless said otherwise.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.decode.otlp_json import to_protobuf
from collector_processor.ingest.recording import open_recording
from collector_processor.model import Payload, Signal

T0 = 1_760_000_000_000_000_000
SERVICES = ("gateway", "order", "risk", "account", "clearing", "settlement", "ledger", "notification")
RECORDS_A_TRACE = 18
METHODS = {
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests in order of arrival, and what is in them."""

    name: str
    payloads: list[Payload]
    records: int


def payment_mix(traces: int, *, per_request: int = 50, every_ms: float = 2.0, seed: int = 1, t0: int = T0) -> Mix:
    """`traces` payments, one every `every_ms` milliseconds."""
    chance = random.Random(seed)
    payloads: list[Payload] = []
    step = int(every_ms * 1_000_000)
    for first in range(0, traces, per_request):
        count = min(per_request, traces - first)
        spans, logs = _payments(chance, t0 + first * step, count, step)
        arrival = t0 + (first + count) * step + 20_000_000
        payloads.append(Payload(Signal.TRACES, "default", spans, arrival))
        payloads.append(Payload(Signal.LOGS, "default", logs, arrival))
    return Mix("payment mix", payloads, traces * RECORDS_A_TRACE)


def _payments(chance: random.Random, start: int, count: int, step: int) -> tuple[bytes, bytes]:
    traces, logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    span_scopes, log_scopes = [], []
    for service in SERVICES:
        resource_spans = traces.resource_spans.add()
        for key, value in (("service.name", service), ("service.instance.id", f"{service}-0")):
            resource_spans.resource.attributes.add(key=key).value.string_value = value
        span_scopes.append(resource_spans.scope_spans.add())
        span_scopes[-1].scope.name = "app"
        resource_logs = logs.resource_logs.add()
        resource_logs.resource.attributes.add(key="service.name").value.string_value = service
        log_scopes.append(resource_logs.scope_logs.add())
    for number in range(count):
        trace, parent, at = chance.randbytes(16), b"", start + number * step
        payment = f"PAY{chance.randrange(10**10):010}"
        for depth, service in enumerate(SERVICES):
            span = span_scopes[depth].spans.add(
                trace_id=trace,
                span_id=chance.randbytes(8),
                parent_span_id=parent,
                name=f"POST /{service}/v1",
                kind=2,
                start_time_unix_nano=at + depth * 1_000_000,
                end_time_unix_nano=at + depth * 1_000_000 + chance.randrange(1_000_000, 20_000_000),
            )
            parent = span.span_id
            texts = {"http.request.method": "POST", "http.route": f"/{service}/v1", "server.address": service}
            for key, value in (texts | {"payment.id": payment}).items():
                span.attributes.add(key=key).value.string_value = value
            span.attributes.add(key="http.response.status_code").value.int_value = 200
            span.attributes.add(key="payment.amount").value.double_value = chance.random() * 1000
        for line in range(10):
            record = log_scopes[line % 8].log_records.add(
                time_unix_nano=at + line * 900_000,
                trace_id=trace,
                span_id=parent,
                severity_number=9,
                severity_text="INFO",
            )
            record.body.string_value = (
                f"{SERVICES[line % 8]} processed payment {payment} amount={chance.random() * 1000:.2f} in "
                f"{chance.randrange(100)} ms from 10.0.{chance.randrange(256)}.{chance.randrange(256)}"
            )
            record.attributes.add(key="thread").value.string_value = f"worker-{chance.randrange(8)}"
    return traces.SerializeToString(), logs.SerializeToString()


def train_ticket() -> Mix | None:
    """The recorded day of TrainTicket as protobuf requests; None where the recordings are not to be had."""
    folder = Path(os.environ.get("SPANCHAIN_DATA") or ROOT.parent / "shared" / "data") / "recordings" / "nezha_tt_0130"
    if not folder.is_dir():
        return None
    files = [folder / "traces.jsonl.zst", folder / "logs.jsonl.zst"]
    payloads = [payload for payload, _ in open_recording(files, to_protobuf, tenant="default", bytes_max=1 << 26)]
    records = 0
    for payload in payloads:
        if payload.signal == Signal.TRACES:
            request = ExportTraceServiceRequest.FromString(payload.data)
            records += sum(len(scope.spans) for group in request.resource_spans for scope in group.scope_spans)
        else:
            lines = ExportLogsServiceRequest.FromString(payload.data)
            records += sum(len(scope.log_records) for group in lines.resource_logs for scope in group.scope_logs)
    return Mix("TrainTicket recording", payloads, records)
