"""The running service: receivers, journal, engine, exporters and health, put together and taken down in order.

How it works. Receivers hand each cleaned request to the journal; once it is durable it is acknowledged and waits in a
bounded backlog. One thread owns the engine: it takes what waits, gives it to `Engine.process` with its arrival time,
calls `tick` twenty times a second at least, and hands verdicts and incidents to the exporters, each of which has its
own queue. A checkpoint is the engine's state together with the position in the journal up to which it has read; a start
restores the last one and replays what came after. When too much waits, senders are told to come again; nothing else
slows them.

Engine time is the journal's: it goes on with arrivals, and where nobody sends anything although something is due, with
an empty payload of our own, a *mark*. So nothing is ever said at a time that a replay, or a start with a clock that was
set back meanwhile, does not know of.

Stopping: intake ends, what waits is processed, exporters are flushed, a last checkpoint is written, by one deadline.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from collector_processor.clock import ForwardClock
from collector_processor.config import Config
from collector_processor.decide.verdicts import incident_row, verdict_rows
from collector_processor.decode.otlp_json import to_protobuf
from collector_processor.decode.repair import clean
from collector_processor.engine import Engine, Output
from collector_processor.health import Health
from collector_processor.ingest.answers import Counters, RetryLaterError
from collector_processor.ingest.auth import InsecureAddressError
from collector_processor.ingest.receivers import Receivers
from collector_processor.intake import Intake
from collector_processor.journal.checkpoint import Counters as CheckpointCounters
from collector_processor.journal.checkpoint import newest_position, read_checkpoint
from collector_processor.journal.wal import Journal, JournalUnavailableError
from collector_processor.keeper import Keeper
from collector_processor.model import Payload, Signal
from collector_processor.redact import Masker
from collector_processor.reload import Reloader, with_shipped_model
from collector_processor.rows import Rows
from detectors.protocol import Bounded
from detectors.registry import preload
from detectors.sequence_transformer.promoted import folder_of
from exporters.forwarding import Forwarding
from exporters.prometheus.telemetry import Telemetry
from exporters.protocol import Exporter
from exporters.registry import Surroundings, build

LOG = structlog.get_logger(__name__)
SECOND = 1_000_000_000
PACE_S = 0.01  # between two turns at least: what comes meanwhile is taken at once, and threads switch less often
MARK_S = 0.05  # without an arrival, and something due, until a mark is written
MARK_AGAIN_S = 1.0  # after one that could not be written
REPLAYED_S = 1.0  # of replay between two checkpoints, where they take no longer than a quarter of that
EXPORTED_COUNTERS = (
    "records_received_total",
    "records_rejected_total",
    "records_repaired_total",
    "requests_refused_total",
)
"""Counters of ingest that are public metrics; the others are for tests."""
Totals = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""(metric, its labels) -> count since the start."""


def _json_to_protobuf(data: bytes, kind: Signal) -> bytes:
    return to_protobuf(data, kind)[1]


class StartError(Exception):
    """The service cannot start; the message says why and what to change."""


