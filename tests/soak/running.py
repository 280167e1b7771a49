"""What the long tests look at in a running spanchain: its counters, its memory, and that each record is accounted for.

How it works. Counters come from `/metrics`, memory from `/proc`. A record that was acknowledged is in a closed
chain, in an open one, or in one of the counters of what became of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.processes import Process, Processes, free_ports, http_get
from tests.e2e.site import SPANCHAIN, merged

SERIES = re.compile(r"^(spanchain_\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Scrape:
    """All series of one look at `/metrics`."""

    series: list[tuple[str, dict[str, str], float]]

    def sum(self, name: str, **labels: str) -> float:
        """The sum over all series of `name` that have these labels."""
        return sum(
            value
            for found, its, value in self.series
            if found == f"spanchain_{name}" and all(its.get(key) == wanted for key, wanted in labels.items())
        )

    def buckets(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """(upper bound, observations below it) of a histogram, over all its series that have these labels."""
        totals = dict[float, float]()
        for found, its, value in self.series:
            if found == f"spanchain_{name}_bucket" and all(its.get(key) == wanted for key, wanted in labels.items()):
                bound = float(its["le"])
                totals[bound] = totals.get(bound, 0.0) + value
        return sorted(totals.items())


def scrape(url: str) -> Scrape:
    """What `/metrics` shows now."""
    found = []
    for line in http_get(url, timeout_s=30).splitlines():
        match = SERIES.match(line)
        if match:
            found.append((match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))
    return Scrape(found)


VERDICTS = "verdict_latency_seconds"  # from a chain's last record to its verdict
DELIVERY = "exporter_delay_seconds"  # from there until a sink has taken it


def quantile(before: Scrape, after: Scrape, share: float, name: str = VERDICTS, **labels: str) -> float:
    """The time, s, below which `share` of the observations between two looks lie; inside of a bucket they are taken to
    lie evenly, as Prometheus does."""
    earlier = dict(before.buckets(name, **labels))
    between = [(bound, count - earlier.get(bound, 0.0)) for bound, count in after.buckets(name, **labels)]
    wanted, below, least = share * between[-1][1], 0.0, 0.0
    for bound, count in between:
        if count >= wanted and count > below:
            return least + (bound - least) * (wanted - below) / (count - below) if bound < math.inf else least
        least, below = bound, count
    return math.nan


def resident_mib(process: Process) -> float:
    """Memory that the program holds now."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def settled(process: Process, url: str, received: float, timeout_s: float = 300.0) -> Scrape:
    """Waits until `received` records are in and no chain is open; how the counters are then."""

    def look() -> Scrape | None:
        now = scrape(url)
        is_done = now.sum("records_received_total") >= received and not now.sum("open_chains")
        return now if is_done else None

    return process.wait_for("every chain judged", look, timeout_s, poll_s=1.0)


def slope(samples: list[tuple[float, float]]) -> float:
    """The least-squares slope of (x, y) points, in y per x."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread


@dataclass(frozen=True, slots=True)
class Running:
    """A spanchain that serves on ports of its own."""

    process: Process
    address: str  # of its gRPC receiver
    metrics: str
    health: str

    def readiness(self) -> str:
        """What `/readyz` says; raises `OSError` while it does not say that requests are taken."""
        return http_get(f"{self.health}/readyz").strip()


def serve(processes: Processes, folder: Path, overrides: Mapping[str, Any]) -> Running:
    """Starts `spanchain serve` with the defaults and `overrides`; returns when it takes requests."""
    grpc_port, http_port, metrics, health = free_ports(4)
    addresses = {
        "receivers": {
            "grpc": {"endpoint": f"127.0.0.1:{grpc_port}"},
            "http": {"endpoint": f"127.0.0.1:{http_port}"},
        },
        "exporters": {"prometheus": {"port": metrics}},
        "service": {"health": {"port": health}},
    }
    path = folder / "spanchain.yaml"
    path.write_text(yaml.safe_dump(merged(addresses, overrides)))
    process = processes.start("spanchain", SPANCHAIN, "serve", "--config", path, "--data", folder / "data")
    running = Running(
        process, f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics}/metrics", f"http://127.0.0.1:{health}"
    )
    process.wait_for("it takes requests", running.readiness, 180.0, poll_s=0.02)
    return running
