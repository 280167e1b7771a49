"""The platform live: what its instances export goes to an OTLP gRPC port, with the time on the wall.

How it works. A loop produces the telemetry of each interval when the interval is over and sends it with the plain gRPC
calls of OTLP, bytes as they are. An answer that may be tried again (UNAVAILABLE and its like) is tried again, as a
Collector would; what cannot be delivered is counted and dropped, because the platform does not wait for its observers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from collector_processor.model import Signal
from collector_processor.simulator.simulator import Simulator

METHODS: Final = {
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
RETRYABLE: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
)
TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class Sent:
    """What became of the telemetry."""

    requests: int = 0
    data_bytes: int = 0
    failed: int = 0


class Sender:
    """One OTLP gRPC client without TLS. Not for use from several threads."""

    def __init__(self, target: str) -> None:
        self.sent = Sent()
        self._channel = grpc.insecure_channel(target)
        self._calls: dict[Signal, Callable[..., Any]] = {
            signal: self._channel.unary_unary(method) for signal, method in METHODS.items()
        }

    def send(self, signal: Signal, data: bytes, attempts: int = 3) -> bool:
        """Deliver one export request; False when it could not be delivered in `attempts`."""
        for attempt in range(attempts):
            try:
                self._calls[signal](data, timeout=TIMEOUT_S, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() not in RETRYABLE or attempt + 1 == attempts:
                    break
                time.sleep(0.2 * 2**attempt)
            else:
                self.sent.requests += 1
                self.sent.data_bytes += len(data)
                return True
        self.sent.failed += 1
        return False

    def close(self) -> None:
        self._channel.close()


def send_live(simulator: Simulator, sender: Sender, until_ns: int, stop: threading.Event, since_ns: int = 0) -> Sent:
    """Send the telemetry of what arrives from `since_ns` to `until_ns` (Unix time) as time passes, or until `stop`."""
    interval_s = simulator.interval_ns / 1e9
    simulator.skip_to(since_ns)
    stop.wait((since_ns - time.time_ns()) / 1e9)
    while not stop.is_set():
        now_ns = min(time.time_ns(), until_ns)
        for signal, data, _ in simulator.payloads(now_ns):
            sender.send(signal, data)
            if stop.is_set():
                break
        if now_ns >= until_ns:
            break
        stop.wait(interval_s - time.time() % interval_s)
    return sender.sent
