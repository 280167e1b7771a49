"""More than the machine takes: the only answer is to come again, nothing that was taken is lost, and it recovers.

How it works. A sender that never waits and never comes again offers as much as it can make, which is several times what
the engine takes here, and the backlog is kept small so that it is full at once.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.processes import Processes
from tests.soak.load import Payments, Sender
from tests.soak.running import resident_mib, serve, settled

pytestmark = [pytest.mark.slow, pytest.mark.soak]

SHORT_S, LONG_S = 8.0, 300.0
RECOVERY_S = 30.0
WAIT_S = 2.0
OVERRIDES = {
    "join": {"wait_initial_s": WAIT_S, "wait_min_s": WAIT_S, "wait_max_s": WAIT_S},
    "service": {"backlog_bytes_max": 400_000},
}


def test_overload_is_answered_with_come_again_only(soaking: bool, processes: Processes, tmp_path: Path) -> None:
    running = serve(processes, tmp_path, OVERRIDES)
    senders = [Sender(running.address, 1e9, Payments(every_us=100), patient=False).start() for _ in range(2)]
    begun, peak = time.monotonic(), 0.0
    while time.monotonic() < begun + (LONG_S if soaking else SHORT_S):
        time.sleep(1.0)
        peak = max(peak, resident_mib(running.process))
    offered = sum(sender.sent * sender.payments.records for sender in senders)
    answers = [sender.stop() for sender in senders]
    ended = time.monotonic()
    accepted = Sender(running.address, 1000.0, Payments(every_us=100)).start()
    running.process.wait_for(
        "a request taken at once", lambda: accepted.answers.acknowledged, 60.0 + 9 * RECOVERY_S, poll_s=0.05
    )
    recovery = time.monotonic() - ended
    later = accepted.stop()
    taken = sum(answer.records_taken for answer in [*answers, later])
    end = settled(running.process, running.metrics, taken)
    print(
        f"{offered} records offered, refused {[dict(answer.refused) for answer in answers]}, memory {peak:.0f} MiB, "
        f"recovered after {recovery:.1f} s"
    )
    assert all(answer.refused for answer in answers)
    assert not any(answer.failed for answer in answers)
    assert end.sum("records_received_total") == taken
    assert peak <= 1024
    if soaking:
        assert recovery <= RECOVERY_S
