"""spanchain is killed again and again under load, behind a real Collector with its queue on disk: nothing is lost.

How it works. Payments go to the Collector with the shipped configuration, which hands them to spanchain; spanchain gets
SIGKILL every few seconds and is started again. In the end each payment that the Collector acknowledged has exactly one
verdict, and the verdicts are, byte for byte, those of one engine that reads the same journal without interruption.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from collector_processor.config import Config, JournalConfig
from collector_processor.config_file import load
from collector_processor.decide.verdicts import verdict_rows
from collector_processor.engine import Engine
from collector_processor.journal.wal import Journal
from tests.e2e.processes import Processes, http_get
from tests.e2e.site import Binaries, Site
from tests.soak.load import Payments, Sender

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.e2e]

SHORT_KILLS, LONG_KILLS = 5, 120
ALIVE_S = (2.0, 3.8)  # from ready to the next kill
RECORDS_S = 2000.0
WAIT_S = 12.0  # quiet time of a chain: longer than the Collector takes to come again
OVERRIDES: dict[str, Any] = {
    "join": {"wait_initial_s": WAIT_S, "wait_min_s": WAIT_S, "wait_max_s": WAIT_S},
    "journal": {"retention_s": 36_000.0, "checkpoint_interval_s": 10.0},
    "exporters": {"otlp": {"enabled": False}, "file": {"enabled": True, "verdicts": "all"}},
}
RETRY = "exporters::otlp_grpc/spanchain::retry_on_failure::"
QUICK_RETRIES = (f"{RETRY}initial_interval: 300ms", f"{RETRY}max_interval: 1s")


def verdicts(folder: Path) -> list[bytes]:
    path = folder / "spanchain-data" / "verdicts.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def straight(config: Config, folder: Path) -> tuple[dict[str, bytes], Engine]:
    """The verdicts of one engine that reads the whole journal, by id; and the engine."""
    engine, found = Engine(config, 1), {}
    journal = Journal.open(folder / config.journal.dir, JournalConfig(durability="os"))
    try:
        outputs = (engine.process((payload,), payload.arrival_ns) for _, payload in journal.replay())
        for batch in (batch for output in (*outputs, engine.flush()) for batch in output.verdicts):
            for row in verdict_rows(batch, batch.score >= 0):
                found.setdefault(
                    row["verdict_id"], orjson.dumps(row)
                )  # what is told again is kept once, as by any sink
    finally:
        journal.close()
    return found, engine


def test_kills_under_load_lose_and_double_nothing(
    soaking: bool, processes: Processes, binaries: Binaries, tmp_path: Path
) -> None:
    chance, kills = random.Random(1), LONG_KILLS if soaking else SHORT_KILLS
    site = Site(processes, tmp_path, binaries)
    site.start_sink()
    spanchain = site.start_spanchain(OVERRIDES)
    site.start_collector("otel-collector.yaml", *QUICK_RETRIES)
    sender = Sender(site.address("apps_grpc"), RECORDS_S, Payments(every_us=9000)).start()
    starts_s, begun = [], time.monotonic()
    for _ in range(kills):
        time.sleep(chance.uniform(*ALIVE_S))
        spanchain.kill()
        started = time.monotonic()
        spanchain = site.start_spanchain(OVERRIDES)
        starts_s.append(time.monotonic() - started)
    took_s = time.monotonic() - begun
    answers = sender.stop()
    expected = {trace for number in answers.acknowledged for trace in sender.payments.trace_ids(number)}
    spanchain.wait_for("verdicts of all payments", lambda: len(verdicts(tmp_path)) >= len(expected), 300.0, poll_s=2.0)
    metrics = http_get(f"http://{site.address('spanchain_metrics')}/metrics")
    spanchain.stop()

    rows = [orjson.loads(line) for line in verdicts(tmp_path)]
    told = Counter(row["trace_id"] for row in rows)
    starts_s.sort()
    print(
        f"{kills} kills in {took_s:.0f} s, {len(expected)} payments acknowledged, ready again after "
        f"{starts_s[len(starts_s) // 2]:.1f} s in the middle, {starts_s[-1]:.1f} s at most"
    )
    assert not answers.failed
    assert len(expected) == sender.sent * sender.payments.traces
    assert expected <= set(told), f"{len(expected - set(told))} acknowledged payments have no verdict"
    assert set(told.values()) == {1}, f"{[trace for trace, times in told.items() if times > 1][:5]} told twice"
    assert len({row["verdict_id"] for row in rows}) == len(rows)
    assert "spanchain_exporter_dropped_total" in metrics

    clean, engine = straight(load(tmp_path / "spanchain.yaml"), tmp_path / "spanchain-data")
    assert {row["verdict_id"]: orjson.dumps(row) for row in rows} == clean
    counted = engine.joiner.counters()
    doubled = counted["duplicate_spans"] + counted["duplicate_logs"] + counted["late_spans"] + counted["late_logs"]
    assert sum(engine.received.values()) == engine.records_closed + doubled + sum(engine.rejected.values())
