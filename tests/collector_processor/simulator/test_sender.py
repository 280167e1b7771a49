"""Telemetry over a real port: what arrives, what is tried again, what is given up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import orjson
import pytest

from collector_processor.model import Signal
from collector_processor.simulator.faults import RECIPES, fault
from collector_processor.simulator.sender import METHODS, Sender, send_live
from collector_processor.simulator.simulator import Simulator
from collector_processor.simulator.traffic import SECOND_NS


@dataclass
class Receiver:
    """An OTLP server that keeps what it gets and refuses as told."""

    port: int
    got: list[tuple[str, bytes]] = field(default_factory=list)
    refusals: list[grpc.StatusCode] = field(default_factory=list)


@pytest.fixture
def receiver():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    found = Receiver(server.add_insecure_port("127.0.0.1:0"))

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            def export(data, context):
                if found.refusals:
                    context.abort(found.refusals.pop(), "refused")
                found.got.append((details.method, data))
                return b""

            return grpc.unary_unary_rpc_method_handler(export)

    server.add_generic_rpc_handlers((Handler(),))
    server.start()
    yield found
    server.stop(None).wait()


@pytest.fixture
def sender(receiver):
    made = Sender(f"127.0.0.1:{receiver.port}")
    yield made
    made.close()


def test_requests_arrive_as_they_are(sender, receiver):
    assert sender.send(Signal.TRACES, b"spans")
    assert sender.send(Signal.LOGS, b"lines")
    assert receiver.got == [(METHODS[Signal.TRACES], b"spans"), (METHODS[Signal.LOGS], b"lines")]
    assert (sender.sent.requests, sender.sent.data_bytes, sender.sent.failed) == (2, 10, 0)


def test_retryable_refusal_is_tried_again(sender, receiver):
    receiver.refusals = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert sender.send(Signal.TRACES, b"spans")
    assert receiver.got == [(METHODS[Signal.TRACES], b"spans")]


def test_permanent_refusal_and_too_many_are_given_up(sender, receiver):
    receiver.refusals = [grpc.StatusCode.INVALID_ARGUMENT]
    assert not sender.send(Signal.TRACES, b"spans")
    receiver.refusals = [grpc.StatusCode.UNAVAILABLE] * 2
    assert not sender.send(Signal.TRACES, b"spans", attempts=2)
    assert not receiver.got
    assert sender.sent.failed == 2


@pytest.mark.slow
def test_live_telemetry_carries_the_time_on_the_wall(sender, receiver):
    start_ns = time.time_ns()
    simulator = Simulator(1, start_ns, rate=40.0, swing=0.0, interval_s=0.1)
    end_ns = start_ns + SECOND_NS
    sent = send_live(simulator, sender, end_ns, threading.Event())
    assert end_ns <= time.time_ns() < end_ns + 2 * SECOND_NS
    expected = [
        (METHODS[signal], data)
        for signal, data, _ in Simulator(1, start_ns, rate=40.0, swing=0.0, interval_s=0.1).payloads(end_ns)
    ]
    assert receiver.got == expected
    assert sent.requests == len(expected) > 10


def test_stop_ends_it_at_once(sender):
    stop = threading.Event()
    stop.set()
    simulator = Simulator(1, time.time_ns(), rate=40.0)
    assert send_live(simulator, sender, time.time_ns() + 60 * SECOND_NS, stop).requests == 0


@pytest.mark.slow
def test_command_sends_with_faults(receiver, repository):
    start_ns = time.time_ns()
    injected = fault(
        next(found for found in RECIPES if (found.kind, found.place) == ("missing_log", "account.debit")),
        1,
        start_ns,
        60.0,
    )
    fields = {name: getattr(injected, name) for name in injected.__slots__}
    arguments = [
        "send",
        f"127.0.0.1:{receiver.port}",
        "--duration",
        "3",
        "--interval",
        "0.5",
        "--swing",
        "0",
        "--faults",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "collector_processor.simulator", *arguments],
        input=orjson.dumps(fields) + b"\n", capture_output=True, timeout=60, check=True,
        cwd=repository, env={**os.environ, "PYTHONPATH": str(Path(repository))},
    )  # fmt: skip
    assert b"0 not delivered" in done.stdout
    lines = b"".join(data for method, data in receiver.got if method == METHODS[Signal.LOGS])
    assert b"credited with" in lines
    assert b"debited with" not in lines
