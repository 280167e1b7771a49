"""Receivers start and stop as one: addresses, ports that are taken, and requests that are open while they stop."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from typing import Any

import grpc
import pytest

from collector_processor.config import ReceiversConfig
from collector_processor.decode.repair import clean
from collector_processor.ingest.answers import Counters
from collector_processor.ingest.auth import InsecureAddressError
from collector_processor.ingest.receivers import Receivers
from collector_processor.model import Signal
from tests.collector_processor.ingest.serving import PROTOBUF, serving
from tests.otlp import log, logs
from tests.sinks import eventually

DATA = logs(log("x"))


def receivers(**config: Any) -> Receivers:
    def nothing(*_: Any) -> Any:
        return None

    return Receivers(ReceiversConfig.model_validate(config), nothing, clean, nothing, time.time_ns, Counters())


def test_an_open_address_without_authentication_does_not_start() -> None:
    for transport in ("grpc", "http"):
        with pytest.raises(InsecureAddressError):
            receivers(**{transport: {"endpoint": "0.0.0.0:0"}})


@pytest.mark.parametrize("taken", ["grpc", "http"])
def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_listening(taken: str) -> None:
    other = "http" if taken == "grpc" else "grpc"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        both = receivers(**{taken: {"endpoint": f"127.0.0.1:{port}"}, other: {"endpoint": "127.0.0.1:0"}})
        with pytest.raises(OSError, match=f"receivers.{taken}.endpoint"):
            both.start()
    for server in (both.grpc, both.http):
        assert server is not None
        if server.port:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_two_services_never_share_a_port() -> None:
    with serving() as served:
        second = receivers(grpc={"endpoint": f"127.0.0.1:{served.grpc_port}"}, http={"enabled": False})
        with pytest.raises(OSError, match="cannot listen"):
            second.start()
        second.stop(0)


def test_a_receiver_that_is_off_does_not_listen() -> None:
    with serving(http={"enabled": False}) as served:
        assert served.receivers.http is None
        served.export(Signal.LOGS, DATA)


def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")
    with serving(grpc={"endpoint": "[::1]:0"}, http={"endpoint": "[::1]:0"}) as served:
        with grpc.insecure_channel(f"[::1]:{served.grpc_port}") as channel:
            channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")(DATA, timeout=10)
        connection = http.client.HTTPConnection("::1", served.http_port, timeout=10)
        connection.request("POST", "/v1/logs", DATA, {"content-type": PROTOBUF})
        assert connection.getresponse().status == 200
        connection.close()
        assert len(served.payloads) == 2


def is_closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except OSError:
        return True
    return False


def test_stopping_answers_what_was_taken_and_takes_nothing_more() -> None:
    with serving() as served:
        served.gate.clear()
        answers: list[Any] = []
        open_requests = [
            threading.Thread(target=lambda: answers.append(served.export(Signal.LOGS, DATA))),
            threading.Thread(target=lambda: answers.append(served.post("/v1/logs", DATA)[0])),
        ]
        for request in open_requests:
            request.start()
        assert all(served.entered.acquire(timeout=10) for _ in open_requests)
        grpc_port, http_port = served.grpc_port, served.http_port
        stopping = threading.Thread(target=served.receivers.stop, args=(10,))
        stopping.start()
        assert eventually(lambda: is_closed(grpc_port) and is_closed(http_port))
        assert served.refusal(Signal.LOGS, DATA).code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(OSError, match=r"."):
            served.post("/v1/logs", DATA)
        served.gate.set()
        for request in (*open_requests, stopping):
            request.join(15)
        assert sorted(answers, key=str) == sorted([b"", 200], key=str)
        assert len(served.payloads) == 2


def test_stopping_does_not_wait_longer_than_it_may() -> None:
    with serving() as served:
        served.gate.clear()
        request = threading.Thread(target=lambda: served.refusal(Signal.LOGS, DATA))
        request.start()
        assert served.entered.acquire(timeout=10)
        began = time.monotonic()
        served.receivers.stop(1)
        assert time.monotonic() - began < 4
        served.gate.set()
        request.join(15)


def test_stopping_twice_or_before_starting_is_harmless() -> None:
    never_started = receivers(grpc={"endpoint": "127.0.0.1:0"}, http={"endpoint": "127.0.0.1:0"})
    never_started.stop(1)
    with serving() as served:
        served.receivers.stop(1)
        served.receivers.stop(1)
