"""A labelled case of any data set -> the OTLP requests that a service would have sent for it.

How it works. A data set knows cases: a trace of spans with logs, or a plain sequence of events, which becomes one span
with its events as logs or as child spans. Cases are written as OTLP and go through decoder and joiner, so that what is
measured is what runs, templates and canonical order included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from collector_processor.config import Config
from collector_processor.decode.decoder import Decoder
from collector_processor.join.joiner import DEFAULT_TENANT, Joiner
from collector_processor.model import ChainBatch, Payload, Signal, Symbols

NS = 1_000_000_000
STEP_NS = 10_000_000  # between the events of a sequence that has no times
INTERNAL, SERVER, CLIENT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Span:
    """One operation. `parent` is the position of another span of the case, None for the root."""

    service: str
    name: str
    start_ns: int
    duration_ns: int
    parent: int | None = None
    kind: int = SERVER
    status: int = 0
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """One log line inside the span at position `span`."""

    span: int
    body: str
    time_ns: int
    severity: int = 9


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled transaction; the first span is the root. `type` is the kind of anomaly, where it is known."""

    case_id: str
    anomalous: bool
    spans: tuple[Span, ...]
    logs: tuple[Log, ...] = ()
    type: str | None = None

    @property
    def end_ns(self) -> int:
        return max(span.start_ns + span.duration_ns for span in self.spans)

    @property
    def trace_id(self) -> bytes:
        """16 bytes from the case's id: itself when it is a trace id already."""
        if len(self.case_id) == 32:
            try:
                return bytes.fromhex(self.case_id)
            except ValueError:
                pass
        return hashlib.blake2b(self.case_id.encode(), digest_size=16).digest()


def of_logs(case_id: str, anomalous: bool, events: Sequence[str], service: str, start_ns: int) -> Case:
    """A case that is nothing but log lines in order, inside one span."""
    root = Span(service, "session", start_ns, STEP_NS * (len(events) + 1))
    lines = tuple(Log(0, event, start_ns + STEP_NS * (i + 1)) for i, event in enumerate(events))
    return Case(case_id, anomalous, (root,), lines)


def build(cases: Iterable[Case], config: Config, symbols: Symbols) -> list[ChainBatch]:
    """`cases` through decoder and joiner: one request a case, when it ends. In closing order."""
    decoder = Decoder(config.decode, config.join, symbols, 0)
    joiner = Joiner(config.join, symbols, decoder.attributes)
    batches: list[ChainBatch] = []
    for case in sorted(cases, key=lambda case: (case.end_ns, case.case_id)):
        now = case.end_ns
        batches += joiner.close(now)
        for signal, message in ((Signal.TRACES, _traces(case)), (Signal.LOGS, _logs(case))):
            payload = Payload(signal, DEFAULT_TENANT, message.SerializeToString(), now)
            batches += joiner.append(decoder.decode(payload), now)
    deadline = joiner.next_deadline()
    while deadline is not None:
        batches += joiner.close(deadline)
        deadline = joiner.next_deadline()
    return batches


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _resource(service: str, instance: str) -> Resource:
    attributes = [_text("service.name", service)]
    if instance:
        attributes.append(_text("service.instance.id", instance))
    return Resource(attributes=attributes)


def _span_id(case: Case, position: int) -> bytes:
    return hashlib.blake2b(case.trace_id + position.to_bytes(4, "big"), digest_size=8).digest()


def _traces(case: Case) -> Message:
    request = ExportTraceServiceRequest()
    by_resource: dict[tuple[str, str], Any] = {}
    for position, span in enumerate(case.spans):
        resource = span.service, span.instance
        if resource not in by_resource:
            by_resource[resource] = request.resource_spans.add(resource=_resource(*resource)).scope_spans.add()
        added = by_resource[resource].spans.add(
            trace_id=case.trace_id,
            span_id=_span_id(case, position),
            parent_span_id=b"" if span.parent is None else _span_id(case, span.parent),
            name=span.name,
            kind=span.kind,
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.start_ns + span.duration_ns,
        )
        if span.status:
            added.status.code = span.status
    return request


def _logs(case: Case) -> Message:
    request = ExportLogsServiceRequest()
    by_resource: dict[tuple[str, str], Any] = {}
    for log in case.logs:
        resource = case.spans[log.span].service, case.spans[log.span].instance
        if resource not in by_resource:
            by_resource[resource] = request.resource_logs.add(resource=_resource(*resource)).scope_logs.add()
        by_resource[resource].log_records.add(
            trace_id=case.trace_id,
            span_id=_span_id(case, log.span),
            time_unix_nano=log.time_ns,
            severity_number=log.severity,
            body=AnyValue(string_value=log.body),
        )
    return request
