"""Load for the long tests: payments as fast as they are asked for, each with an id and a time of its own.

How it works. A few requests of the benchmarks' payment mix are serialised once, and it is noted where in the bytes the
trace ids and the times stand; each further request is a copy with these overwritten. So one core makes some millions of
records a second, far more than anything here takes. The first eight bytes of a trace id are the number of its batch.
A `Sender` keeps to a rate, asks again until it is acknowledged, and remembers every answer.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.model import Signal
from tests.benchmarks.payloads import METHODS, RECORDS_A_TRACE, T0, payment_mix

LOGS_A_TRACE = 10
RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
"""What a sender may answer by coming again: the codes that OTLP names, and no answer in time."""


@dataclass(frozen=True, slots=True)
class Template:
    """One serialised request, and where in it the trace ids and the times stand."""

    data: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int64]  # [n, 8]: places of the first half of each trace id
    times: npt.NDArray[np.int64]  # [n, 8]

    def filled(self, batch: int, later_ns: int) -> bytes:
        """The request as number `batch`, all its times `later_ns` later."""
        data = self.data.copy()
        data[self.ids] = np.frombuffer(batch.to_bytes(8, "big"), np.uint8)
        times = np.ascontiguousarray(data[self.times]).view(np.uint64) + np.uint64(later_ns)
        data[self.times] = times.view(np.uint8)
        return data.tobytes()


class Payments:
    """Batches of `traces` payments: `batch(number)` gives the pair of requests, `trace_ids(number)` what is in it."""

    def __init__(self, traces: int = 50, templates: int = 8, every_us: float = 200.0, seed: int = 3) -> None:
        self.traces = traces
        self.records = traces * RECORDS_A_TRACE
        mix = payment_mix(traces * templates, per_request=traces, every_ms=every_us / 1000, seed=seed)
        self._begins = [T0 + number * int(traces * every_us * 1000) for number in range(templates)]
        self._spans = [_template(payload.data, Signal.TRACES) for payload in mix.payloads[0::2]]
        self._logs = [_template(payload.data, Signal.LOGS) for payload in mix.payloads[1::2]]
        self._lows = [_lows(payload.data) for payload in mix.payloads[0::2]]

    def batch(self, number: int, now_ns: int) -> tuple[bytes, bytes]:
        """The traces and the logs of batch `number`, which began at `now_ns`."""
        kind = number % len(self._spans)
        later = now_ns - self._begins[kind]
        return self._spans[kind].filled(number, later), self._logs[kind].filled(number, later)

    def trace_ids(self, number: int) -> list[str]:
        """The ids in batch `number`, as they are written."""
        return [f"{number:016x}{low}" for low in self._lows[number % len(self._lows)]]


def _template(data: bytes, signal: Signal) -> Template:
    at, ids, times = 0, [], []

    def place(pattern: bytes) -> int:
        nonlocal at
        at = data.index(pattern, at)
        return at + len(pattern)

    if signal == Signal.TRACES:
        for group in ExportTraceServiceRequest.FromString(data).resource_spans:
            for span in group.scope_spans[0].spans:
                ids.append(place(b"\x0a\x10" + span.trace_id) - 16)
                times.append(place(b"\x39" + span.start_time_unix_nano.to_bytes(8, "little")) - 8)
                times.append(place(b"\x41" + span.end_time_unix_nano.to_bytes(8, "little")) - 8)
    else:
        for lines in ExportLogsServiceRequest.FromString(data).resource_logs:
            for record in lines.scope_logs[0].log_records:
                times.append(place(b"\x09" + record.time_unix_nano.to_bytes(8, "little")) - 8)
                ids.append(place(b"\x4a\x10" + record.trace_id) - 16)
    eight = np.arange(8)
    return Template(np.frombuffer(data, np.uint8), np.add.outer(ids, eight), np.add.outer(times, eight))


def _lows(data: bytes) -> list[str]:
    spans = ExportTraceServiceRequest.FromString(data).resource_spans[0].scope_spans[0].spans
    return [span.trace_id[8:].hex() for span in spans]


@dataclass(slots=True)
class Answers:
    """What a sender was told."""

    acknowledged: list[int] = field(default_factory=list)  # batches of which both requests were
    refused: Counter[str] = field(default_factory=Counter)  # answers that ask to come again, by code
    failed: Counter[str] = field(default_factory=Counter)  # any others
    records_taken: int = 0  # in all requests that were acknowledged


class Sender:
    """Sends `records_s` records a second to `address` from a thread of its own, until `stop`.

    patient: ask again until acknowledged. Else a refused batch is given up, as by who produces more than is taken.
    """

    def __init__(self, address: str, records_s: float, payments: Payments, *, patient: bool = True) -> None:
        self.answers = Answers()
        self.payments = payments
        self.sent = 0  # batches begun
        self._address = address
        self._pause_s = payments.records / records_s
        self._patient = patient
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> Sender:
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 120.0) -> Answers:
        """Ends it once all that was begun is answered."""
        self._stopping.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "requests without an answer"
        return self.answers

    def _run(self) -> None:
        begun, first = time.monotonic(), time.time_ns()  # numbers of different runs differ
        underway = threading.Semaphore(16)
        with grpc.insecure_channel(self._address) as channel, ThreadPoolExecutor(16) as pool:
            calls = {signal: channel.unary_unary(path) for signal, path in METHODS.items()}

            def deliver(number: int) -> None:
                spans, logs = self.payments.batch(number, time.time_ns())
                a_trace = RECORDS_A_TRACE - LOGS_A_TRACE
                told = self._ask(lambda: calls[Signal.TRACES](spans, timeout=30), self.payments.traces * a_trace)
                told &= self._ask(lambda: calls[Signal.LOGS](logs, timeout=30), self.payments.traces * LOGS_A_TRACE)
                if told:
                    with self._lock:
                        self.answers.acknowledged.append(number)

            def done(_: Future[None]) -> None:
                underway.release()

            while not self._stopping.is_set() and threading.main_thread().is_alive():
                ahead = begun + self.sent * self._pause_s - time.monotonic()
                if ahead > 0 and self._stopping.wait(ahead):
                    break
                underway.acquire()
                pool.submit(deliver, first + self.sent).add_done_callback(done)
                self.sent += 1

    def _ask(self, call: Callable[[], bytes], records: int) -> bool:
        while True:
            try:
                call()
            except grpc.RpcError as error:
                code = error.code()
                with self._lock:
                    kind = self.answers.refused if code in RETRYABLE else self.answers.failed
                    kind[code.name] += 1
                # A test that failed has not stopped it: then the end of the program does.
                if code not in RETRYABLE or not self._patient or not threading.main_thread().is_alive():
                    return False
                time.sleep(0.2)
            else:
                with self._lock:
                    self.answers.records_taken += records
                return True
