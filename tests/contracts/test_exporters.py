"""What every exporter of the registry keeps to: it never blocks, drops nothing uncounted, ends in time, and catches up.

How it works. A `Bench` is one exporter as the registry builds it, with its sink, which can be killed, hung and revived.
An exporter that is new in the registry needs a line in `BENCHES`; a test sees that none is forgotten.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sinks import GrpcSink, HttpSink, Sink, alerts, attribute, eventually, records
from verdicts import incident, rows, verdict_ids, verdicts

from collector_processor.config import ExportersConfig, StoreConfig
from collector_processor.model import Incident, Payload, VerdictBatch
from exporters.file.jsonl import VerdictFile
from exporters.forwarding import Forwarding
from exporters.prometheus.telemetry import Telemetry
from exporters.protocol import Exporter
from exporters.registry import EXPORTERS, Surroundings, build
from exporters.store.database import Database
from tests.e2e.postgres import Postgres

QUEUE = {"retry_initial_s": 0.05, "retry_max_s": 0.2}
EXPORT_MAX_S = 0.9  # one call on a busy machine: the shortest wait that it could fall into is one of 1 s for a lock


class Bench:
    """An exporter and its sink. `delivered` are the ids that arrived, `expected` those that a batch should bring."""

    name = ""
    keeps = False  # what a dead sink has not taken survives a restart

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.telemetry = Telemetry("1")
        self.exporters: list[Exporter] = []
        self.prepare(stack)
        stack.callback(lambda: [exporter.shutdown(1) for exporter in self.exporters])
        stack.callback(self.release)  # before that, so that nobody waits for a sink that hangs

    def make(self, **queue: Any) -> Exporter:
        """A new exporter, not started, over the same folder and sink."""
        config = ExportersConfig.model_validate(
            {"prometheus": {"enabled": False}, "store": {"enabled": False}, self.name: self.config(QUEUE | queue)}
        )
        [made] = build(Surroundings(config, rows(), self.telemetry, self.folder, "1")).values()
        assert made.name == self.name
        self.exporters.append(made)
        return made

    def started(self, **queue: Any) -> Exporter:
        exporter = self.make(**queue)
        exporter.start()
        return exporter

    def prepare(self, stack: ExitStack) -> None:
        raise NotImplementedError

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def hang(self) -> None:
        raise NotImplementedError

    def revive(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        """Lets go whoever waits for a sink that hangs."""
        self.revive()

    def delivered(self) -> list[str]:
        raise NotImplementedError

    def expected(self, batch: VerdictBatch, incidents: list[Incident]) -> set[str]:
        return set(verdict_ids(batch, unusual=True))

    def counted(self, name: str) -> float:
        """Sum of a metric over all that belongs to this exporter."""
        series = self.telemetry._series[name]
        return sum(
            float(series.values[row, 0]) for labels, row in series.rows.items() if labels[0].startswith(self.name)
        )


class PrometheusBench(Bench):
    """A scraper that is gone or slow is nobody's business: there is nothing to kill."""

    name = "prometheus"

    def prepare(self, stack: ExitStack) -> None:
        pass

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        return {"enabled": True, "port": 0}

    def kill(self) -> None:
        pass

    hang = revive = kill

    def delivered(self) -> list[str]:
        number = sum(self.telemetry._series["anomalies_total"].values[:, 0])
        return [f"anomaly {each}" for each in range(int(number))]

    def expected(self, batch: VerdictBatch, incidents: list[Incident]) -> set[str]:
        return {f"anomaly {each}" for each in range(len(verdict_ids(batch, unusual=True)))}


class FileBench(Bench):
    """The disk is the sink: dead is full."""

    name = "file"

    def prepare(self, stack: ExitStack) -> None:
        self.patch = stack.enter_context(pytest.MonkeyPatch.context())
        self.released = threading.Event()

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        return {"enabled": True, "verdicts": "unusual", "queue": queue}

    def kill(self) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        self.patch.setattr(VerdictFile, "append", full)

    def hang(self) -> None:
        self.patch.setattr(VerdictFile, "append", lambda *_: self.released.wait(3))

    def revive(self) -> None:
        self.patch.undo()
        self.released.set()

    def delivered(self) -> list[str]:
        path = self.folder / "verdicts.jsonl"
        return [json.loads(line)["verdict_id"] for line in path.read_text().splitlines()] if path.exists() else []


class SinkBench(Bench):
    """A sink on the network."""

    keeps = True
    make_sink: Callable[[], Sink]

    def prepare(self, stack: ExitStack) -> None:
        self.sink = stack.enter_context(type(self).make_sink())
        self.running = True

    def kill(self) -> None:
        self.sink.stop()
        self.running = False

    def hang(self) -> None:
        self.sink.hang()

    def revive(self) -> None:
        self.sink.behave()
        if not self.running:
            self.sink.start()

    def release(self) -> None:
        self.sink.stop()


