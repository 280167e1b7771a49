"""The engine alone, in memory: against the bare protobuf parse, against the naive way, and as open chains grow.

How it is measured. CPU time of this process's one thread, everything compared in one run. What is compared takes turns,
each for about a second, and of the rounds the one whose ratio is in the middle counts: a machine is faster in one
second than in the next. Every engine is a fresh one, which has first sights of every name to pay for. A *bare parse* is
`FromString` of the official protobuf classes on the same requests, nothing read.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.config import Config
from collector_processor.engine import Engine
from collector_processor.model import Payload, Signal
from detectors.registry import DETECTORS
from tests.benchmarks.payloads import RECORDS_A_TRACE, Mix, payment_mix

ROUNDS = 5
TURN_S = 1.0
OPEN_ROUNDS, OPEN_TURN = 9, 40  # of requests to engines with chains open, pairs of 900 records
REQUESTS: dict[Signal, Any] = {Signal.TRACES: ExportTraceServiceRequest, Signal.LOGS: ExportLogsServiceRequest}


def cpu_s(work: Callable[[], Any]) -> float:
    """CPU seconds of `work`, the mean of as many as fill a second, without the garbage collector in between."""
    gc.collect()
    gc.disable()
    started, count = time.thread_time(), 0
    while count == 0 or time.thread_time() - started < TURN_S:
        work()
        count += 1
    taken = (time.thread_time() - started) / count
    gc.enable()
    return taken


def parse(mix: Mix) -> None:
    """The bare parse."""
    for payload in mix.payloads:
        REQUESTS[payload.signal].FromString(payload.data)


def run_engine(mix: Mix, config: Config) -> int:
    """Verdicts that an engine gives for all of `mix`."""
    engine = Engine(config)
    verdicts = 0
    for payload in mix.payloads:
        verdicts += sum(map(len, engine.process((payload,), payload.arrival_ns).verdicts))
    return verdicts + sum(map(len, engine.flush().verdicts))


def only(*detectors: str) -> Config:
    """The default config with `detectors` alone."""
    return Config.model_validate({"detectors": {name: {"enabled": name in detectors} for name in DETECTORS}})


def against_parse(mix: Mix) -> dict[str, float]:
    """CPU time of the engine, with one detector and with all, as multiples of the bare parse."""
    run_engine(mix, Config())  # compiles what is not compiled yet
    found = []
    for _ in range(ROUNDS):
        bare = cpu_s(lambda: parse(mix))
        found.append(
            (bare, cpu_s(lambda: run_engine(mix, only("chain_sequence"))), cpu_s(lambda: run_engine(mix, Config())))
        )
    bare, one, everything = np.array(found).T
    return {
        "records": mix.records,
        "parse_records_s": mix.records / float(np.median(bare)),
        "one_detector": float(np.median(one / bare)),
        "all_detectors": float(np.median(everything / bare)),
        "engine_records_s": mix.records / float(np.median(everything)),
    }


def against_naive(traces: int = 300) -> float:
    """Throughput of the engine over that of the naive way, on the same payments."""
    from tests.benchmarks.naive import run_naive

    mix, small = payment_mix(20_000), payment_mix(traces)
    run_engine(mix, Config())
    ratios = []
    for _ in range(ROUNDS):
        ours = mix.records / cpu_s(lambda: run_engine(mix, Config()))
        ratios.append(ours / (small.records / cpu_s(lambda: run_naive(small))))
    return float(np.median(ratios))


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_chains(counts: tuple[int, ...] = (10_000, 1_000_000)) -> dict[int, tuple[float, float]]:
    """Per number of open chains: (bytes a chain of 18 records takes, CPU ns a record costs there).

    The chains are opened by payloads that bear other trace ids each time: the ids of one prepared request are rewritten
    in place. The cost is that of decoding and joining more records while so many chains are open, in turns.
    """
    mix = payment_mix(50)
    arrival_ns = mix.payloads[0].arrival_ns
    fresh, engines, taken = _Renamed(mix), [], []
    for count in counts:
        engine = Engine(Config.model_validate({"join": {"wait_initial_s": 30, "wait_max_s": 30}}))
        engine.process(fresh.payloads(), arrival_ns)
        before = resident_bytes()
        for _ in range(count // 50 - 1):
            engine.process(fresh.payloads(), arrival_ns)
        engines.append(engine)
        taken.append((resident_bytes() - before) / (count - 50))
    costs = []
    for _ in range(OPEN_ROUNDS):
        more = [fresh.payloads() for _ in range(OPEN_TURN)]
        costs.append([_cost_ns(engine, more, arrival_ns) for engine in engines])
    return dict(zip(counts, zip(taken, np.median(costs, axis=0).tolist(), strict=True), strict=True))


def _cost_ns(engine: Engine, requests: list[list[Payload]], now_ns: int) -> float:
    """CPU time a record."""
    started = time.thread_time()
    for payloads in requests:
        engine.process(payloads, now_ns)
    return (time.thread_time() - started) / (len(requests) * 50 * RECORDS_A_TRACE) * 1e9


class _Renamed:
    """The requests of a small mix with the trace ids replaced by new ones at each call."""

    def __init__(self, mix: Mix) -> None:
        self._mix = mix
        traces = ExportTraceServiceRequest.FromString(mix.payloads[0].data)
        spans = traces.resource_spans[0].scope_spans[0].spans
        ids = [span.trace_id for span in spans]
        self._places = [[np.array(_occurrences(payload.data, trace)) for trace in ids] for payload in mix.payloads]
        self._chance = np.random.default_rng(7)

    def payloads(self) -> list[Payload]:
        """The two requests, with trace ids that were never seen."""
        new = self._chance.integers(0, 256, (len(self._places[0]), 16), np.uint8)
        out = []
        for payload, places in zip(self._mix.payloads, self._places, strict=True):
            data = np.frombuffer(payload.data, np.uint8).copy()
            for trace, at in enumerate(places):
                data[at[:, None] + np.arange(16)] = new[trace]
            out.append(Payload(payload.signal, payload.tenant, data.tobytes(), payload.arrival_ns))
        return out


def _occurrences(data: bytes, needle: bytes) -> list[int]:
    out, at = [], data.find(needle)
    while at >= 0:
        out.append(at)
        at = data.find(needle, at + 1)
    return out
