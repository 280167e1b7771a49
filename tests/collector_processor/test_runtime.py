"""The running service over its real ports: nothing acknowledged is lost or said twice, refusals are retryable."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from otlp import log, logs, span, traces
from sinks import eventually

from collector_processor.config import Config
from collector_processor.intake import Intake
from collector_processor.model import Payload, Signal
from collector_processor.runtime import Service, StartError
from tests.e2e.processes import free_ports, http_get

pytestmark = pytest.mark.slow  # each starts the whole service

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


def config(**sections: Any) -> Config:
    """Every address on a free port, verdicts to a file, and short waits."""
    settings: dict[str, Any] = {
        "receivers": {"grpc": {"endpoint": "127.0.0.1:0"}, "http": {"endpoint": "127.0.0.1:0"}},
        "join": {
            "wait_initial_s": 0.5,
            "wait_min_s": 0.5,
            "wait_max_s": 0.5,
            "chains_max": 5000,
            "records_max": 50_000,
        },
        "exporters": {"prometheus": {"port": 0}, "file": {"enabled": True, "verdicts": "all"}},
        "service": {"health": {"port": 0}},
    }
    return Config.model_validate(settings | sections)


@contextmanager
def running(folder: Path, settings: Config | None = None) -> Iterator[Service]:
    service = Service(settings or config(), folder)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def sender(port: int) -> Iterator[Callable[[str, bytes], bytes]]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls = {path: channel.unary_unary(path) for path in (TRACES, LOGS)}
        yield lambda path, data: calls[path](data, timeout=10)


def port_of(service: Service) -> int:
    assert service.receivers is not None
    assert service.receivers.grpc is not None
    return service.receivers.grpc.port


def request(first: int, count: int = 5) -> bytes:
    """`count` traces of two spans each, with present times."""
    now_ms = time.time() * 1000 - 1_700_000_000_000
    spans = []
    for trace in range(first, first + count):
        spans += [
            span(trace, 1, name="pay", start_ms=now_ms, ms=20),
            span(trace, 2, 1, service="risk", start_ms=now_ms + 5),
        ]
    return traces(*spans)


def written(folder: Path) -> Counter[str]:
    """Trace id -> number of verdicts."""
    path = folder / "verdicts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(json.loads(line)["trace_id"] for line in lines if line.endswith("}"))


def test_what_is_sent_comes_out_as_verdicts_and_metrics(tmp_path: Path) -> None:
    with running(tmp_path) as service, sender(port_of(service)) as send:
        send(TRACES, request(1))
        send(LOGS, logs(log("done", 1, 1), log("nobody's")))
        assert eventually(lambda: len(written(tmp_path)) == 5)
        assert service._health.answer("/readyz") == (200, "ready")
    assert set(written(tmp_path).values()) == {1}


def test_one_bad_span_is_reported_and_the_others_count(tmp_path: Path) -> None:
    bad = span(9, 9)
    bad[1]["trace_id"] = b"short"
    with running(tmp_path) as service, sender(port_of(service)) as send:
        answer = ExportTraceServiceResponse.FromString(send(TRACES, traces(span(1, 1), bad)))
        assert answer.partial_success.rejected_spans == 1
        assert eventually(lambda: len(written(tmp_path)) == 1)


@pytest.mark.slow
def test_a_stopped_service_goes_on_with_its_open_chains(tmp_path: Path) -> None:
    long = config(join={"wait_initial_s": 3, "wait_min_s": 3})
    with running(tmp_path, long) as service, sender(port_of(service)) as send:
        send(TRACES, request(1))
    assert not written(tmp_path)
    with running(tmp_path, long):
        assert eventually(lambda: len(written(tmp_path)) == 5)


def test_what_was_acknowledged_survives_a_crash_and_is_said_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    with running(first) as service, sender(port_of(service)) as send:
        send(TRACES, request(1))
        assert eventually(lambda: len(written(first)) == 5)
        send(TRACES, request(100))
        shutil.copytree(first, second)  # as the disk was when the power went: no checkpoint, no farewell
    with running(second):
        assert eventually(lambda: len(written(second)) == 10)
    assert set(written(second).values()) == {1}


@pytest.mark.slow
def test_a_checkpoint_that_fits_no_more_means_a_cold_start_not_a_failure(tmp_path: Path) -> None:
    with running(tmp_path) as service, sender(port_of(service)) as send:
        send(TRACES, request(1, 50))
    smaller = config(join={"chains_max": 10, "records_max": 20})
    with running(tmp_path, smaller) as service, sender(port_of(service)) as send:
        send(TRACES, request(1000, 2))
        assert eventually(lambda: f"{1000:032x}" in written(tmp_path))


def shown(service: Service, name: str, **labels: str) -> float | None:
    """A sample as `/metrics` has it."""
    return service.telemetry.registry.get_sample_value(f"spanchain_{name}", labels)


def test_the_journal_and_its_refusals_are_in_the_metrics(tmp_path: Path) -> None:
    settings = config(journal={"bytes_max": 1 << 20, "segment_bytes_max": 1 << 20})
    with running(tmp_path, settings) as service, sender(port_of(service)) as send:
        send(TRACES, request(1))
        assert eventually(lambda: (shown(service, "journal_appended_total") or 0) >= 1)
        assert shown(service, "journal_appended_bytes_total") == len(request(1))
        assert shown(service, "journal_size_bytes") == service.journal.size_bytes
        assert shown(service, "journal_failures_total") == 0
        with pytest.raises(grpc.RpcError, match="limit"):
            send(LOGS, logs(log("x" * (2 << 20), 1, 1)))
        assert eventually(
            lambda: shown(service, "requests_refused_total", transport="grpc", reason="journal_full") == 1
        )
        assert eventually(lambda: shown(service, "journal_failures_total") == 1)


def test_names_without_room_are_in_the_metrics(tmp_path: Path) -> None:
    settings = config(decode={"events_max": 16})
    with running(tmp_path, settings) as service, sender(port_of(service)) as send:
        send(TRACES, traces(*(span(1, n + 1, name=f"op {chr(0x4E00 + n)}") for n in range(20))))
        assert eventually(lambda: shown(service, "names_overflow_total", list="events") == 16)
        assert shown(service, "names_overflow_total", list="services") == 0
        assert shown(service, "elements_overflow_total", detector="online") == 0


def test_a_damaged_checkpoint_is_counted_and_the_start_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as service, sender(port_of(service)) as send:
        send(TRACES, request(1))
        assert eventually(lambda: len(written(tmp_path)) == 5)
    (newest,) = (tmp_path / "journal").glob("checkpoint-*.bin")
    newest.write_bytes(newest.read_bytes()[:-1])
    with running(tmp_path) as service:
        assert eventually(lambda: shown(service, "checkpoints_total", outcome="corrupt") == 1)
        assert service._health.answer("/readyz") == (200, "ready")
    assert set(written(tmp_path).values()) == {1}


def test_what_was_said_in_silence_is_past_for_a_start_whose_clock_was_set_back(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    with running(first) as service, sender(port_of(service)) as send:
        send(TRACES, request(1))
        assert eventually(lambda: len(written(first)) == 5)  # half a second later, and nothing else has come
        said_ns = service.engine.now_ns
        shutil.copytree(first, second)  # killed
    service = Service(config(), second, clock=lambda: time.time_ns() - 3600 * 1_000_000_000)
    service.start()
    try:
        assert service.journal.last_arrival_ns >= said_ns  # from which its clock goes on
        with sender(port_of(service)) as send:
            send(TRACES, request(1))  # these chains are closed, whatever the machine's clock says
        assert eventually(lambda: service.engine.joiner.counters()["late_spans"] == 10)
    finally:
        service.stop()
    assert set(written(second).values()) == {1}


def test_a_full_backlog_is_a_retryable_refusal() -> None:
    intake = Intake(10, time.time_ns)
    payload = Payload(Signal.TRACES, "default", b"x" * 11, 0)
    with intake.arriving(payload) as stamped:
        intake.put(1, stamped)
    with pytest.raises(Exception, match="behind") as refused, intake.arriving(payload):
        pass
    assert refused.value.retry_after_s >= 1  # type: ignore[attr-defined]
    assert len(intake.take(0)[0]) == 1
    with intake.arriving(payload):
        pass


def test_engine_time_waits_for_a_request_that_is_being_written() -> None:
    now = [100]
    intake = Intake(1000, lambda: now[0])
    with intake.arriving(Payload(Signal.TRACES, "default", b"", 0)) as stamped:
        assert stamped.arrival_ns == 100
        now[0] = 500
        assert intake.take(0)[1] == 100
    assert intake.take(0)[1] == 500


def test_a_taken_port_is_named_in_the_error(tmp_path: Path) -> None:
    with running(tmp_path / "a") as service:
        taken = {"grpc": {"endpoint": f"127.0.0.1:{port_of(service)}"}, "http": {"endpoint": "127.0.0.1:0"}}
        with pytest.raises(StartError, match=r"receivers\.grpc"):
            Service(config(receivers=taken), tmp_path / "b").start()


def test_an_open_address_without_authentication_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"0\.0\.0\.0"):
        Service(config(receivers={"grpc": {"endpoint": "0.0.0.0:0"}}), tmp_path).start()


def test_two_services_do_not_share_a_data_folder(tmp_path: Path) -> None:
    with running(tmp_path), pytest.raises(StartError, match="journal"):
        Service(config(), tmp_path).start()


@pytest.mark.slow
def test_kill_nine_in_mid_stream_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Five kills at random moments under load; every acknowledged trace has one verdict at the end."""
    acknowledged = ended_under_load(tmp_path, signal.SIGKILL, times=5)
    assert len(acknowledged) > 100
    assert set(written(tmp_path / "data").values()) == {1}


