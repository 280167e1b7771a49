"""What the platform sent, read back with the official protobuf classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector_processor.model import Signal
from collector_processor.simulator.faults import Fault
from collector_processor.simulator.simulator import Simulator
from collector_processor.simulator.traffic import SECOND_NS

START_NS = int(datetime(2025, 12, 22, 10, 0, tzinfo=UTC).timestamp()) * SECOND_NS


def values(attributes) -> dict[str, object]:
    """Attributes as a dict."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@dataclass(frozen=True)
class SpanRow:
    instance: str
    service: str
    span: Span
    sent_ns: int

    @property
    def ms(self) -> float:
        return (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1e6

    @property
    def values(self) -> dict[str, object]:
        return values(self.span.attributes)


@dataclass(frozen=True)
class LogRow:
    instance: str
    service: str
    log: LogRecord
    sent_ns: int

    @property
    def body(self) -> str:
        return self.log.body.string_value


@dataclass
class Chain:
    spans: list[SpanRow] = field(default_factory=list)
    logs: list[LogRow] = field(default_factory=list)

    @property
    def root(self) -> SpanRow:
        return next(row for row in self.spans if not row.span.parent_span_id)

    def of(self, service: str, *kinds: int) -> list[SpanRow]:
        """The spans of `service` of the given span kinds (all when none is given)."""
        return [row for row in self.spans if row.service == service and (not kinds or row.span.kind in kinds)]

    def children(self, row: SpanRow) -> list[SpanRow]:
        return [other for other in self.spans if other.span.parent_span_id == row.span.span_id]

    def parent(self, row: SpanRow) -> SpanRow | None:
        return next((other for other in self.spans if other.span.span_id == row.span.parent_span_id), None)

    def fingerprint(self) -> tuple[bytes, ...]:
        """Everything in it, independent of order."""
        parts = [row.instance.encode() + row.span.SerializeToString(deterministic=True) for row in self.spans]
        parts += [row.instance.encode() + row.log.SerializeToString(deterministic=True) for row in self.logs]
        return tuple(sorted(parts))


@dataclass
class Run:
    """One run of the platform. `chains` holds finished ones only: those that began early enough."""

    payloads: list[tuple[Signal, bytes, int]]
    chains: dict[bytes, Chain]
    loose: list[LogRow]
    truth: dict[bytes, bool | None]
    touched: dict[bytes, tuple[str, ...]]


def read(payloads: Iterable[tuple[Signal, bytes, int]]) -> tuple[dict[bytes, Chain], list[LogRow]]:
    """Payloads as chains, and the logs without a trace id."""
    chains: dict[bytes, Chain] = defaultdict(Chain)
    loose: list[LogRow] = []
    for signal, data, sent_ns in payloads:
        if signal == Signal.TRACES:
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                of = values(resource.resource.attributes)
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        row = SpanRow(str(of["service.instance.id"]), str(of["service.name"]), span, sent_ns)
                        chains[span.trace_id].spans.append(row)
        else:
            for logs in ExportLogsServiceRequest.FromString(data).resource_logs:
                of = values(logs.resource.attributes)
                for scope in logs.scope_logs:
                    for log in scope.log_records:
                        line = LogRow(str(of["service.instance.id"]), str(of["service.name"]), log, sent_ns)
                        (chains[log.trace_id].logs if log.trace_id else loose).append(line)
    return dict(chains), loose


def run(
    faults: Iterable[Fault] = (), seed: int = 1, seconds: float = 15.0, rate: float = 20.0, start_ns: int = START_NS
) -> Run:
    """Run the platform; chains of the last five seconds are left out."""
    truth: dict[bytes, bool | None] = {}
    touched: dict[bytes, tuple[str, ...]] = {}

    def note(trace_id: bytes, known: bool | None, by) -> None:
        truth[trace_id] = known
        touched[trace_id] = tuple(sorted(by))

    simulator = Simulator(seed, start_ns, faults=faults, rate=rate, on_chain=note)
    end_ns = start_ns + int(seconds * SECOND_NS)
    payloads = list(simulator.payloads(end_ns))
    chains, loose = read(payloads)
    done = {
        trace_id: chain
        for trace_id, chain in chains.items()
        if chain.spans and min(row.span.start_time_unix_nano for row in chain.spans) < end_ns - 5 * SECOND_NS
    }
    return Run(payloads, done, loose, truth, touched)


@pytest.fixture(scope="session")
def run_platform() -> Callable[..., Run]:
    return run


@pytest.fixture(scope="session")
def healthy() -> Run:
    """Fifteen seconds without faults."""
    return run()


@pytest.fixture(scope="session")
def start_ns() -> int:
    return START_NS
