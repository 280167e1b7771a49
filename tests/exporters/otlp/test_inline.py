"""Inline mode against a receiver in the test and a journal on disk: everything goes out, in order, with its events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sinks import Behaviour, GrpcSink, attribute, eventually, partial_success
from verdicts import rows, verdict_ids, verdicts

from collector_processor.config import JournalConfig, OtlpExportConfig, QueueConfig
from collector_processor.journal.wal import Journal
from collector_processor.model import Payload, Signal, VerdictBatch
from exporters.otlp import forward
from exporters.otlp.inline import InlineExporter
from exporters.prometheus.telemetry import Telemetry
from tests.otlp import log, logs, span, traces

Make = Callable[..., InlineExporter]
SECOND = 1_000_000_000
ARRIVED = 1_000 * SECOND
FAST = {"retry_initial_s": 0.05, "retry_max_s": 0.1}
EVENT = "spanchain.anomaly"
CHECK = 3  # span id of the operation `check` in the chains of verdicts.py


@pytest.fixture
def sink() -> Iterator[GrpcSink]:
    with GrpcSink() as made:
        yield made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.open(tmp_path / "journal", JournalConfig(durability="os", segment_bytes_max=2000))
    yield made
    made.close()


@pytest.fixture
def make(sink: GrpcSink, tmp_path: Path, journal: Journal) -> Iterator[Make]:
    made: list[InlineExporter] = []

    def start(queue: dict[str, Any] | None = None, hold_s: float = 10, **options: Any) -> InlineExporter:
        settings = {"endpoint": sink.address, "mode": "inline", "queue": QueueConfig(**(FAST | (queue or {})))}
        settings["inline"] = {"hold_s": hold_s, "tenant_header": "x-tenant"}
        telemetry = Telemetry("1")
        config = OtlpExportConfig.model_validate(settings | options)
        exporter = InlineExporter(config, tmp_path, rows(), telemetry, "1")
        exporter.attach(journal)
        exporter.start()
        made.append(exporter)
        counts[id(exporter)] = telemetry
        return exporter

    counts: dict[int, Telemetry] = {}
    start.telemetry = lambda exporter: counts[id(exporter)]  # type: ignore[attr-defined]
    yield start
    for exporter in made:
        exporter.shutdown(5)


def counted(make: Make, exporter: InlineExporter, name: str, /, **labels: str) -> float:
    registry = make.telemetry(exporter).registry  # type: ignore[attr-defined]
    return float(registry.get_sample_value(f"spanchain_{name}", labels) or 0)


def payment(trace: int, **of_check: Any) -> bytes:
    """The spans of one chain of verdicts.py."""
    check = span(trace, CHECK, 2, name="check", service="risk", **({"kind": 2} | of_check))
    return traces(span(trace, 1, name="pay"), span(trace, 2, 1, name="call"), check)


def unusual(trace: int) -> VerdictBatch:
    """The verdict on it, about `check`."""
    batch = verdicts(1, 1, first_trace=trace)
    record = next(
        row for row, event in enumerate(batch.chains.event) if batch.chains.symbols.events.text[event] == "check"
    )
    batch.chains.span_id[record] = CHECK
    batch.chains.kind[record] = 3  # server
    return batch


def keep(
    journal: Journal, data: bytes, signal: Signal = Signal.TRACES, tenant: str = "default", at_s: float = 0
) -> int:
    return journal.append(Payload(signal, tenant, data, ARRIVED + int(at_s * SECOND)))


def advance(exporter: InlineExporter, passed_s: float) -> None:
    exporter.advance(ARRIVED + int(passed_s * SECOND))


def forwarded(sink: GrpcSink, signal: str = "spans") -> list[bytes]:
    return [body for name, body in sink.taken if name == signal]


def spans(sink: GrpcSink) -> list[Any]:
    return [
        one
        for body in forwarded(sink)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in group.scope_spans
        for one in scope.spans
    ]


def events(sink: GrpcSink) -> list[tuple[int, int, list[str]]]:
    """(trace, span, verdicts of its events) of each span that has one."""
    return [
        (
            int.from_bytes(one.trace_id, "big"),
            int.from_bytes(one.span_id, "big"),
            [attribute(event, f"{EVENT}.verdict_id") for event in one.events],
        )
        for one in spans(sink)
        if one.events
    ]


def test_the_services_own_marks_of_time_are_passed_and_not_sent(make: Make, journal: Journal, sink: GrpcSink) -> None:
    exporter = make()
    keep(journal, b"", Signal.LOGS, tenant="")
    keep(journal, logs(log("done", 1, 1)), Signal.LOGS)
    keep(journal, b"", Signal.LOGS, tenant="", at_s=1)
    advance(exporter, 2)
    assert eventually(lambda: forwarded(sink, "logs") == [logs(log("done", 1, 1))])
    assert eventually(lambda: counted(make, exporter, "exporter_queue_length", exporter="otlp_forward") == 0)
    assert len(sink.taken) == 1


def test_a_judged_chain_goes_at_once_with_its_event_on_the_span_it_is_about(
    make: Make, journal: Journal, sink: GrpcSink
) -> None:
    exporter, batch = make(), unusual(5)
    keep(journal, payment(5))
    advance(exporter, 1)
    exporter.export(batch, [])
    advance(exporter, 2)
    assert eventually(lambda: len(spans(sink)) == 3)
    assert events(sink) == [(5, CHECK, verdict_ids(batch))]
    [body] = forwarded(sink)
    request = ExportTraceServiceRequest.FromString(body)
    for group in request.resource_spans:
        for one in group.scope_spans[0].spans:
            del one.events[:]
    assert request.SerializeToString() == payment(5)
    assert eventually(lambda: len(forwarded(sink, "logs")) == 1), "and the log event beside it"
    assert eventually(lambda: counted(make, exporter, "inline_events_total", place="span") == 1)


def test_spans_wait_for_their_verdict_and_no_longer_than_told(make: Make, journal: Journal, sink: GrpcSink) -> None:
    exporter = make()
    keep(journal, payment(5))
    keep(journal, logs(log("done", 5, CHECK)), Signal.LOGS)
    advance(exporter, 9.9)
    assert not eventually(lambda: sink.tried > 0, 0.5)
    advance(exporter, 10)
    assert eventually(lambda: sink.taken == [("spans", payment(5)), ("logs", logs(log("done", 5, CHECK)))])
    assert eventually(lambda: counted(make, exporter, "exporter_sent_total", exporter="otlp_forward") == 4)


def test_normal_chains_and_logs_are_the_same_bytes_in_the_same_order(
    make: Make, journal: Journal, sink: GrpcSink
) -> None:
    exporter, sent = make(hold_s=0), []
    for number in range(1, 40):
        sent.append(payment(number))
        keep(journal, sent[-1])
        advance(exporter, number)
    assert eventually(lambda: b"".join(forwarded(sink)) == b"".join(sent))


def test_an_event_that_comes_too_late_is_a_child_span(make: Make, journal: Journal, sink: GrpcSink) -> None:
    exporter, batch = make(), unusual(5)
    keep(journal, payment(5))
    advance(exporter, 11)
    assert eventually(lambda: len(spans(sink)) == 3)
    exporter.export(batch, [])
    exporter.export(batch, [])
    advance(exporter, 12)
    assert eventually(lambda: len(spans(sink)) == 4)
    child = spans(sink)[-1]
    assert (child.name, child.parent_span_id) == (EVENT, CHECK.to_bytes(8, "big"))
    advance(exporter, 60)
    assert not eventually(lambda: len(spans(sink)) > 4, 0.5)
    assert eventually(lambda: counted(make, exporter, "inline_events_total", place="child") == 1)
    assert counted(make, exporter, "inline_events_total", place="span") == 0


def test_an_event_whose_span_waits_behind_others_is_not_late(make: Make, journal: Journal, sink: GrpcSink) -> None:
    exporter, batch = make(), unusual(5)
    keep(journal, payment(1))
    keep(journal, payment(5))
    exporter.export(batch, [])
    advance(exporter, 1)
    assert not eventually(lambda: sink.tried > 1, 0.5), "only the log event"
    advance(exporter, 10)
    assert eventually(lambda: events(sink) == [(5, CHECK, verdict_ids(batch))])
    assert len(spans(sink)) == 6


def test_only_the_span_of_that_tenant_id_and_kind_gets_it(make: Make, journal: Journal, sink: GrpcSink) -> None:
    exporter, batch = make(), unusual(5)
    keep(journal, payment(5, kind=3))  # a client span that shares the server's id
    keep(journal, payment(6))
    keep(journal, payment(5), tenant="other")
    keep(journal, payment(5) + payment(5))  # and the one it is about, twice
    exporter.export(batch, [])
    advance(exporter, 10)
    assert eventually(lambda: len(spans(sink)) == 15)
    assert events(sink) == [(5, CHECK, verdict_ids(batch))] * 2
    tenants = [headers["x-tenant"] for headers in sink.headers if "x-tenant" in headers]
    assert sorted(tenants) == ["default", "other"]


def test_a_span_that_has_been_judged_by_another_spanchain_is_left_as_it_is(
    make: Make, journal: Journal, sink: GrpcSink
) -> None:
    exporter = make()
    earlier = ExportTraceServiceRequest.FromString(payment(5))
    earlier.resource_spans[1].scope_spans[0].spans[0].events.add(name=EVENT)
    keep(journal, earlier.SerializeToString())
    exporter.export(unusual(5), [])
    advance(exporter, 1)
    assert eventually(lambda: forwarded(sink) == [earlier.SerializeToString()])
    advance(exporter, 60)
    assert not eventually(lambda: len(forwarded(sink)) > 1, 0.3)


@pytest.mark.slow
def test_a_receiver_that_is_down_costs_nothing_and_the_journal_keeps_what_waits(
    make: Make, journal: Journal, sink: GrpcSink
) -> None:
    exporter = make(hold_s=0)
    sink.stop()
    for number in range(1, 41):
        keep(journal, payment(number))
        advance(exporter, number)
    journal.truncate(30)
    assert next(journal.replay())[0] == 1
    assert eventually(lambda: counted(make, exporter, "exporter_queue_length", exporter="otlp_forward") == 40)
    sink.start()
    assert eventually(lambda: len(spans(sink)) == 120)
    assert b"".join(forwarded(sink)) == b"".join(payment(number) for number in range(1, 41))
    assert eventually(lambda: 1 < next(journal.replay())[0] <= 30)


def test_the_journal_keeps_what_is_not_forwarded_whatever_checkpoints_allow(
    make: Make, journal: Journal, sink: GrpcSink
) -> None:
    exporter = make(hold_s=0)
    for number in range(1, 21):
        keep(journal, payment(number))
    advance(exporter, 1)
    assert eventually(lambda: len(spans(sink)) == 60)
    sink.behave(then=Behaviour(status=14))
    tried = sink.tried
    for number in range(21, 61):
        keep(journal, payment(number))
    advance(exporter, 2)
    assert eventually(lambda: sink.tried > tried + 1)
    journal.truncate(1000)
    assert 1 < next(journal.replay())[0] <= 21
    sink.behave()
    assert eventually(lambda: len(spans(sink)) == 180)
    assert eventually(lambda: next(journal.replay())[0] > 21)


def test_what_was_not_taken_goes_after_a_restart_and_the_rest_not_again(
    make: Make, journal: Journal, sink: GrpcSink
) -> None:
    first = make()
    keep(journal, payment(1))
    advance(first, 10)
    assert eventually(lambda: len(spans(sink)) == 3)
    sink.behave(then=Behaviour(status=14))
    keep(journal, payment(5))
    first.export(unusual(5), [])
    assert first.flush(5), "the runtime keeps a checkpoint, and will not give this verdict again"
    first.shutdown(5)
    tried = sink.tried
    second = make()
    advance(second, 10)
    assert eventually(lambda: sink.tried > tried + 2)
    second.shutdown(5)
    sink.behave()
    third = make()
    advance(third, 10)
    assert eventually(lambda: len(spans(sink)) == 6)
    assert events(sink) == [(5, CHECK, verdict_ids(unusual(5)))]


def test_a_window_that_is_sent_again_has_the_same_bytes(
    make: Make, journal: Journal, sink: GrpcSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after the receiver took it; meanwhile a second verdict on one of its spans has come."""
    crashed = make()
    monkeypatch.setattr(crashed._forwarder, "_settle", lambda _: crashed._forwarder._stop_at)
    for number in (5, 6):
        keep(journal, payment(number))
    crashed.export(unusual(5), [])
    advance(crashed, 10)
    assert eventually(lambda: len(spans(sink)) == 6)
    crashed._forwarder._stop_at = 0.0  # no farewell
    crashed._forwarder._wake()
    assert crashed._forwarder._thread is not None
    crashed._forwarder._thread.join(10)
    again = make()
    again.export(unusual(6), [])
    advance(again, 10)
    assert eventually(lambda: len(spans(sink)) == 13)
    bodies = forwarded(sink)
    assert bodies[1] == bodies[0]
    assert [span.name for span in spans(sink)][12:] == [EVENT], "the second verdict comes as a child"


