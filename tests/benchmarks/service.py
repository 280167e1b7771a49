"""The service end to end over gRPC, per CPU second, against the Collector with `groupbytrace`, on the same requests.

How it is measured. Both programs run side by side, as processes of their own, with what they ship as defaults, and get
the same requests in turns, a few at a time, so that whatever else the machine does meets both alike. A request holds
4,096 spans, or the logs that go with them: as many as the shipped `otel-collector.yaml` has a Collector wait for; and
once more 400, as from one with little to do. CPU time is user plus system, until the program has nothing more to do:
spanchain has judged every chain, the Collector has released every trace (wait_duration 1 s). spanchain decodes spans
and logs, joins them, runs all detectors and writes a journal, synced; the Collector groups spans by trace id and drops
them and the logs. Each round gives one ratio; the one in the middle counts. The start is from exec to `/readyz`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import yaml

from collector_processor.model import Signal
from tests.benchmarks.payloads import METHODS
from tests.e2e import components
from tests.e2e.processes import Process, Processes, free_ports, http_get
from tests.e2e.site import SPANCHAIN
from tests.soak.load import Payments

TRACES = {"4,096 spans": 512, "400 spans": 50}  # in a pair of requests
TURN = 8192  # traces that one program gets before the other does
ROUND = 4  # turns of each
ROUNDS = 5
WAIT_S = 2.0  # for further records of a chain, in these measurements


def cpu_seconds(pid: int) -> float:
    """User and system time of process `pid`, from its clock, which is finer than /proc."""
    return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of the process, as clock_getcpuclockid(3) makes it


def peak_mib(pid: int) -> float:
    """Greatest resident memory of process `pid` so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def send(address: str, batches: list[tuple[bytes, bytes]]) -> None:
    """Sends each pair of requests, traces and logs, four pairs at a time; raises when one is refused."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(4) as pool:
        calls = [channel.unary_unary(METHODS[signal]) for signal in (Signal.TRACES, Signal.LOGS)]
        list(pool.map(lambda pair: [call(data, timeout=60) for call, data in zip(calls, pair, strict=True)], batches))


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


def total(metrics: str, name: str) -> float:
    """Sum over all series of the counter `name`."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(name + "{"))


@contextmanager
def collecting(folder: Path) -> Iterator[tuple[Process, str]]:
    """The Collector with `groupbytrace` on the spans; with the address of its receiver."""
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
        yield process, f"127.0.0.1:{port}"


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


@dataclass(frozen=True, slots=True)
class Compared:
    """Records a CPU second of both in the round whose ratio is in the middle, and their greatest memory."""

    ours: float
    theirs: float
    our_mib: float
    their_mib: float

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs


def compare(traces_a_request: int, rounds: int = ROUNDS) -> Compared:
    """Both programs, after a round that is not counted."""
    payments = Payments(traces_a_request, every_us=1e6 * WAIT_S / TURN)
    rates, sent = [], 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        (Path(name) / "collector").mkdir()
        ours, our_address, url = stack.enter_context(serving(Path(name) / "spanchain"))
        theirs, their_address = stack.enter_context(collecting(Path(name) / "collector"))
        for _ in range(rounds + 1):
            before = [cpu_seconds(process.pid) for process in (ours, theirs)]
            for turn in range(ROUND):
                count = TURN // traces_a_request
                batches = [payments.batch(sent + number, time.time_ns()) for number in range(count)]
                sent += count
                for address in (our_address, their_address)[:: 1 if turn % 2 else -1]:
                    send(address, batches)
            judged = partial(_has_judged, url, sent * traces_a_request)
            ours.wait_for("all chains", judged, 300.0, 0.5)
            theirs.wait_for("it to be done", _Idle(theirs.pid), 300.0, 0.5)
            used = [cpu_seconds(process.pid) for process in (ours, theirs)]
            records = ROUND * count * payments.records
            rates.append([records / (after - then) for after, then in zip(used, before, strict=True)])
        middle = sorted(rates[1:], key=lambda pair: pair[0] / pair[1])[rounds // 2]
        return Compared(*middle, peak_mib(ours.pid), peak_mib(theirs.pid))


def _has_judged(url: str, chains: int) -> bool:
    return total(http_get(url), "spanchain_chains_total") >= chains
