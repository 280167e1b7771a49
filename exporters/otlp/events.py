"""Verdicts and incidents as OTLP: log and span events `spanchain.anomaly`, log events `spanchain.incident`.

How it works. Spans that ended elsewhere cannot be changed, and a second copy of one would be dropped by one backend and
shown twice by another. So the log event refers to the span by trace and span id and stands under the service that it is
about; and the span event hangs on a span of our own: internal, of zero length, a child of the span it is about, with a
link to it, under our own service name. Its id follows from the verdict's, so a repeat is the same span. The scope of
both is `spanchain`, by which our receivers know what came from here and do not take it in again. The SDK's types hold
the data and its encoders write it; its pipelines are not used: they make up ids and lose at a restart what waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from collector_processor.rows import sentences

ANOMALY = "spanchain.anomaly"
INCIDENT = "spanchain.incident"
SCOPE = "spanchain"  # what the receivers drop: see OWN_SCOPE in kernels/decode.py
TEXT_MAX = 4096  # characters of one attribute

Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What both events of one unusual chain say."""

    row: Mapping[str, Any]  # its line in verdicts.jsonl
    span_id: int  # of the span it is about; 0 when there is none
    ended_ns: int  # when that ended
    judged_ns: int
    attributes: Attributes
    span_kind: int = 0  # SpanKind of that span, as on the wire


class EventWriter:
    """Writes events of this program in `version`."""

    def __init__(self, version: str) -> None:
        self._scope = InstrumentationScope(SCOPE, version)
        self._resource = Resource.create({SERVICE_NAME: SCOPE, "service.version": version})

    def span_event(self, anomaly: Anomaly) -> bytes:
        """An `ExportTraceServiceRequest` with one span that carries the event."""
        about = _context(anomaly.row["trace_id"], anomaly.span_id)
        span = ReadableSpan(
            name=ANOMALY,
            context=_context(anomaly.row["trace_id"], own_span_id(anomaly.row["verdict_id"])),
            parent=about,
            resource=self._resource,
            attributes=anomaly.attributes,
            events=[Event(ANOMALY, anomaly.attributes, anomaly.ended_ns)],
            links=[Link(about)],
            kind=SpanKind.INTERNAL,
            instrumentation_scope=self._scope,
            start_time=anomaly.ended_ns,
            end_time=anomaly.ended_ns,
        )
        return bytes(encode_spans([span]).SerializeToString())

    def event(self, anomaly: Anomaly) -> tuple[bytes, bytes]:
        """(the event as a `Span.Event`, the request that `span_event` gives)."""
        request = self.span_event(anomaly)
        [event] = ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans[0].events
        return event.SerializeToString(), request

    def log_event(self, anomaly: Anomaly) -> bytes:
        """An `ExportLogsServiceRequest` with the event."""
        row = anomaly.row
        subject = row["findings"][0]["subject"] if row["findings"] else {}
        context = _context(row["trace_id"], anomaly.span_id)
        return self._log(ANOMALY, row, subject, anomaly.attributes, context, anomaly.ended_ns, anomaly.judged_ns)

    def incident_event(self, row: Mapping[str, Any], state: str) -> bytes:
        """An `ExportLogsServiceRequest` with one event about the incident `row`; it points at its first example."""
        example = row["example_trace_ids"][0] if row["example_trace_ids"] else "0" * 32
        time_ns = row["resolved_unix_nano"] or row["detected_unix_nano"]
        attributes = incident_attributes(row, state)
        return self._log(INCIDENT, row, row["subject"], attributes, _context(example, 0), time_ns, time_ns)

    def _log(
        self,
        name: str,
        row: Mapping[str, Any],
        subject: Mapping[str, Any],
        attributes: Attributes,
        context: SpanContext,
        time_ns: int,
        seen_ns: int,
    ) -> bytes:
        severity = SeverityNumber.ERROR if row["severity"] == "critical" else SeverityNumber.WARN
        record = LogRecord(
            timestamp=time_ns,
            observed_timestamp=seen_ns,
            context=set_span_in_context(NonRecordingSpan(context)),
            severity_number=severity,
            severity_text=severity.name,
            body=_text(row["explanation"]["trigger"]),
            attributes=attributes,
            event_name=name,
        )
        about = _resource_of(subject.get("service"), subject.get("instance"))
        return bytes(encode_logs([ReadableLogRecord(record, about, self._scope)]).SerializeToString())


@lru_cache(maxsize=1024)
def _resource_of(service: str | None, instance: str | None) -> Resource:
    """The resource of the service that an event is about; ours when it is about none."""
    resource = {SERVICE_NAME: service or SCOPE, SERVICE_INSTANCE_ID: instance}
    return Resource({key: _text(value) for key, value in resource.items() if value})


def own_span_id(verdict_id: str) -> int:
    """The id of our span for a verdict: the same whenever it is made, never 0."""
    digest = hashlib.blake2b(verdict_id.encode(), digest_size=8, person=b"spanevent").digest()
    return int.from_bytes(digest, "big") or 1


def verdict_attributes(row: Mapping[str, Any], incident: str | None) -> Attributes:
    """The attributes of the event of a verdict; those that do not apply are absent."""
    subject = row["findings"][0]["subject"] if row["findings"] else {}
    return _present(
        {
            "spanchain.anomaly.verdict_id": row["verdict_id"],
            "spanchain.anomaly.score": row["score"],
            "spanchain.anomaly.kinds": list(dict.fromkeys(finding["kind"] for finding in row["findings"])),
            "spanchain.incident.id": incident,
            **_common(row, subject),
        }
    )


def incident_attributes(row: Mapping[str, Any], state: str) -> Attributes:
    """The attributes of the event of an incident."""
    suspects = [" ".join(filter(None, (each["service"], each["operation"]))) for each in row["suspects"]]
    return _present(
        {
            "spanchain.incident.id": row["incident_id"],
            "spanchain.incident.state": state,
            "spanchain.incident.suspects": suspects,
            "spanchain.incident.chains": row["chains"],
            "spanchain.anomaly.kinds": [row["kind"]],
            **_common(row, row["subject"]),
        }
    )


def _common(row: Mapping[str, Any], subject: Mapping[str, Any]) -> Attributes:
    explanation = {f"spanchain.anomaly.explanation.{part}": text for part, text in row["explanation"].items()}
    return {
        "spanchain.anomaly.severity": row["severity"],
        "spanchain.anomaly.category": row["category"],
        **explanation,
        "spanchain.tenant": row["tenant"],
        "spanchain.subject.service": subject.get("service"),
        "spanchain.subject.operation": subject.get("operation"),
        "spanchain.subject.instance": subject.get("instance"),
    }


def _present(attributes: Attributes) -> Attributes:
    """What has a value, as types that OTLP knows: a list stays one, of texts; a mapping becomes a sentence."""
    out: Attributes = {}
    for key, value in attributes.items():
        if isinstance(value, list):
            out[key] = [_text(each) for each in value]
        elif isinstance(value, float | int):
            out[key] = value
        else:
            out[key] = _text(value)
    return {key: value for key, value in out.items() if value not in ("", [])}


def _text(value: Any) -> str:
    return sentences(value)[:TEXT_MAX].encode("utf-8", "replace").decode("utf-8")


def _context(trace_id: str, span_id: int) -> SpanContext:
    return SpanContext(int(trace_id, 16), span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
