"""A sink is away: what it is owed waits on disk and arrives when it is back, and nobody else notices.

How it works. A rule makes some of the payments unusual, so that events go out all the time: to an OTLP receiver and, as
incidents, to an Alertmanager, both of which are small servers here, and to the store. One of them is away for a while:
the servers close their port, PostgreSQL is stopped, the file of SQLite is locked by somebody else. (Prometheus asks by
itself: an outage of it is nothing to notice here.)
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
import yaml
from sinks import GrpcSink, HttpSink, Sink

from tests.e2e.processes import Processes
from tests.soak.load import Payments, Sender
from tests.soak.running import DELIVERY, Scrape, quantile, scrape, serve, settled

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


class Away(Protocol):
    """What can be away."""

    def stop(self) -> None: ...
    def start(self) -> None: ...


class LockedFile:
    """A file of SQLite in which somebody else is writing while it is away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stop(self) -> None:
        self._holder = sqlite3.connect(self._path, isolation_level=None, timeout=30.0)
        self._holder.execute("BEGIN IMMEDIATE")

    def start(self) -> None:
        self._holder.close()


def unusual_rows(folder: Path, url: str | None) -> int:
    """How many unusual verdicts the store holds."""
    store: Any = sqlite3.connect(folder / "data" / "spanchain.db") if url is None else psycopg.connect(url)
    with closing(store):
        return int(store.execute("SELECT count(*) FROM verdicts WHERE severity > 0").fetchone()[0])


QUEUES = {"otlp": "otlp_logs", "alertmanager": "alertmanager", "sqlite": "store", "postgresql": "store"}


@pytest.mark.parametrize("away", [*list(QUEUES)[:3], pytest.param("postgresql", marks=pytest.mark.e2e)])
def test_a_sink_that_is_away_gets_all_of_it_later(
    away: str, soaking: bool, processes: Processes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    queue, outage_s = QUEUES[away], LONG_S if soaking else SHORT_S
    sinks: dict[str, Sink] = {"otlp": GrpcSink(), "alertmanager": HttpSink()}
    aways: dict[str, Away] = {**sinks, "sqlite": LockedFile(tmp_path / "data" / "spanchain.db")}
    store: dict[str, Any] = {}
    with ExitStack() as stack:
        for sink in sinks.values():
            stack.enter_context(sink)
        if away == "postgresql":
            aways[away] = server = request.getfixturevalue("postgres")
            store["url"] = server.url(stack.enter_context(server.database()))
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
                "store": store,
            },
        }
        running = serve(processes, tmp_path, overrides)
        sender = Sender(running.address, RECORDS_S, Payments(every_us=9000)).start()

        def look() -> Scrape:
            return scrape(running.metrics)

        running.process.wait_for("the sinks at work", lambda: all(sink.taken for sink in sinks.values()), 120.0)
        before = look()
        time.sleep(60.0 if soaking else 4.0)
        begun = look()
        aways[away].stop()
        time.sleep(outage_s)
        ended = look()
        aways[away].start()
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
        end, rows = look(), unusual_rows(tmp_path, store.get("url"))
    p99 = quantile(before, begun, 0.99), quantile(begun, ended, 0.99)
    others = {  # from a chain's last record until the other sinks have it
        name: tuple(
            verdict + quantile(*looks, 0.99, DELIVERY, exporter=name)
            for verdict, looks in zip(p99, ((before, begun), (begun, ended)), strict=True)
        )
        for name in sorted({*QUEUES.values()} - {queue})
    }
    print(
        f"{away} away for {outage_s:.0f} s: {ended.sum('exporter_queue_length', exporter=queue):.0f} waited, drained "
        f"after {drained_s:.1f} s; p99 before and meanwhile: verdict {p99[0]:.2f} s, {p99[1]:.2f} s, "
        f"{', '.join(f'{name} {a:.2f} s, {b:.2f} s' for name, (a, b) in others.items())}; checkpoints "
        f"{ended.sum('checkpoints_total', outcome='written') - begun.sum('checkpoints_total', outcome='written'):.0f}; "
        f"{end.sum('anomalies_total'):.0f} anomalies, {rows} in the store"
    )
    assert ended.sum("exporter_retries_total", exporter=queue) > begun.sum("exporter_retries_total", exporter=queue)
    assert end.sum("exporter_dropped_total") == 0
    assert end.sum("exporter_sent_total", exporter="otlp_logs") >= end.sum("anomalies_total") > 0
    assert rows == end.sum("anomalies_total")
    assert ended.sum("checkpoints_total", outcome="written") > begun.sum("checkpoints_total", outcome="written")
    assert end.sum("records_received_total") == answers.records_taken
    if soaking:
        assert drained_s <= 2 * outage_s
        for earlier, meanwhile in (p99, *others.values()):
            assert meanwhile <= 1.1 * earlier
