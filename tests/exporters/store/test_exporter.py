"""The exporter: which verdicts it keeps, and that neither a restart nor a kill nor a slow database spoils the store."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from sinks import eventually
from verdicts import NS, START_S, incident, rows, verdict_ids, verdicts

from collector_processor.config import QueueConfig, StoreConfig
from collector_processor.model import Severity
from exporters.prometheus.telemetry import Telemetry
from exporters.store.exporter import StoreExporter

NOTHING = verdicts(0, 0)


def start(folder: Path, telemetry: Telemetry | None = None, **settings: Any) -> StoreExporter:
    queue = QueueConfig(retry_initial_s=0.05, retry_max_s=0.1)
    config = StoreConfig(**{"normal_share": 0, "queue": queue, **settings})
    exporter = StoreExporter(config, folder, folder / "queues", rows(), telemetry or Telemetry("1"))
    exporter.start()
    return exporter


def kept(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "spanchain.db")) as file:
        if not file.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'").fetchone():
            return []
        found = file.execute(query).fetchall()
    return [row[0] for row in found] if found and len(found[0]) == 1 else found


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_all_the_unusual_and_a_share_of_the_normal(tmp_path: Path, share: float) -> None:
    exporter = start(tmp_path, normal_share=share)
    batch = verdicts(100, 3)
    exporter.export(batch, [])
    exporter.shutdown(10)
    ids = set(kept(tmp_path, "SELECT verdict_id FROM verdicts"))
    assert set(verdict_ids(batch, unusual=True)) <= ids <= set(verdict_ids(batch))
    assert {0: len(ids) == 3, 0.5: 30 < len(ids) < 70, 1: len(ids) == 100}[share]


def test_only_the_unusual_come_with_their_chain(tmp_path: Path) -> None:
    exporter = start(tmp_path, normal_share=1)
    exporter.export(verdicts(4, 2), [])
    exporter.shutdown(10)
    chains = kept(tmp_path, "SELECT severity, records FROM verdicts ORDER BY severity")
    assert [severity for severity, _ in chains] == [0, 0, 3, 3]
    assert [records is not None for _, records in chains] == [False, False, True, True]
    assert [each["service"] for each in orjson.loads(chains[3][1])["records"]] == ["gateway", "gateway", "risk", "risk"]


def test_without_records_when_none_are_wanted(tmp_path: Path) -> None:
    exporter = start(tmp_path, records_max=0)
    exporter.export(verdicts(1, 1), [])
    exporter.shutdown(10)
    assert kept(tmp_path, "SELECT records FROM verdicts") == [None]


def test_when_much_fails_at_once_the_most_severe_are_kept_and_the_rest_is_counted(tmp_path: Path) -> None:
    telemetry = Telemetry("1")
    exporter = start(tmp_path, telemetry, verdicts_per_s_max=1)  # ten are saved up
    batch = verdicts(30, 30, severity=Severity.WARNING)
    batch.severity[20:24] = Severity.CRITICAL
    exporter.export(batch, [])
    exporter.shutdown(10)
    severities = kept(tmp_path, "SELECT severity FROM verdicts ORDER BY severity")
    assert severities == [2] * 6 + [3] * 4
    assert telemetry.value("exporter_dropped_total", exporter="store", reason="rate") == 20


def test_after_a_crash_old_states_are_told_again_and_change_nothing(tmp_path: Path) -> None:
    opened = replace(incident(1), changed_unix_nano=int((START_S + 10) * NS))
    updated = replace(incident(1, "updated", chains_seen=9), changed_unix_nano=int((START_S + 20) * NS))
    resolved = replace(incident(1, "resolved", chains_seen=12), changed_unix_nano=int((START_S + 61) * NS))
    exporter = start(tmp_path)
    for state in (opened, updated, resolved):
        exporter.export(verdicts(2, 1), [state])
    assert exporter.flush(5)
    assert eventually(lambda: kept(tmp_path, "SELECT chains FROM incidents") == [12])
    # Killed here: what is open at the last checkpoint is told once more, then the journal is replayed.
    left_behind = tmp_path / "left-behind"
    shutil.copytree(tmp_path, left_behind)
    exporter.shutdown(10)
    again = start(left_behind)
    for state in (replace(opened, state="updated"), updated):
        again.export(verdicts(2, 1), [state])
    again.shutdown(10)
    assert kept(left_behind, "SELECT chains, resolved_unix_nano FROM incidents") == [(12, resolved.resolved_unix_nano)]
    assert len(kept(left_behind, "SELECT verdict_id FROM verdicts")) == 1


def test_what_is_too_much_is_deleted_while_it_runs(tmp_path: Path) -> None:
    telemetry = Telemetry("1")
    exporter = start(tmp_path, telemetry, verdicts_max=5, age_max_s=1e10, retention_interval_s=0.1)
    for number in range(4):
        exporter.export(verdicts(5, 5, first_trace=1 + number * 10), [])
    assert eventually(lambda: telemetry.value("exporter_sent_total", exporter="store") == 20)
    assert eventually(lambda: telemetry.value("store_rows", table="verdicts") == 5)
    exporter.shutdown(10)
    newest = verdict_ids(verdicts(5, 5, first_trace=31))
    assert sorted(kept(tmp_path, "SELECT verdict_id FROM verdicts")) == sorted(newest)


def test_a_postgresql_that_is_away_is_no_error(tmp_path: Path) -> None:
    telemetry = Telemetry("1")
    exporter = start(tmp_path, telemetry, url="postgresql://nobody@127.0.0.1:1/nothing")
    exporter.export(verdicts(3, 1), [incident(1)])
    assert exporter.flush(5)
    assert eventually(lambda: telemetry.value("exporter_retries_total", exporter="store", reason="database") > 1)
    exporter.shutdown(1)
    assert telemetry.value("exporter_queue_length", exporter="store") == 2
    assert telemetry.value("exporter_dropped_total", exporter="store", reason="shutdown") == 0


def test_without_the_driver_the_start_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(OSError, match=r"spanchain\[postgres\]"):
        start(tmp_path, url="postgresql://nobody@127.0.0.1:1/nothing")


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tests.exporters.store.test_exporter import endless
endless(Path(sys.argv[1]))
"""
BATCH = 8