class Service:
    """One running spanchain. `start` returns when it serves; `stop` is safe twice."""

    def __init__(
        self,
        config: Config,
        data: Path,
        watchers: Iterable[Exporter] = (),
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """watchers: further exporters, for whoever embeds the service."""
        self.config = config
        self.data = data
        program = version("spanchain")
        self.telemetry = Telemetry(program, config.exporters.prometheus.series_max)
        self.counters = Counters()
        self._clock = ForwardClock(clock)
        rows = Rows(verdict_rows, incident_row)
        self.exporters = build(Surroundings(config.exporters, rows, self.telemetry, data, program))
        self.exporters |= {watcher.name: watcher for watcher in watchers}
        self._intake = Intake(config.service.backlog_bytes_max, self._clock)
        self._masker = Masker(config.redaction) if config.redaction.before_journal else None
        self._stopping = threading.Event()
        self._stopped = False
        self._started: list[Exporter] = []
        self.receivers: Receivers | None = None
        self._journal: Journal | None = None
        self._reloader: Reloader | None = None
        self._checkpoints = CheckpointCounters()
        self._health = Health(config.service.health)
        self._thread: threading.Thread | None = None
        self._counted: dict[Any, float] = {}
        self._next_mark = 0.0

    # -- start and stop ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Restores, listens, and begins to work.

        Raises:
            StartError: an address cannot be had or is not safe, the data folder cannot be written, a file is missing.
        """
        try:
            self.receivers = Receivers(
                self.config.receivers, self._sink, clean, _json_to_protobuf, self._clock, self.counters
            )
            self._make_folder()
            self._recover()
            for exporter in self.exporters.values():
                exporter.start()
                self._started.append(exporter)
            self.receivers.start()
            self._health.start()
            # Last: what it reads again would keep the others from starting.
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        except (OSError, InsecureAddressError, ValueError) as error:
            self.stop(1)
            raise StartError(str(error)) from error

    def _make_folder(self) -> None:
        try:
            self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OSError(f"the data folder {self.data} cannot be made: {error.strerror}") from error

    def _recover(self) -> None:
        """The journal, open for what comes, and an engine that knows nothing yet; the rest needs nobody to wait."""
        folder = self.data / self.config.journal.dir
        models = folder_of(self.config)
        if models is not None and self.config.detectors.sequence_transformer.enabled:
            self._reloader = Reloader(models, folder)
        self.engine, self._position = self._new_engine(secrets.randbits(64)), 0
        self._journal = Journal.open(
            folder, self.config.journal, at_least=newest_position(folder), on_durable=self._intake.put
        )
        self._replay_until = self.journal.position
        self._clock.not_before(self.journal.last_arrival_ns)
        self._keeper = Keeper(folder, self.journal, self.exporters, self._checkpoints)
        self._forwarding = [exporter for exporter in self.exporters.values() if isinstance(exporter, Forwarding)]
        for exporter in self._forwarding:
            exporter.attach(self.journal)

    def _new_engine(self, seed: int) -> Engine:
        """One that knows nothing. It begins with the model that ships with spanchain, and with no other: those of a
        folder are announced to it by the reloader, which can do without one that is broken."""
        return Engine(with_shipped_model(self.config) if self._reloader else self.config, seed)

    def _restore(self) -> None:
        """The engine as the newest usable checkpoint left it, and the position in the journal from which to go on."""
        self._health.note = "reading the checkpoint"
        found = read_checkpoint(self.data / self.config.journal.dir, self._checkpoints)
        if found is None:
            self._announce(self.engine)
            return
        position, state = found
        try:
            engine = self._new_engine(int(state["seed"]))
            self._announce(engine, int(state["boundary_ns"]))
            engine.restore(state)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            LOG.warning("the checkpoint does not fit this version or config; starting cold", error=repr(error))
            self._announce(self.engine)
        else:
            self.engine, self._position = engine, position
            self._clock.not_before(engine.now_ns)

    def _announce(self, engine: Engine, boundary_ns: int = 0) -> None:
        if self._reloader is not None:
            self._reloader.announce(engine, boundary_ns)

    def stop(self, deadline_s: float | None = None) -> None:
        """Ends intake, processes what was taken in, flushes, writes a checkpoint. Within `deadline_s` seconds."""
        if self._stopped:
            return
        self._stopped = True
        deadline = time.monotonic() + (self.config.service.drain_s if deadline_s is None else deadline_s)
        self._health.draining = True
        if self.receivers is not None:
            self.receivers.stop(max(0.1, min(2.0, deadline - time.monotonic())))
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(max(0.1, deadline - time.monotonic()))
        for exporter in self._started:
            exporter.shutdown(max(0.1, deadline - time.monotonic()))
        if self._journal is not None:
            self._journal.close()
        self._health.stop()

    @property
    def journal(self) -> Journal:
        """The open journal; only between `start` and `stop`."""
        assert self._journal is not None
        return self._journal

    @property
    def ready(self) -> bool:
        """Whether it has taken in what the journal held when it started."""
        return self._health.ready

    @property
    def failed(self) -> bool:
        """Whether the engine has died of a fault; the log says which."""
        return self._health.failed

    # -- intake ------------------------------------------------------------------------------------------------------

    def _sink(self, payload: Payload) -> None:
        """Takes a request in; returns once it is durable. Called from the receivers' threads."""
        if self._stopping.is_set():
            raise RetryLaterError("stopping", "the service is stopping")
        if self._masker is not None:
            payload = replace(payload, data=self._masker(payload.data, payload.signal))
        with self._intake.arriving(payload) as stamped:
            try:
                self.journal.append(stamped)
            except JournalUnavailableError as error:
                raise RetryLaterError(error.reason, str(error), 5) from error

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._restore()
            self._replay_journal()
            self._health.ready = True
            threading.Thread(target=preload, args=(self.config,), name="preload", daemon=True).start()
            self._work()
        except Exception:
            LOG.exception("the engine failed; the service stops taking data")
            self._stopping.set()
            self._health.failed = True

    def _replay_journal(self) -> None:
        """Tells exporters what is open, then takes what the journal holds behind the checkpoint, as it came in then."""
        self._emit(Output(incidents=self.engine.incidents.current()))
        self._health.note = "replaying the journal"
        restored, interval_s = self._position, self.config.journal.checkpoint_interval_s
        self._next_checkpoint = time.monotonic() + min(REPLAYED_S, interval_s)
        for position, payload in self.journal.replay(self._position, self._replay_until):
            if self._stopping.is_set():
                return
            self._process(position, payload)
            # Soon and often: else who dies again before the replay is over begins it anew, and it grows each time.
            self._begin_checkpoint(min(max(REPLAYED_S, 4 * self._keeper.took_s), interval_s))
        self._next_checkpoint = 0.0 if self._position > restored else time.monotonic() + interval_s
        self._health.note = ""

    def _work(self) -> None:
        tick_s, interval_s = self.config.service.tick_ms / 1000, self.config.journal.checkpoint_interval_s
        while not self._stopping.is_set():
            begun = time.monotonic()
            self._turn(tick_s)
            if self._reloader is not None:
                self._reloader.poll(self.engine)
            self._report()
            self._begin_checkpoint(interval_s)
            self._stopping.wait(max(0.0, begun + PACE_S - time.monotonic()))
        if not self._health.note:  # else the journal holds something that comes before what waits
            self._turn(0)
        self._report()
        self._keeper.wait()
        self._checkpoint()

    def _turn(self, wait_s: float) -> None:
        """What waits, then what is due by now."""
        reached_ns = self._take(wait_s)
        if self.engine.is_due(reached_ns):
            if reached_ns - self.engine.now_ns >= MARK_S * SECOND and self._mark(reached_ns):
                self._take(0)
            reached_ns = self.engine.now_ns
        if self.engine.now_ns:  # else nothing has ever come, and time has not begun
            self._emit(self.engine.tick(self.engine.now_ns))
        for exporter in self._forwarding:
            exporter.advance(reached_ns)

    def _take(self, wait_s: float) -> int:
        """Processes what waits; the time up to which nothing else can come any more."""
        taken, settled_ns = self._intake.take(wait_s)
        for position, payload in taken:
            self._process(position, payload)
        return settled_ns

    def _mark(self, now_ns: int) -> bool:
        """Writes into the journal that it is `now_ns`; False when the disk does not take it, and then time waits."""
        if time.monotonic() < self._next_mark:
            return False
        try:
            self.journal.append(Payload(Signal.LOGS, "", b"", now_ns))
        except JournalUnavailableError:  # which the journal has counted
            self._next_mark = time.monotonic() + MARK_AGAIN_S
            return False
        return True

    def _process(self, position: int, payload: Payload) -> None:
        self._emit(self.engine.process((payload,), payload.arrival_ns))
        self._position = position + 1

    def _emit(self, output: Output) -> None:
        if not output.verdicts and not output.incidents:
            return
        batches = output.verdicts or [self.engine.no_verdicts()]
        now_ns = self._clock()
        for index, verdicts in enumerate(batches):
            incidents = output.incidents if index == len(batches) - 1 else []
            for exporter in self.exporters.values():
                try:
                    exporter.export(verdicts, incidents)
                except Exception:
                    # An exporter promises not to raise; one that does must not take the engine with it.
                    LOG.exception("an exporter failed; its batch is lost to it", exporter=exporter.name)
                    self.telemetry.count(
                        "exporter_dropped_total", len(verdicts), exporter=exporter.name, reason="error"
                    )
            if len(verdicts):
                self.telemetry.observe("verdict_latency_seconds", (now_ns - verdicts.chains.arrived_ns) / SECOND)

    def _begin_checkpoint(self, interval_s: float) -> None:
        """When it is time for one: the state as it is now, to be kept while the engine goes on."""
        if time.monotonic() >= self._next_checkpoint and not self._keeper.is_busy:
            self._keeper.begin(self._position, self.engine.snapshot())
            self._next_checkpoint = time.monotonic() + interval_s

    def _checkpoint(self) -> None:
        """Keeps a checkpoint of the present state, and waits until that is done."""
        self._keeper.keep(self._position, self.engine.snapshot())

    # -- numbers -----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Passes on what the engine, the receivers and the journal have counted to the metrics."""
        self.telemetry.set("open_chains", self.engine.joiner.open_chains)
        self.telemetry.set("journal_size_bytes", self.journal.size_bytes)
        for key, total in (self._totals() | self._journal_totals()).items():
            more = total - self._counted.get(key, 0)
            if more > 0:
                self.telemetry.count(key[0], more, **dict(key[1]))
                self._counted[key] = total
        detectors = self.engine.detectors.items()
        models = [({"model": name, "version": detector.version()}, 1) for name, detector in detectors]
        self.telemetry.replace("model_info", models)

    def _totals(self) -> Totals:
        """What came in, by what became of it."""
        joined = self.engine.joiner.counters()
        totals: Totals = {
            ("logs_joined_total", (("outcome", "trace"),)): joined["joined_trace"],
            ("logs_joined_total", (("outcome", "business_key"),)): joined["joined_business_key"],
            ("logs_joined_total", (("outcome", "orphan"),)): joined["orphans"],
            ("logs_joined_total", (("outcome", "late"),)): joined["late_logs"],
            ("records_duplicate_total", (("signal", "traces"),)): joined["duplicate_spans"],
            ("records_duplicate_total", (("signal", "logs"),)): joined["duplicate_logs"],
            ("records_late_total", (("signal", "traces"),)): joined["late_spans"],
            ("records_late_total", (("signal", "logs"),)): joined["late_logs"],
            ("chains_forgotten_total", ()): joined["closed_forgotten"],
            ("chains_not_learned_total", ()): self.engine.chains_not_learned,
            ("incident_findings_forgotten_total", ()): self.engine.incidents.forgotten,
        }
        for name, names in self.engine.symbols.lists().items():
            totals["names_overflow_total", (("list", name),)] = names.overflowed
        for name, detector in self.engine.detectors.items():
            if isinstance(detector, Bounded):
                totals["elements_overflow_total", (("detector", name),)] = detector.overflowed
        if self._reloader is not None:
            totals["model_changes_total", (("outcome", "taken"),)] = self._reloader.taken
            totals["model_changes_total", (("outcome", "refused"),)] = self._reloader.refused
        return totals | {key: count for key, count in self.counters.snapshot().items() if key[0] in EXPORTED_COUNTERS}

    def _journal_totals(self) -> Totals:
        """What was written to the disk, and what was found damaged there."""
        written, read, checkpoints = self.journal.counters, self.journal.read_counters, self._checkpoints
        return {
            ("journal_appended_total", ()): written.appended,
            ("journal_appended_bytes_total", ()): written.appended_bytes,
            ("journal_syncs_total", ()): written.syncs,
            ("journal_failures_total", ()): written.failures,
            ("journal_damaged_total", (("kind", "corrupt"),)): read.corrupt,
            ("journal_damaged_total", (("kind", "torn"),)): read.torn,
            ("journal_damaged_total", (("kind", "unreadable"),)): read.unreadable_files,
            ("checkpoints_total", (("outcome", "written"),)): checkpoints.written,
            ("checkpoints_total", (("outcome", "failed"),)): checkpoints.failures,
            ("checkpoints_total", (("outcome", "unflushed"),)): self._keeper.unflushed,
            ("checkpoints_total", (("outcome", "corrupt"),)): checkpoints.corrupt,
        }