class OtlpBench(SinkBench):
    name = "otlp"
    make_sink = GrpcSink

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        return {"enabled": True, "endpoint": self.sink.address, "timeout_s": 2, "queue": queue}

    def delivered(self) -> list[str]:
        logs = (each for each in records(self.sink) if hasattr(each, "severity_number"))
        ids = (attribute(log, "spanchain.anomaly.verdict_id") for log in logs)
        return [each for each in ids if each is not None]


class InlineBench(OtlpBench):
    """The same name and sink in inline mode, with nothing to forward: every event is of a span that has gone."""

    class Nothing:
        """A journal without payloads."""

        durable = 1

        def tail(self, position: int) -> InlineBench.Nothing:
            return self

        def read(self, bytes_max: int) -> list[tuple[int, Payload]]:
            return []

        def pass_to(self, position: int) -> None:
            pass

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        return {**super().config(queue), "mode": "inline"}

    def make(self, **queue: Any) -> Exporter:
        made = super().make(**queue)
        assert isinstance(made, Forwarding)
        made.attach(self.Nothing())
        return made


class AlertmanagerBench(SinkBench):
    name = "alertmanager"
    make_sink = HttpSink

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        return {"enabled": True, "url": self.sink.address, "timeout_s": 2, "queue": queue}

    def delivered(self) -> list[str]:
        return [alert["labels"]["incident"] for alert in alerts(self.sink)]

    def expected(self, batch: VerdictBatch, incidents: list[Incident]) -> set[str]:
        return {each.incident_id for each in incidents}


