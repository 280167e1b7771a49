"""Inline mode of the running service: whatever dies, all that was acknowledged reaches the backend, byte for byte."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sinks import Behaviour, GrpcSink, eventually

from collector_processor.config import Config
from tests.collector_processor.test_runtime import LOGS, TRACES, answers, config, port_of, running, sender
from tests.e2e.processes import free_ports
from tests.otlp import log, logs, span, traces

EVENT = "spanchain.anomaly"
OURS = "spanchain"
RULE = """
rules:
  - name: nobody-refuses
    category: compliance
    severity: critical
    text: "refused {actual}"
    forbid: [{present: risk refuse}]
"""


def now_ms() -> float:
    return time.time() * 1000 - 1_700_000_000_000


def payments(first: int, refused: bool, count: int = 5) -> bytes:
    """`count` traces of two services, the last of them refused if so."""
    spans = []
    for trace in range(first, first + count):
        bad = refused and trace == first + count - 1
        spans += [
            span(trace, 1, name="pay", start_ms=now_ms(), ms=20),
            span(trace, 2, 1, service="risk", name="refuse" if bad else "check", start_ms=now_ms() + 5),
        ]
    return traces(*spans)


class Arrived:
    """What a sink has taken, by resource group: `copies` of each without events, and their bytes `as_sent`."""

    def __init__(self, sink: GrpcSink) -> None:
        self.copies: Counter[bytes] = Counter()
        self.as_sent: dict[bytes, set[bytes]] = defaultdict(set)
        self.on_spans: Counter[bytes] = Counter()  # trace id -> events on spans
        self.on_children: Counter[bytes] = Counter()
        for signal, body in list(sink.taken):
            for group in groups(signal, body):
                self._take(signal, group)

    def _take(self, signal: str, group: Any) -> None:
        if signal == "logs":
            if group.scope_logs[0].scope.name != OURS:
                self.copies[group.SerializeToString()] += 1
            return
        as_sent = group.SerializeToString()
        ours = group.scope_spans[0].scope.name == OURS
        for scope in group.scope_spans:
            for one in scope.spans:
                names = [event.name for event in one.events]
                (self.on_children if ours else self.on_spans)[one.trace_id] += names.count(EVENT)
                del one.events[:]
        if not ours:
            self.copies[group.SerializeToString()] += 1
            self.as_sent[group.SerializeToString()].add(as_sent)


def groups(signal: str, body: bytes) -> list[Any]:
    if signal == "logs":
        return list(ExportLogsServiceRequest.FromString(body).resource_logs)
    return list(ExportTraceServiceRequest.FromString(body).resource_spans)


def parts(signal: str, body: bytes) -> list[bytes]:
    return [group.SerializeToString() for group in groups(signal, body)]


def inline(sink: GrpcSink, rules: Path, **sections: Any) -> Config:
    rules.write_text(RULE)
    otlp = {"enabled": True, "mode": "inline", "endpoint": sink.address, "inline": {"hold_s": 3}}
    otlp["queue"] = {"retry_initial_s": 0.05, "retry_max_s": 0.2}
    base = {
        "detectors": {"context": {"rules": [str(rules)]}},
        "exporters": {"prometheus": {"port": 0}, "otlp": otlp},
    }
    return config(**(base | sections))


@pytest.mark.slow
def test_what_is_acknowledged_goes_on_with_the_event_on_the_span_and_nothing_else_changed(tmp_path: Path) -> None:
    with GrpcSink() as sink, running(tmp_path / "data", inline(sink, tmp_path / "rules.yaml")) as service:
        with sender(port_of(service)) as send:
            spans, records = payments(1, refused=True), logs(log("done", 1, 1), log("nobody's"))
            send(TRACES, spans)
            send(LOGS, records)
        expected = Counter(parts("spans", spans) + parts("logs", records))
        assert eventually(lambda: Arrived(sink).copies == expected)
        assert Arrived(sink).on_spans == Counter(
            {(5).to_bytes(16, "big"): 1, **{n.to_bytes(16, "big"): 0 for n in range(1, 5)}}
        )
        assert eventually(lambda: any(OURS in str(group) for each in sink.taken for group in groups(*each)))
        assert service.engine.received[0] == 10, "what it sent did not come back to it"


@pytest.mark.slow
def test_a_backend_that_is_away_fills_the_journal_then_senders_wait_and_all_goes_on_by_itself(tmp_path: Path) -> None:
    sections = {"journal": {"bytes_max": 60_000, "segment_bytes_max": 8_000, "checkpoint_interval_s": 0.5}}
    with GrpcSink() as sink:
        settings = inline(sink, tmp_path / "rules.yaml", **sections)
        sink.stop()
        with running(tmp_path / "data", settings) as service, sender(port_of(service)) as send:
            acknowledged: list[bytes] = []

            def send_more(first: int) -> None:
                body = payments(first, refused=False)
                send(TRACES, body)
                acknowledged.append(body)

            with pytest.raises(grpc.RpcError) as refused:
                [send_more(first) for first in range(1, 10_000, 5)]
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            assert service.journal.size_bytes > 40_000
            sink.start()

            def taken_again() -> bool:
                try:
                    send_more(20_000)
                except grpc.RpcError:
                    return False
                return True

            assert eventually(taken_again, 60)
            expected = {part for body in acknowledged for part in parts("spans", body)}
            assert eventually(lambda: set(Arrived(sink).copies) == expected, 60)
            assert eventually(lambda: service.journal.size_bytes < 30_000, 30)


@contextmanager
def unsteady(sink: GrpcSink, chance: random.Random) -> Iterator[None]:
    """A sink that dies and returns all the time, and at times loses its answer."""
    done = threading.Event()

    def shake() -> None:
        while not done.wait(chance.uniform(0.1, 0.8)):
            sink.stop()
            done.wait(chance.uniform(0.1, 0.5))
            sink.start()

    thread = threading.Thread(target=shake)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
def test_kill_nine_of_either_side_loses_nothing(tmp_path: Path) -> None:
    """Three kills in mid-request under load, before a sink that dies and returns as well."""
    grpc_port, http_port, metrics, health = free_ports(4)
    chance, acknowledged, refused, first = random.Random(5), list[list[bytes]](), set[bytes](), 1
    with GrpcSink() as sink:
        sink.behave(then=Behaviour(delay_s=0.05))  # so that either may die between the taking and the answer
        settings = inline(
            sink,
            tmp_path / "rules.yaml",
            receivers={
                "grpc": {"endpoint": f"127.0.0.1:{grpc_port}"},
                "http": {"endpoint": f"127.0.0.1:{http_port}"},
            },
            service={"health": {"port": health}},
            journal={"checkpoint_interval_s": 1, "segment_bytes_max": 50_000},
        ).model_dump(mode="json", include={"receivers", "service", "journal", "join", "detectors", "exporters"})
        settings["exporters"]["prometheus"]["port"] = metrics
        path = tmp_path / "spanchain.yaml"
        path.write_text(json.dumps(settings))

        def start() -> subprocess.Popen[bytes]:
            command = [
                Path(sys.executable).with_name("spanchain"),
                "serve",
                "--config",
                path,
                "--data",
                tmp_path / "data",
            ]
            with (tmp_path / "log").open("ab") as output:
                process = subprocess.Popen(command, stdout=output, stderr=output)
            assert eventually(lambda: answers(f"http://127.0.0.1:{health}/readyz"), 60)
            return process

        with unsteady(sink, chance):
            for _ in range(3):
                process = start()
                threading.Timer(chance.uniform(0.5, 3.0), process.kill).start()
                with sender(grpc_port) as send:
                    first = load(send, first, acknowledged, refused)
                process.wait()
        process = start()
        sink.behave()
        expected = {part for each in acknowledged for part in each}
        assert eventually(lambda: expected <= set(Arrived(sink).copies), 60), (tmp_path / "log").read_text()[-3000:]

        def told() -> bool:
            found = Arrived(sink)
            return refused <= {trace for kind in (found.on_spans, found.on_children) for trace in +kind}

        assert eventually(told, 60)
        process.terminate()
        assert process.wait(30) == 0
        found = Arrived(sink)
    assert len(acknowledged) > 50
    for payload in acknowledged:
        assert len({found.copies[part] for part in payload}) == 1, "a payload comes as a whole, however often"
    assert max(map(len, found.as_sent.values())) == 1, "and always with the same bytes"
    assert len(+found.on_spans & Counter(dict.fromkeys(refused, 9))) > len(refused) / 2


def load(send: Callable[[str, bytes], bytes], first: int, acknowledged: list[list[bytes]], refused: set[bytes]) -> int:
    """Sends until the receiver dies; what was acknowledged, and the refused traces among that. The next free trace."""
    while True:
        spans, records = payments(first, refused=first % 3 == 0), logs(log(f"request {first}", first, 1))
        try:
            send(TRACES, spans)
            acknowledged.append(parts("spans", spans))
            if first % 3 == 0:
                refused.add((first + 4).to_bytes(16, "big"))
            send(LOGS, records)
            acknowledged.append(parts("logs", records))
        except grpc.RpcError:
            return first + 5
        first += 5
        time.sleep(0.01)


def test_nothing_can_be_forwarded_that_is_not_written(tmp_path: Path) -> None:
    with GrpcSink() as sink, pytest.raises(ValueError, match=r"journal\.durability"):
        inline(sink, tmp_path / "rules.yaml", journal={"durability": "none"})


@pytest.mark.parametrize(
    ("endpoint", "sends_to"),
    [
        ("127.0.0.1:4317", "http://localhost:4317"),
        ("0.0.0.0:4317", "http://127.0.0.1:4317"),
        ("spanchain.local:4317", "https://spanchain.local:4317/"),
    ],
)
def test_what_is_forwarded_does_not_go_to_its_own_receiver(tmp_path: Path, endpoint: str, sends_to: str) -> None:
    def settings(mode: str, address: str = sends_to) -> Config:
        otlp = {"enabled": True, "mode": mode, "endpoint": address}
        return config(receivers={"grpc": {"endpoint": endpoint}}, exporters={"otlp": otlp})

    with pytest.raises(ValueError, match="would come back"):
        settings("inline")
    settings("inline", sends_to.replace("4317", "14317"))
    settings("inline", "http://backend:4317")
    settings("tee")
