"""google.rpc.Status and the Export responses, in bytes, for both transports.

How it works. An error is a Status message (https://github.com/googleapis/googleapis, google/rpc/status.proto): the body
of an HTTP error in the request's own content type, and a trailer in gRPC. A retryable one carries RetryInfo, without
which a Collector takes RESOURCE_EXHAUSTED for final.
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from collector_processor.ingest.answers import Answer
from collector_processor.model import Signal

MESSAGE_MAX = 1024  # characters; the whole body must stay below 64 KiB


def status_bytes(code: int, message: str, retry_after_s: int = 0) -> bytes:
    """A serialised Status; with RetryInfo when retry_after_s is not 0."""
    status = Status(code=code, message=message[:MESSAGE_MAX])
    if retry_after_s:
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=retry_after_s)))
    return bytes(status.SerializeToString())


def status_json(code: int, message: str, retry_after_s: int = 0) -> bytes:
    """The same as protobuf JSON."""
    status: dict[str, Any] = {"code": code, "message": message[:MESSAGE_MAX]}
    if retry_after_s:
        status["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_after_s}s"}]
    return json.dumps(status).encode()


def response_bytes(signal: Signal, answer: Answer) -> bytes:
    """The Export response to an OK answer: empty for full success, else with `partial_success`."""
    if not answer.rejected:
        return b""
    if signal == Signal.TRACES:
        traces = ExportTraceServiceResponse()
        traces.partial_success.rejected_spans = answer.rejected
        traces.partial_success.error_message = answer.message
        return traces.SerializeToString()
    logs = ExportLogsServiceResponse()
    logs.partial_success.rejected_log_records = answer.rejected
    logs.partial_success.error_message = answer.message
    return logs.SerializeToString()


def response_json(signal: Signal, answer: Answer) -> bytes:
    """The same as OTLP JSON; 64-bit integers are strings there."""
    if not answer.rejected:
        return b"{}"
    name = "rejectedSpans" if signal == Signal.TRACES else "rejectedLogRecords"
    return json.dumps({"partialSuccess": {name: str(answer.rejected), "errorMessage": answer.message}}).encode()