class StoreBench(Bench):
    """A SQLite file: dead and hanging are somebody who keeps it locked."""

    name = "store"
    keeps = True

    def prepare(self, stack: ExitStack) -> None:
        self.path = self.folder / "spanchain.db"
        self.locker: sqlite3.Connection | None = None

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        return {"enabled": True, "normal_share": 0, "queue": queue}

    def kill(self) -> None:
        self.locker = sqlite3.connect(self.path, isolation_level=None)
        self.locker.execute("BEGIN IMMEDIATE")

    hang = kill

    def revive(self) -> None:
        if self.locker is not None:
            self.locker.close()
        self.locker = None

    def delivered(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'").fetchone():
                return []
            return [each for (each,) in connection.execute("SELECT verdict_id FROM verdicts")]


class PostgresBench(Bench):
    """A real PostgreSQL: dead lets nobody in, one that hangs keeps the tables locked."""

    name = "store"
    keeps = True
    server: Postgres

    def prepare(self, stack: ExitStack) -> None:
        self.database = stack.enter_context(self.server.database())
        self.locker: Any = None
        stack.callback(self.revive)

    def config(self, queue: dict[str, Any]) -> dict[str, Any]:
        return {"enabled": True, "normal_share": 0, "url": self.server.url(self.database), "queue": queue}

    def kill(self) -> None:
        self.server.allow(self.database, connections=False)

    def hang(self) -> None:
        made = Database(StoreConfig(url=SecretStr(self.server.url(self.database))), self.folder)
        with closing(made), made.transaction():
            pass  # there are tables now
        self.locker = self.server.connect(self.database)
        self.locker.execute("BEGIN")
        self.locker.execute("LOCK TABLE verdicts, incidents IN ACCESS EXCLUSIVE MODE")

    def revive(self) -> None:
        if self.locker is not None:
            self.locker.close()
        self.locker = None
        self.server.allow(self.database, connections=True)

    def delivered(self) -> list[str]:
        with self.server.connect(self.database) as connection:
            if connection.execute("SELECT to_regclass('verdicts')").fetchone() == (None,):
                return []
            return [each for (each,) in connection.execute("SELECT verdict_id FROM verdicts")]


BENCHES: dict[str, type[Bench]] = {
    bench.name: bench for bench in (PrometheusBench, FileBench, OtlpBench, AlertmanagerBench, StoreBench)
}


def test_every_exporter_is_on_the_bench() -> None:
    assert set(BENCHES) == set(EXPORTERS)


POSTGRES, INLINE = "store on PostgreSQL", "otlp inline"
OTHER_WAYS: dict[str, type[Bench]] = {POSTGRES: PostgresBench, INLINE: InlineBench}


@pytest.fixture(params=[*EXPORTERS, INLINE, pytest.param(POSTGRES, marks=[pytest.mark.e2e, pytest.mark.slow])])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = (BENCHES | OTHER_WAYS)[request.param]
    if made is PostgresBench:
        PostgresBench.server = request.getfixturevalue("postgres")
    with ExitStack() as stack:
        yield made(tmp_path, stack)


@cache
def said(number: int) -> tuple[VerdictBatch, list[Incident]]:
    """What is exported as the batch `number`."""
    return verdicts(4, 2, first_trace=1 + number * 10), [incident(number)]


def give(exporter: Exporter, number: int, start: int = 0) -> tuple[set[int], float, list[Any]]:
    """Gives `number` batches; which ones, the longest call in seconds, and (batch, incidents) of each."""
    longest, given = 0.0, []
    for each in range(start, start + number):
        batch, incidents = said(each)
        began = time.perf_counter()
        exporter.export(batch, incidents)
        longest = max(longest, time.perf_counter() - began)
        given.append((batch, incidents))
    return set(range(start, start + number)), longest, given


def wanted(bench: Bench, given: list[Any]) -> set[str]:
    out: set[str] = set()
    for batch, incidents in given:
        found = bench.expected(batch, incidents)
        out |= {f"anomaly {len(out) + n}" for n in range(len(found))} if bench.name == "prometheus" else found
    return out


def test_what_is_exported_arrives_once(bench: Bench) -> None:
    exporter = bench.started()
    _, _, given = give(exporter, 20)
    exporter.shutdown(20)
    assert sorted(bench.delivered()) == sorted(wanted(bench, given))
    assert bench.counted("exporter_dropped_total") == 0


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_export_never_blocks_whatever_the_sink_does(bench: Bench, how: str) -> None:
    exporter = bench.started()
    getattr(bench, how)()
    _, longest, _ = give(exporter, 100)
    assert longest < EXPORT_MAX_S


def test_what_does_not_fit_is_counted(bench: Bench) -> None:
    bench.kill()
    exporter = bench.started(items_max=5, bytes_max=40_000, disk_bytes_max=20_000)
    _, _, given = give(exporter, 60)
    exporter.flush(0.5)
    if bench.name == "prometheus":
        assert len(bench.delivered()) == len(wanted(bench, given)), "it has no queue, so nothing can be dropped"
        return
    # Verdicts and incidents; OTLP has a span and a log record for each verdict.
    items = {"file": 3, "otlp": 5, "alertmanager": 1, "store": 3}[bench.name] * 60
    dropped, waiting = bench.counted("exporter_dropped_total"), bench.counted("exporter_queue_length")
    assert dropped > 0
    assert waiting > 0
    assert dropped + waiting == items


def test_shutdown_keeps_its_deadline_with_a_sink_that_hangs(bench: Bench) -> None:
    exporter = bench.started()
    bench.hang()
    give(exporter, 5)
    began = time.monotonic()
    exporter.shutdown(0.5)
    exporter.shutdown(0.5)
    assert time.monotonic() - began < 2.5


def test_shutdown_is_safe_unstarted_twice_and_before_a_late_export(bench: Bench) -> None:
    unstarted = bench.make()
    unstarted.shutdown(1)
    unstarted.shutdown(1)
    exporter = bench.started()
    exporter.start()
    exporter.shutdown(5)
    give(exporter, 2)
    exporter.flush(0.1)
    exporter.checkpointed()
    exporter.shutdown(5)


def test_everything_arrives_when_the_sink_is_back(bench: Bench) -> None:
    exporter = bench.started()
    bench.kill()
    _, _, given = give(exporter, 30)
    time.sleep(0.3)
    bench.revive()
    _, _, more = give(exporter, 5, start=30)
    assert eventually(lambda: set(bench.delivered()) >= wanted(bench, [*given, *more]))
    exporter.shutdown(10)
    assert bench.counted("exporter_dropped_total") == 0


def test_what_a_dead_sink_has_not_taken_survives_a_restart(bench: Bench) -> None:
    if not bench.keeps:
        pytest.skip("its sink is on this machine")
    exporter = bench.started()
    bench.kill()
    _, _, given = give(exporter, 10)
    assert exporter.flush(5), "on disk is safe enough for a checkpoint"
    exporter.shutdown(1)
    bench.revive()
    bench.started()
    assert eventually(lambda: set(bench.delivered()) >= wanted(bench, given))


def test_what_is_given_again_after_a_crash_arrives_once(bench: Bench) -> None:
    if bench.name == "prometheus":
        pytest.skip("counters start at 0 in each process")
    crashed = bench.started()
    _, _, given = give(crashed, 5)
    assert eventually(lambda: set(bench.delivered()) >= wanted(bench, given))
    assert eventually(lambda: bench.counted("exporter_queue_length") == 0)
    after = bench.started()
    give(after, 8)
    after.shutdown(10)
    assert len(bench.delivered()) == len(set(bench.delivered()))


def test_a_slow_exporter_slows_no_other(tmp_path: Path) -> None:
    with ExitStack() as stack:
        slow = OtlpBench(tmp_path / "slow", stack)
        others = [FileBench(tmp_path / "file", stack), AlertmanagerBench(tmp_path / "am", stack)]
        exporter, rest = slow.started(), [other.started() for other in others]
        slow.hang()
        given = []
        began = time.monotonic()
        for each in range(30):
            batch, incidents = said(each)
            for one in (exporter, *rest):
                one.export(batch, incidents)
            given.append((batch, incidents))
        for other in others:
            assert eventually(lambda other=other: set(other.delivered()) >= wanted(other, given), 10)
        assert time.monotonic() - began < 10
        assert slow.delivered() == []