def test_what_is_refused_for_good_is_counted_and_kept_aside_and_the_rest_goes_on(
    make: Make, journal: Journal, sink: GrpcSink, tmp_path: Path
) -> None:
    exporter = make()
    for number in (1, 2, 3):
        keep(journal, payment(number))
    sink.behave(Behaviour(status=3), Behaviour(), Behaviour(status=3), Behaviour())  # all three, then each alone
    advance(exporter, 10)
    assert eventually(lambda: forwarded(sink) == [payment(1), payment(3)])
    assert counted(make, exporter, "exporter_dropped_total", exporter="otlp_forward", reason="refused") == 3
    kept = (tmp_path / "refused_spans.binpb").read_bytes()
    assert kept == len(payment(2)).to_bytes(4, "big") + payment(2)


def test_what_the_receiver_rejects_in_part_is_counted(make: Make, journal: Journal, sink: GrpcSink) -> None:
    exporter = make()
    keep(journal, payment(1))
    sink.behave(Behaviour(body=partial_success("spans", 2)))
    advance(exporter, 10)
    assert eventually(
        lambda: counted(make, exporter, "exporter_dropped_total", exporter="otlp_forward", reason="rejected") == 2
    )
    assert eventually(lambda: counted(make, exporter, "exporter_sent_total", exporter="otlp_forward") == 1)


