"""A sink is away: what it is owed waits on disk and arrives when it is back, and nobody else notices.

How it works. A rule makes some of the payments unusual, so that events go out all the time: to an OTLP receiver and, as
incidents, to an Alertmanager, both of which are small servers here. One of them closes its port for a while.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from sinks import GrpcSink, HttpSink, Sink

from tests.e2e.processes import Processes
from tests.soak.load import Payments, Sender
from tests.soak.running import Scrape, quantile, scrape, serve, settled

pytestmark = [pytest.mark.slow, pytest.mark.soak]

SHORT_S, LONG_S = 10.0, 600.0
RECORDS_S = 2000.0
WAIT_S = 2.0
RULES = {
    "version": 1,
    "rules": [
        {
            "name": "small-payments-only",
            "category": "compliance",
            "severity": "critical",
            "text": "{actual:.2f} is more than {expected:.2f}",
            "require": [{"compare": {"left": "payment.amount", "is": "<=", "right": 900.0}}],
        }
    ],
}


def rules_file(folder: Path) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(RULES))
    return path


QUEUES = {"otlp": "otlp_logs", "alertmanager": "alertmanager"}


@pytest.mark.parametrize("away", QUEUES)
def test_a_sink_that_is_away_gets_all_of_it_later(
    away: str, soaking: bool, processes: Processes, tmp_path: Path
) -> None:
    queue, outage_s = QUEUES[away], LONG_S if soaking else SHORT_S
    sinks: dict[str, Sink] = {"otlp": GrpcSink(), "alertmanager": HttpSink()}
    with sinks["otlp"], sinks["alertmanager"]:
        overrides = {
            "join": {
                "wait_initial_s": WAIT_S,
                "wait_min_s": WAIT_S,
                "wait_max_s": WAIT_S,
                "attributes": ["payment.amount"],
            },
            "journal": {"checkpoint_interval_s": 5.0},
            "detectors": {"context": {"rules": [str(rules_file(tmp_path))]}},
            "exporters": {
                "otlp": {"enabled": True, "endpoint": sinks["otlp"].address},
                "alertmanager": {"enabled": True, "url": sinks["alertmanager"].address, "resend_s": 2.0},
            },
        }
        running = serve(processes, tmp_path, overrides)
        sender = Sender(running.address, RECORDS_S, Payments(every_us=9000)).start()

        def look() -> Scrape:
            return scrape(running.metrics)

        running.process.wait_for("both sinks at work", lambda: all(sink.taken for sink in sinks.values()), 120.0)
        before = look()
        time.sleep(60.0 if soaking else 4.0)
        begun = look()
        sinks[away].stop()
        time.sleep(outage_s)
        ended = look()
        sinks[away].start()
        back = time.monotonic()
        running.process.wait_for(
            "the queue of the sink that was away to be empty",
            lambda: look().sum("exporter_queue_length", exporter=queue) <= 5,
            120.0 + 2 * outage_s,
            poll_s=0.5,
        )
        drained_s = time.monotonic() - back
        answers = sender.stop()
        settled(running.process, running.metrics, answers.records_taken)
        running.process.wait_for("all of it delivered", lambda: not look().sum("exporter_queue_length"), 120.0)
        end = look()
    p99 = quantile(before, begun, 0.99), quantile(begun, ended, 0.99)
    print(
        f"{away} away for {outage_s:.0f} s: {ended.sum('exporter_queue_length', exporter=queue):.0f} waited, drained "
        f"after {drained_s:.1f} s; verdict p99 {p99[0]:.2f} s before, {p99[1]:.2f} s meanwhile; checkpoints "
        f"{ended.sum('checkpoints_total', outcome='written') - begun.sum('checkpoints_total', outcome='written'):.0f}"
    )
    assert ended.sum("exporter_retries_total", exporter=queue) > begun.sum("exporter_retries_total", exporter=queue)
    assert end.sum("exporter_dropped_total") == 0
    assert end.sum("exporter_sent_total", exporter="otlp_logs") >= end.sum("anomalies_total") > 0
    assert ended.sum("checkpoints_total", outcome="written") > begun.sum("checkpoints_total", outcome="written")
    assert end.sum("records_received_total") == answers.records_taken
    if soaking:
        assert drained_s <= 2 * outage_s
        assert p99[1] - WAIT_S <= (p99[0] - WAIT_S) * 1.1
