"""From the close of a chain to its verdict, at a steady 40,000 records a second: percentiles over every chain.

How it is measured. A process of its own runs the service with what it ships as defaults and an exporter more, which
notes for each verdict how long ago its chain was closed: engine time at which the wait for further records was over.
This process sends payments over gRPC, for a while to warm up, then for longer than the quarantine lasts, so that epochs
are judged and learned meanwhile. Both share the machine's cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from collector_processor.config_file import load
from collector_processor.model import I64, Incident, VerdictBatch
from collector_processor.runtime import Service
from tests.benchmarks.payloads import RECORDS_A_TRACE
from tests.benchmarks.service import WAIT_S
from tests.e2e.processes import free_ports
from tests.soak.load import Payments, Sender

RECORDS_S = 40_000.0
WARM_S, SECONDS = 15.0, 80.0
PERCENTILES = (50, 99)


class Latencies:
    """An exporter that notes how long after its close each chain's verdict was told, in nanoseconds."""

    name = "latencies"

    def __init__(self) -> None:
        self.batches: list[I64] = []

    def start(self) -> None: ...

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        self.batches.append(time.time_ns() - verdicts.chains.closed_ns)

    def flush(self, deadline_s: float) -> bool:
        return True

    def checkpointed(self) -> None: ...

    def shutdown(self, deadline_s: float) -> None: ...


def percentiles_s(seconds: float = SECONDS) -> dict[str, float]:
    """{"p50": …, "p99": …} in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            sender = Sender(process.stdout.readline().strip(), RECORDS_S, Payments(every_us=450)).start()
            time.sleep(WARM_S)
            print("count", file=process.stdin, flush=True)
            time.sleep(seconds)
            print("tell", file=process.stdin, flush=True)
            result: dict[str, float] = json.loads(process.stdout.readline())
            sender.stop()
            process.communicate(timeout=60)
    assert result.pop("chains") * RECORDS_A_TRACE >= 0.95 * RECORDS_S * seconds
    return result


def serve(folder: Path) -> None:
    """Runs the service until its input ends; says where it listens, and what it measured between two lines."""
    grpc, http, metrics, health = free_ports(4)
    path = folder / "spanchain.yaml"
    config = {
        "receivers": {"grpc": {"endpoint": f"127.0.0.1:{grpc}"}, "http": {"endpoint": f"127.0.0.1:{http}"}},
        "join": {"wait_initial_s": WAIT_S, "wait_min_s": WAIT_S, "wait_max_s": WAIT_S},
        "exporters": {"prometheus": {"port": metrics}},
        "service": {"health": {"port": health}},
    }
    path.write_text(yaml.safe_dump(config))
    latencies = Latencies()
    service = Service(load(path), folder / "data", [latencies])
    service.start()
    while not service.ready:
        time.sleep(0.05)
    print(f"127.0.0.1:{grpc}", flush=True)
    sys.stdin.readline()
    latencies.batches.clear()
    sys.stdin.readline()
    found = np.concatenate(latencies.batches) / 1e9
    result = {f"p{percent}": float(np.percentile(found, percent)) for percent in PERCENTILES}
    print(json.dumps({"chains": found.size} | result), flush=True)
    sys.stdin.readline()
    service.stop()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
