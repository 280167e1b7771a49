"""As much as the machine takes: every record is accounted for, and memory stays where it is.

How it works. A sender on the same machine offers 100,000 records a second to a real Collector, which hands them on as
`otel-collector.yaml` says: in its batches, through its queue on disk. The way to the backend is left out, for there is
none here, and so is compression, which serves nobody between two programs on one machine. The short form holds the
accounting and the bound of memory; the long form the rate, the growth of memory and the time to the verdict as well.
Growth is looked at from when all that fills by design is full, which is after six minutes; a checkpoint moves memory by
more than a MiB for a while, so nine minutes follow, not four.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from collector_processor.config import Config
from tests.benchmarks.payloads import RECORDS_A_TRACE
from tests.benchmarks.service import cpu_seconds
from tests.e2e.processes import Processes
from tests.e2e.site import Binaries, Site
from tests.soak.load import Payments, Sender
from tests.soak.running import quantile, resident_mib, scrape, settled, slope

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.e2e]

SHORT_S, LONG_S = 15.0, 900.0
RECORDS_S = 100_000.0
WAIT_S = 3.0  # with the goal of 2 s for the verdict it makes a bound of the latency's histogram
WARM_S = 60.0  # of the long form, which the time to the verdict leaves out: first sights, first models
MEMORY_MIB = 1024.0
OVERRIDES = {
    "join": {"wait_initial_s": WAIT_S, "wait_min_s": WAIT_S, "wait_max_s": WAIT_S},
    "exporters": {"otlp": {"enabled": False}},  # its events would go to the backend
}
COLLECTOR = (
    "service::pipelines::traces::exporters: [otlp_grpc/spanchain]",
    "service::pipelines::logs::exporters: [otlp_grpc/spanchain]",
    "exporters::otlp_grpc/spanchain::compression: none",
)


def full_after_s() -> float:
    """When nothing has room left to fill: as many chains have been closed as are remembered, the quarantine is full,
    every detector has ended a slice (and loaded what it then needs), and a checkpoint of all that has been written."""
    config = Config()
    remembered_s = config.join.closed_remembered_max / (RECORDS_S / RECORDS_A_TRACE)
    quarantine_s = config.decide.quarantine_s + config.engine.epoch_s
    slice_s = config.detectors.chain_sequence.slice_s
    return max(remembered_s, quarantine_s, slice_s) + config.journal.checkpoint_interval_s


def test_every_record_is_accounted_for_at_full_load(
    soaking: bool, processes: Processes, binaries: Binaries, tmp_path: Path
) -> None:
    site = Site(processes, tmp_path, binaries)
    spanchain = site.start_spanchain(OVERRIDES)
    collector = site.start_collector("otel-collector.yaml", *COLLECTOR)
    metrics = f"http://{site.address('spanchain_metrics')}/metrics"
    sender = Sender(site.address("apps_grpc"), RECORDS_S, Payments(every_us=180)).start()
    begun, samples = time.monotonic(), []
    first, used_s = scrape(metrics), [cpu_seconds(spanchain.pid), cpu_seconds(collector.pid), time.process_time()]
    while time.monotonic() < begun + (LONG_S if soaking else SHORT_S):
        time.sleep(2.0)
        samples.append((time.monotonic() - begun, resident_mib(spanchain)))
        if soaking and time.monotonic() < begun + WARM_S:
            first = scrape(metrics)
    last, took_s = scrape(metrics), time.monotonic() - begun
    cores = np.subtract([cpu_seconds(spanchain.pid), cpu_seconds(collector.pid), time.process_time()], used_s) / took_s
    answers = sender.stop()
    sent = len(answers.acknowledged) * sender.payments.records
    end = settled(spanchain, metrics, sent)
    peak, p99 = max(mib for _, mib in samples), quantile(first, last, 0.99) - WAIT_S
    full = [(at_s / 60, mib) for at_s, mib in samples if at_s >= full_after_s()]
    growth = slope(full) if soaking else 0.0
    print(
        f"{sent / took_s:.0f} records/s for {took_s:.0f} s, refused {dict(answers.refused)}; memory {peak:.0f} MiB, "
        f"{growth:+.2f} MiB/min from {full_after_s():.0f} s on; verdict p99 at most {p99:.2f} s after the chain is "
        f"complete; cores: spanchain {cores[0]:.2f}, Collector {cores[1]:.2f}, sender {cores[2]:.2f}"
    )
    assert not answers.failed
    assert end.sum("records_received_total") == sent
    assert end.sum("chains_total", outcome="complete") * RECORDS_A_TRACE == sent
    for counter in ("records_rejected_total", "records_late_total", "records_duplicate_total"):
        assert end.sum(counter) == 0, counter
    assert peak <= MEMORY_MIB
    if soaking:
        assert sent / took_s >= 0.99 * RECORDS_S
        assert growth <= 1.0
        assert p99 <= 2.0
