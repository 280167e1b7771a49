"""As much as the machine takes: every record is accounted for, and memory stays where it is.

How it works. A sender on the same machine offers 100,000 records a second, in requests of a Collector's size, and waits
for each answer. The short form holds the accounting and the bound of memory; the long form, ten minutes, the rate, the
growth of memory and the time to the verdict as well.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.processes import Processes
from tests.soak.load import Payments, Sender
from tests.soak.running import quantile, resident_mib, scrape, serve, settled, slope

pytestmark = [pytest.mark.slow, pytest.mark.soak]

SHORT_S, LONG_S = 15.0, 600.0
RECORDS_S = 100_000.0
WAIT_S = 2.0
WARM_S = 60.0  # of the long form, in which tables and caches fill
MEMORY_MIB = 1024.0
OVERRIDES = {"join": {"wait_initial_s": WAIT_S, "wait_min_s": WAIT_S, "wait_max_s": WAIT_S}}


def test_every_record_is_accounted_for_at_full_load(soaking: bool, processes: Processes, tmp_path: Path) -> None:
    running = serve(processes, tmp_path, OVERRIDES)
    sender = Sender(running.address, RECORDS_S, Payments(every_us=180)).start()
    begun, samples = time.monotonic(), []
    first = scrape(running.metrics)
    while time.monotonic() < begun + (LONG_S if soaking else SHORT_S):
        time.sleep(2.0)
        if soaking and time.monotonic() < begun + WARM_S:
            first = scrape(running.metrics)
        else:
            samples.append(((time.monotonic() - begun) / 60, resident_mib(running.process)))
    last, took_s = scrape(running.metrics), time.monotonic() - begun
    answers = sender.stop()
    sent = len(answers.acknowledged) * sender.payments.records
    end = settled(running.process, running.metrics, sent)
    peak, growth, p99 = max(mib for _, mib in samples), slope(samples), quantile(first, last, 0.99) - WAIT_S
    print(
        f"{sent / took_s:.0f} records/s for {took_s:.0f} s, refused {dict(answers.refused)}; memory {peak:.0f} MiB, "
        f"{growth:+.2f} MiB/min; verdict p99 {p99:.2f} s after the chain is complete"
    )
    assert not answers.failed
    assert end.sum("records_received_total") == sent
    assert end.sum("chains_total", outcome="complete") * 18 == sent
    for counter in ("records_rejected_total", "records_late_total", "records_duplicate_total"):
        assert end.sum(counter) == 0, counter
    assert peak <= MEMORY_MIB
    if soaking:
        assert sent / took_s >= 0.99 * RECORDS_S
        assert growth <= 1.0
        assert p99 <= 2.0