def test_requests_stay_below_what_receivers_take(make: Make, journal: Journal, sink: GrpcSink) -> None:
    exporter = make(request_bytes_max=1000)
    large = traces(*(span(1, number, name="n" * 50, service=f"s{number // 5}") for number in range(1, 60)))
    keep(journal, payment(7))
    keep(journal, large)
    keep(journal, logs(*(log("x" * 90, 1, number) for number in range(1, 40))), Signal.LOGS)
    advance(exporter, 10)
    assert eventually(lambda: len(spans(sink)) == 62)
    assert [one.span_id for one in spans(sink)][3:] == [number.to_bytes(8, "big") for number in range(1, 60)]

    def bodies() -> list[bytes]:
        return forwarded(sink, "logs")

    def records() -> int:
        parsed = [ExportLogsServiceRequest.FromString(body) for body in bodies()]
        return sum(len(group.scope_logs[0].log_records) for one in parsed for group in one.resource_logs)

    assert eventually(lambda: records() == 39)
    assert max(len(body) for _, body in sink.taken) <= 1000


def test_events_beyond_the_bound_of_the_disk_are_counted(make: Make, journal: Journal) -> None:
    exporter = make({"disk_bytes_max": 8000})
    keep(journal, payment(1))
    for number in range(20):
        exporter.export(unusual(100 + number), [])
    assert exporter.flush(5)
    dropped = counted(make, exporter, "exporter_dropped_total", exporter="otlp_spans", reason="queue_full")
    waiting = counted(make, exporter, "exporter_queue_length", exporter="otlp_spans")
    assert dropped > 0
    assert eventually(lambda: dropped + counted(make, exporter, "exporter_queue_length", exporter="otlp_spans") == 20)
    assert waiting > 0