def endless(folder: Path) -> None:
    """Writes batch after batch, each in one transaction, until it is killed; says which one was written."""
    from contextlib import ExitStack

    from tests.exporters.store.kept import Place, verdict
    from tests.exporters.store.kept import incident as state

    with ExitStack() as stack:
        sink = Place(folder, None, stack).sink()
        for number in range(10**6):
            sink.write(
                [
                    *(verdict(number * BATCH + each, closed_s=number, fill=3000) for each in range(BATCH)),
                    state(number % 5, changed_s=number, chains=number),
                ]
            )
            os.write(1, f"{number}\n".encode())


@pytest.mark.slow
def test_a_kill_in_mid_write_leaves_whole_batches_and_nothing_less_than_was_said(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2])]
    for delay_s in (0.05, 0.3, 0.11, 0.21):
        command = [sys.executable, "-c", WRITER, str(tmp_path), *paths]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as said:
            first = said.readline()
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            numbers = [int(line) for line in (first + said.read()).splitlines()]
        process.wait()
        with closing(sqlite3.connect(tmp_path / "spanchain.db")) as file:
            assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            sizes = file.execute("SELECT closed_unix_nano, count(*) FROM verdicts GROUP BY 1 ORDER BY 1").fetchall()
            chains = file.execute("SELECT max(chains), max(changed_unix_nano) FROM incidents").fetchone()
            contents = file.execute("SELECT content, records FROM verdicts").fetchall()
        assert {size for _, size in sizes} == {BATCH}
        assert len(sizes) > max(numbers), "what was said to be written is there"
        assert chains == (len(sizes) - 1, (len(sizes) - 1) * NS)
        assert all(orjson.loads(each) for row in contents for each in row)