@pytest.mark.slow
def test_sigterm_under_load_ends_in_order_and_loses_nothing(tmp_path: Path) -> None:
    acknowledged = ended_under_load(tmp_path, signal.SIGTERM, times=2)
    assert len(acknowledged) > 100
    assert set(written(tmp_path / "data").values()) == {1}


def ended_under_load(folder: Path, how: signal.Signals, times: int) -> set[str]:
    """The traces that a service acknowledged which was ended so many times while traces came in; it has a verdict on
    each when this returns."""
    grpc_port, http_port, metrics, health = free_ports(4)
    settings = folder / "spanchain.yaml"
    settings.write_text(
        json.dumps(
            {
                "receivers": {
                    "grpc": {"endpoint": f"127.0.0.1:{grpc_port}"},
                    "http": {"endpoint": f"127.0.0.1:{http_port}"},
                },
                "join": {"wait_initial_s": 1, "wait_min_s": 1},
                "exporters": {"prometheus": {"port": metrics}, "file": {"enabled": True, "verdicts": "all"}},
                "service": {"health": {"port": health}},
                "journal": {"checkpoint_interval_s": 1},
            }
        )
    )
    data, chance, acknowledged, next_trace = folder / "data", random.Random(4), set[str](), 1

    def start() -> subprocess.Popen[bytes]:
        command = [Path(sys.executable).with_name("spanchain"), "serve", "--config", settings, "--data", data]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert eventually(lambda: answers(f"http://127.0.0.1:{health}/readyz"), 60)
        return process

    for _ in range(times):
        process = start()
        ending = threading.Timer(chance.uniform(0.5, 3.0), process.send_signal, [how])
        ending.start()
        with sender(grpc_port) as send, suppress(grpc.RpcError):
            while True:
                send(TRACES, request(next_trace))
                acknowledged |= {f"{trace:032x}" for trace in range(next_trace, next_trace + 5)}
                next_trace += 5
        next_trace += 5  # the one that failed may be in the journal all the same
        assert process.wait(30) == (0 if how == signal.SIGTERM else -how)
        ending.join()
    process = start()
    assert eventually(lambda: acknowledged <= set(written(data)), 60)
    process.terminate()
    assert process.wait(30) == 0
    return acknowledged


def answers(url: str) -> bool:
    try:
        return bool(http_get(url))
    except OSError:
        return False
