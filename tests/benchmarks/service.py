"""The service end to end over gRPC, per CPU second, against the Collector with `groupbytrace`, on the same requests.

How it is measured. Each program runs alone as a process of its own, with what it ships as defaults; this process sends
ready-made requests over one connection per signal, four at a time. CPU time is user plus system of the program, from
/proc, from the first request until it has nothing more to do: spanchain has judged every chain, the Collector has
released every trace (wait_duration 1 s). spanchain decodes spans and logs, joins them, runs all detectors and writes a
journal; the Collector groups spans by trace id and drops them and the logs. They take turns, and of three rounds the
middle one counts. The start is from exec to `/readyz`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import yaml

from collector_processor.model import Signal
from tests.benchmarks.payloads import RECORDS_A_TRACE, Mix, payment_mix
from tests.e2e import components
from tests.e2e.processes import Process, Processes, free_ports, http_get
from tests.e2e.site import SPANCHAIN

METHODS = {
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
WARM_TRACES = 1000
WAIT_S = 2.0  # for further records of a chain, in these measurements


@dataclass(frozen=True, slots=True)
class Measured:
    """Records a CPU second of the program, and its greatest memory."""

    records_cpu_s: float
    peak_mib: float


def cpu_seconds(pid: int) -> float:
    """User and system time that process `pid` has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """Greatest resident memory of process `pid` so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def send(address: str, mix: Mix, records_s: float = float("inf")) -> None:
    """Sends every request of `mix`, up to four at a time, not faster than `records_s`; raises when one is refused."""
    begun, each_s = time.monotonic(), mix.records / len(mix.payloads) / records_s
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(4) as pool:
        calls = {signal: channel.unary_unary(path) for signal, path in METHODS.items()}

        def deliver(number: int) -> None:
            time.sleep(max(0.0, begun + number * each_s - time.monotonic()))
            payload = mix.payloads[number]
            calls[payload.signal](payload.data, timeout=60)

        list(pool.map(deliver, range(len(mix.payloads))))


def measured(process: Process, address: str, mix: Mix, done: Callable[[], bool]) -> Measured:
    """Sends `mix` and waits until it is `done`; before that a little of the same, so that all code is loaded."""
    send(address, payment_mix(WARM_TRACES, seed=2, t0=time.time_ns()))
    time.sleep(WAIT_S + 2.0)
    before = cpu_seconds(process.pid)
    send(address, mix)
    process.wait_for("it to be done", done, 300.0, 0.5)
    return Measured(mix.records / (cpu_seconds(process.pid) - before), peak_mib(process.pid))


@contextmanager
def serving(folder: Path, durability: str = "fsync") -> Iterator[tuple[Process, str, str]]:
    """The service, ready; with the address of its gRPC receiver and the URL of its metrics."""
    grpc_port, http_port, metrics, health = free_ports(4)
    config = {
        "receivers": {
            "grpc": {"endpoint": f"127.0.0.1:{grpc_port}"},
            "http": {"endpoint": f"127.0.0.1:{http_port}"},
        },
        "join": {"wait_initial_s": WAIT_S, "wait_min_s": WAIT_S, "wait_max_s": WAIT_S},
        "exporters": {"prometheus": {"port": metrics}},
        "service": {"health": {"port": health}},
        "journal": {"durability": durability},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "spanchain.yaml"
    path.write_text(yaml.safe_dump(config))
    with Processes(folder) as processes:
        process = processes.start("spanchain", SPANCHAIN, "serve", "--config", path, "--data", folder / "data")
        process.wait_http(f"http://127.0.0.1:{health}/readyz", 120)
        yield process, f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics}/metrics"


def spanchain(folder: Path, mix: Mix, durability: str = "fsync") -> Measured:
    """The service."""
    with serving(folder, durability) as (process, address, url):
        chains = mix.records / RECORDS_A_TRACE + WARM_TRACES
        return measured(process, address, mix, lambda: total(http_get(url), "spanchain_chains_total") >= chains)


def total(metrics: str, name: str) -> float:
    """Sum over all series of the counter `name`."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(name + "{"))


def collector(folder: Path, mix: Mix) -> Measured:
    """The Collector with `groupbytrace` on the spans."""
    (port,) = free_ports(1)
    config = {
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{port}"}}}},
        "processors": {"groupbytrace": {"wait_duration": "1s", "num_traces": 1_000_000}},
        "exporters": {"nop": None},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {
                "traces": {"receivers": ["otlp"], "processors": ["groupbytrace"], "exporters": ["nop"]},
                "logs": {"receivers": ["otlp"], "exporters": ["nop"]},
            },
        },
    }
    path = folder / "collector.yaml"
    path.write_text(yaml.safe_dump(config))
    binary = components.find("collector")
    assert binary is not None, components.advice("collector")
    with Processes(folder) as processes:
        process = processes.start("collector", binary, f"--config={path}")
        process.wait_for("its port", lambda: _connects(port))
        idle = _Idle(process.pid)
        return measured(process, f"127.0.0.1:{port}", mix, idle)


def _connects(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=5)
    return True


class _Idle:
    """Whether a program has used no CPU to speak of for two seconds."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._last = (time.monotonic(), cpu_seconds(pid))

    def __call__(self) -> bool:
        now, used = time.monotonic(), cpu_seconds(self._pid)
        if used - self._last[1] > 0.03:
            self._last = (now, used)
        return now - self._last[0] >= 2.0


def start_s(rounds: int = 3) -> float:
    """Seconds from exec to `/readyz`, the best of `rounds`: the first may find nothing in the page cache."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            begun = time.monotonic()
            with serving(Path(name) / str(number)):
                found.append(time.monotonic() - begun)
    return min(found)


def compare(traces: int = 40_000, rounds: int = 3) -> dict[str, float]:
    """Both programs in turns, on the same payments: the round whose ratio is the middle one."""
    mix = payment_mix(traces, t0=time.time_ns())
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            found.append((spanchain(folder / "spanchain", mix), collector(folder, mix)))
    ours, theirs = sorted(found, key=lambda pair: pair[0].records_cpu_s / pair[1].records_cpu_s)[rounds // 2]
    return {
        "spanchain_records_cpu_s": ours.records_cpu_s,
        "collector_records_cpu_s": theirs.records_cpu_s,
        "ratio": ours.records_cpu_s / theirs.records_cpu_s,
        "spanchain_peak_mib": ours.peak_mib,
        "collector_peak_mib": theirs.peak_mib,
    }