def test_a_disk_that_fails_does_not_stop_forwarding(
    make: Make, journal: Journal, sink: GrpcSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = make()
    notes = exporter._forwarder._notes
    assert notes is not None
    notes._db.close()
    keep(journal, payment(1))
    advance(exporter, 10)
    assert eventually(lambda: forwarded(sink) == [payment(1)])
    assert not exporter.flush(1)
    keep(journal, payment(2))
    advance(exporter, 11)
    assert eventually(lambda: forwarded(sink) == [payment(1), payment(2)])


@pytest.mark.slow
def test_a_fault_of_ours_loses_nothing(
    make: Make, journal: Journal, sink: GrpcSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = make()
    with monkeypatch.context() as patch:
        patch.setattr(forward.kernel, "records_in", lambda _: 1 / 0)
        keep(journal, payment(1))
        keep(journal, logs(log("a")), Signal.LOGS)
        advance(exporter, 10)
        assert not eventually(lambda: sink.tried > 0, 1)
    assert eventually(lambda: sink.taken == [("spans", payment(1)), ("logs", logs(log("a")))])


def test_another_journal_than_the_one_forwarded_begins_at_its_start(
    make: Make, journal: Journal, sink: GrpcSink
) -> None:
    for number in range(1, 4):
        keep(journal, payment(number))
    first = make()
    advance(first, 10)
    assert eventually(lambda: len(spans(sink)) == 9)
    first.shutdown(5)
    notes = forward.Notes(first._forwarder._path)
    notes.move_to(1000)
    notes.close()
    second = make()
    advance(second, 10)
    assert eventually(lambda: len(spans(sink)) == 18)


def test_traces_are_forgotten_after_a_while() -> None:
    judged = forward.Judged(10)
    judged.add(verdicts(3, 0, first_trace=1).chains)
    ids = {number.to_bytes(16, "big") for number in range(1, 5)}
    judged.advance(ARRIVED)
    assert judged.without(ids) == {(4).to_bytes(16, "big")}
    judged.advance(ARRIVED + 11 * SECOND)
    assert judged.without(ids) == ids
    assert forward.trace_ids(np.zeros(0, np.uint64), np.zeros(0, np.uint64)) == []
