"""A start with very many open chains: requests are taken at once, and what was journalled is read beside that.

How it works. A journal is filled as a service would have, with chains that are still open, and left without a
checkpoint, as kill -9 leaves it. Then spanchain starts on it, twice: first the journal has everything, then, after
another kill, the checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from collector_processor.config import JournalConfig
from collector_processor.journal.wal import Journal
from collector_processor.model import Payload, Signal
from tests.benchmarks.service import cpu_seconds
from tests.e2e.processes import Processes
from tests.soak.load import Payments
from tests.soak.running import Running, resident_mib, scrape, serve

pytestmark = [pytest.mark.slow, pytest.mark.soak]

SHORT_CHAINS, LONG_CHAINS = 20_000, 1_000_000
READY_S = 2.0
OVERRIDES = {"join": {"wait_initial_s": 900.0, "wait_min_s": 900.0, "wait_max_s": 900.0, "age_max_s": 1800.0}}


def journalled(folder: Path, chains: int) -> None:
    """Appends the spans of `chains` payments that have just begun."""
    payments = Payments(every_us=100)
    journal = Journal.open(folder, JournalConfig(durability="os"))
    for number in range(chains // payments.traces):
        now_ns = time.time_ns()
        journal.append(Payload(Signal.TRACES, "default", payments.batch(number + 1, now_ns)[0], now_ns))
    journal.close()


@dataclass(frozen=True, slots=True)
class Start:
    """A service that was started; seconds until it took requests, of these on the CPU, and until all chains were
    open again."""

    running: Running
    ready_s: float
    cpu_s: float
    replayed_s: float

    def __str__(self) -> str:
        return f"after {self.ready_s:.1f} s ({self.cpu_s:.1f} s on the CPU)"


def started(processes: Processes, folder: Path, chains: int) -> Start:
    begun = time.monotonic()
    running = serve(processes, folder, OVERRIDES)
    ready_s, cpu_s = time.monotonic() - begun, cpu_seconds(running.process.pid)
    running.process.wait_for("the end of the replay", lambda: running.readiness() == "ready", 900.0)
    running.process.wait_for("all chains", lambda: scrape(running.metrics).sum("open_chains") == chains, 60.0)
    return Start(running, ready_s, cpu_s, time.monotonic() - begun)


def test_very_many_open_chains_do_not_keep_a_start_from_taking_requests(
    soaking: bool, processes: Processes, tmp_path: Path
) -> None:
    chains = LONG_CHAINS if soaking else SHORT_CHAINS
    (tmp_path / "empty").mkdir()
    empty = started(processes, tmp_path / "empty", 0)
    empty.running.process.kill()
    journalled(tmp_path / "data" / "journal", chains)
    first = started(processes, tmp_path, chains)
    metrics, process = first.running.metrics, first.running.process
    process.wait_for(
        "a checkpoint of all", lambda: scrape(metrics).sum("checkpoints_total", outcome="written") > 0, 300.0
    )
    time.sleep(5.0 if soaking else 1.0)
    process.kill()
    second = started(processes, tmp_path, chains)
    print(
        f"{chains} open chains: takes requests {first}, all read after {first.replayed_s:.1f} s; with a checkpoint "
        f"{second}; with nothing {empty}; memory {resident_mib(second.running.process):.0f} MiB"
    )
    if soaking:
        assert first.ready_s <= READY_S
        assert second.ready_s <= READY_S
