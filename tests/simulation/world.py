"""A world in which everything that can go wrong does, at the word of one seed: senders, network, disk, clock, crashes.

How it works. The code under test is the service itself: `Service` with its intake, journal, checkpoints and engine, on
one thread, with its clock and its disk replaced. A heap of events (time, number) is all the concurrency there is.
Senders with skewed clocks export what happens on a small payment platform; the network delays, reorders, doubles and
loses requests and acknowledgements; senders try again until they are acknowledged. The disk knows which bytes a sync
has covered: a power cut keeps any part of the others, with damage. At any event the service may die and be started
again on what the disk holds, with a clock that was set back meanwhile. The one exporter keeps in memory what it has not
delivered, and loses it when the service dies. `Outcome` is all that a run has said; `broken_promises` holds it against
what is promised.

    python -m tests.simulation --seed 17
"""

from __future__ import annotations

import hashlib
import heapq
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import orjson
from otlp import T0, log, logs, span, traces
from snapshots import digest

from collector_processor import clock, keeper, runtime
from collector_processor.config import Config
from collector_processor.decide.verdicts import incident_row, verdict_rows
from collector_processor.engine import Engine, Output
from collector_processor.ingest.answers import RetryLaterError
from collector_processor.journal import checkpoint, segment, wal
from collector_processor.model import Incident, Payload, Signal, VerdictBatch
from detectors.sequence_transformer import transformer
from tests.simulation.disk import Disk, PowerCutError

SECOND = 1_000_000_000
SERVICES = ("gateway", "order", "risk", "ledger")
WAIT_S = 20.0  # quiet time of a chain; everything arrives within it
TEN_YEARS = 315_532_800 * SECOND
ABSURD: dict[str, Callable[[int], int]] = {
    "gateway": lambda time_ns: time_ns - TEN_YEARS,
    "order": lambda time_ns: 0,
    "risk": lambda time_ns: 2**64 - 1,
    "ledger": lambda time_ns: time_ns + TEN_YEARS,
}
"""What such a sender says the time is."""
LATE_MAX_S = 12.0  # from then on the network carries everything
KEPT = 0.1  # payloads of a replay during which the checkpoint that was begun is kept
STRAY_S = LATE_MAX_S + WAIT_S + 13.0
TICK_S = 0.7


@dataclass(frozen=True, slots=True)
class Trouble:
    """How bad the world is: probabilities, and seconds."""

    delay_s: float = 3.0
    lost: float = 0.1  # requests that do not arrive
    unheard: float = 0.1  # acknowledgements that do not arrive: the sender comes again
    doubled: float = 0.1
    strays: float = 0.05  # requests that come once more when their chains are closed
    failing_disk: float = 0.02  # writes and syncs that fail
    crash: float = 0.01  # an event
    checkpoint: float = 0.03  # an event
    torn: bool = True  # a crash is a power cut, not only the end of the process
    skew_s: float = 5.0  # of a sender's clock
    rot: float = 0.2  # crashes after which the newest checkpoint is damaged
    away: float = 0.3  # flushes for which the exporter's sink is away
    absurd: bool = False  # senders' clocks are ten years off, at 0, and at the end of their numbers
    set_back_s: float = 0.0  # at most, by how much the machine's clock is set back at each crash


CALM = Trouble(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, torn=False, skew_s=5.0, rot=0.0, away=0.0)
TROUBLES = {
    "power cuts": Trouble(),
    "kills": Trouble(torn=False, failing_disk=0.0, rot=0.0, crash=0.02),
    "network": Trouble(delay_s=4.0, lost=0.3, unheard=0.3, doubled=0.3, crash=0.0, failing_disk=0.0),
    "failing disk": Trouble(failing_disk=0.2, crash=0.005, checkpoint=0.1),
    "bad clocks": Trouble(skew_s=3600.0),
    "absurd clocks": Trouble(absurd=True),
    "clock set back": Trouble(set_back_s=3600.0, crash=0.015),
}


def config(durability: str = "fsync") -> Config:
    return Config.model_validate(
        {
            "join": {
                "wait_initial_s": WAIT_S,
                "wait_min_s": WAIT_S,
                "wait_max_s": WAIT_S,
                "idle_s": 2 * WAIT_S,
                "chains_max": 2000,
                "records_max": 20_000,
                "closed_remembered_max": 4000,
            },
            # What is learned shows in verdicts soon, so that nothing of it can be lost without a trace.
            "engine": {"epoch_s": 2},
            "detectors": {"chain_sequence": {"learn_chains_min": 15}},
            "decide": {"quarantine_s": 4, "history_min": 20},
            "journal": {"durability": durability, "segment_bytes_max": 8192, "segment_age_s": 11},
            "exporters": {"prometheus": {"enabled": False}, "store": {"enabled": False}},
        }
    )


@dataclass(slots=True)
class Request:
    """One export of one sender; `number` tells it from all others."""

    number: int
    at_ns: int
    signal: Signal
    data: bytes
    records: int


def exports(chance: random.Random, seconds: int, skew_s: float, absurd: bool = False) -> list[Request]:
    """What the senders export: each service for itself, a batch of each signal a second, with its own clock."""
    skews = {service: chance.uniform(-skew_s, skew_s) * 1000 for service in SERVICES}
    requests: list[Request] = []
    trace = 0
    for second in range(seconds):
        spans: dict[str, list[Any]] = {service: [] for service in SERVICES}
        lines: dict[str, list[Any]] = {service: [] for service in SERVICES}
        for _ in range(chance.randint(3, 6)):
            trace += 1
            steps = 4 if second < 0.6 * seconds else chance.choice((2, 2, 4))  # then payments begin to break off
            at = second * 1000 + chance.uniform(0, 900)
            for step, service in enumerate(SERVICES[:steps]):
                ms, start = chance.uniform(0.8, 1.3) * (50 - 12 * step), at + 3 * step + skews[service]
                name = f"{service} work"
                spans[service].append(span(trace, step + 1, step, name=name, service=service, start_ms=start, ms=ms))
                text = f"{service} did {trace} in {ms:.0f} ms"
                lines[service].append(log(text, trace, step + 1, service=service, at_ms=start + 1))
        for service in SERVICES:
            if absurd:
                misdate(service, [*spans[service], *lines[service]])
            at_ns = T0 + second * SECOND + int(chance.uniform(0.9, 1.0) * SECOND)
            for signal, made, records in ((Signal.TRACES, traces, spans), (Signal.LOGS, logs, lines)):
                if records[service]:
                    data = made(*records[service])
                    requests.append(Request(len(requests), at_ns, signal, data, len(records[service])))
    return requests


def misdate(service: str, records: list[tuple[str, dict[str, Any]]]) -> None:
    """Gives the records of `service` the times of its absurd clock."""
    for _, fields in records:
        for name in ("start_time_unix_nano", "end_time_unix_nano", "time_unix_nano"):
            if name in fields:
                fields[name] = ABSURD[service](fields[name])


@dataclass(slots=True)
class Outcome:
    """Everything that a run has said and done."""

    verdicts: dict[str, bytes] = field(default_factory=dict)  # id -> line
    contradictions: list[str] = field(default_factory=list)  # ids of verdicts that were told in two ways
    incidents: set[bytes] = field(default_factory=set)
    chains: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # trace id -> what the join made of it
    order: list[str] = field(default_factory=list)  # ids of verdicts, as they were given
    chain_twice: list[str] = field(default_factory=list)
    processed: dict[int, Payload] = field(default_factory=dict)  # position -> what the engine got
    changed: list[int] = field(default_factory=list)  # positions at which it got another payload later
    acknowledged: list[Request] = field(default_factory=list)
    in_doubt: int = 0  # requests never acknowledged
    crashes: int = 0
    checkpoints: int = 0
    unaccounted: int = 0
    late: int = 0
    strays: int = 0  # records that had to be late
    left_open: int = 0  # chains that nobody had judged when their time was long over
    kept_for_nothing: int = 0  # segments that no checkpoint needed when one had been written
    seed: int = 0  # of the last engine
    learned: str = ""  # digest of the last engine's state at the end
    trace: list[str] = field(default_factory=list)  # what happened, in order

    def digest(self) -> str:
        """A hash of all of it."""
        parts = [*self.trace, *(line.decode() for _, line in sorted(self.verdicts.items()))]
        parts += [row.decode() for row in sorted(self.incidents)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Recorder:
    """An exporter. What it was given is told at once, or waits in memory for the next flush."""

    name = "recorder"

    def __init__(self, outcome: Outcome, at_once: Callable[[], bool], away: Callable[[], bool]) -> None:
        self._outcome = outcome
        self._at_once = at_once
        self._away = away
        self._waiting: list[Callable[[], None]] = []
        self._this_life: set[str] = set()

    def start(self) -> None: ...
    def checkpointed(self) -> None: ...
    def shutdown(self, deadline_s: float) -> None: ...

    def flush(self, deadline_s: float) -> bool:
        if self._away():
            return False
        for tell in self._waiting:
            tell()
        self._waiting.clear()
        return True

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        rows = [orjson.dumps(incident_row(incident), option=orjson.OPT_SORT_KEYS) for incident in incidents]
        self._waiting.append(partial(self._tell, self._chains(verdicts), rows))
        if self._at_once():
            self._waiting.pop()()

    def _chains(self, verdicts: VerdictBatch) -> list[tuple[str, bytes, str, tuple[Any, ...]]]:
        """(verdict id, verdict, trace id, what the join made of it) of each chain."""
        found, chains = [], verdicts.chains
        for number, row in enumerate(verdict_rows(verdicts, np.arange(len(verdicts)))):
            line, key = orjson.dumps(row, option=orjson.OPT_SORT_KEYS), row["verdict_id"]
            rows = slice(int(chains.offsets[number]), int(chains.offsets[number + 1]))
            joined = (
                key,
                row["flow"],
                int(chains.outcome[number]),
                int(chains.sequence[number]),
                [chains.symbols.events.text[event] for event in chains.event[rows].tolist()],
                [parent - rows.start if parent >= 0 else parent for parent in chains.parent[rows].tolist()],
                chains.time_ns[rows].tolist(),
                chains.self_time[rows].tolist(),
            )
            found.append((key, line, row["trace_id"], joined))
            self._outcome.order.append(key)
            if row["trace_id"] in self._this_life:
                self._outcome.chain_twice.append(row["trace_id"])
            self._this_life.add(row["trace_id"])
        return found

    def _tell(self, chains: list[tuple[str, bytes, str, tuple[Any, ...]]], incidents: list[bytes]) -> None:
        outcome = self._outcome
        for key, line, trace_id, joined in chains:
            if outcome.verdicts.setdefault(key, line) != line or outcome.chains.setdefault(trace_id, joined) != joined:
                outcome.contradictions.append(key)
        outcome.incidents.update(incidents)


class World:
    """One run. `run` gives its outcome."""

    def __init__(self, seed: int, trouble: Trouble, folder: Path, seconds: int = 40) -> None:
        self.chance = random.Random(f"trouble {seed}")
        self.trouble = trouble
        self.folder = folder
        self.outcome = Outcome()
        self.requests = exports(random.Random(f"traffic {seed}"), seconds, trouble.skew_s, trouble.absurd)
        self.config = config("fsync" if trouble.torn else "os")
        self.disk = Disk(self.chance, trouble.failing_disk, trouble.torn)
        self.now_ns = T0
        self.wrong_ns = 0  # of the machine's clock
        self.service: runtime.Service
        self.recorder: Recorder
        self._life = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._acknowledged: set[int] = set()
        self._underway: list[ExitStack] = []
        self._unkept: Callable[[], None] | None = None  # a checkpoint that was begun in a replay

    def run(self) -> Outcome:
        """Goes on until every request is acknowledged and every chain is closed."""
        with self._replaced():
            self._start_in_the_end()
            for request in self.requests:
                self._at(request.at_ns, self._sending(request, request.at_ns))
                if self._happens(self.trouble.doubled):
                    self._at(request.at_ns + self._delay(), self._sending(request, request.at_ns))
                if self._happens(self.trouble.strays):
                    self.outcome.strays += request.records
                    stray_ns = request.at_ns + int(STRAY_S * SECOND)
                    self._at(stray_ns, self._sending(request, request.at_ns))
            last = self.requests[-1].at_ns + int((LATE_MAX_S + 3 * WAIT_S) * SECOND)
            for at_ns in range(T0, last, int(TICK_S * SECOND)):
                self._at(at_ns, self._tick)
            while self._events:
                self.now_ns, _, event = heapq.heappop(self._events)
                self._carry_out(event)
            self._stop()
        return self.outcome

    def _carry_out(self, event: Callable[[], None]) -> None:
        try:
            event()
            if self._happens(self.trouble.checkpoint):
                self._checkpoint()
        except PowerCutError:
            self._crash()
        else:
            if self._happens(self.trouble.crash):
                self._crash()

    # -- chance and time ---------------------------------------------------------------------------------------------

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.chance.random() < probability

    def _delay(self) -> int:
        return int(self.chance.uniform(0, self.trouble.delay_s) * SECOND)

    def _at(self, at_ns: int, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (max(at_ns, self.now_ns), self._number, event))

    def _note(self, what: str) -> None:
        self.outcome.trace.append(f"{self.now_ns - T0} {what}")

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """The disk, the clock and the dice of the code under test, in place of the real ones."""
        times = mock.Mock(
            time=lambda: self.now_ns / SECOND, monotonic=lambda: self.now_ns / SECOND, monotonic_ns=lambda: self.now_ns
        )
        with ExitStack() as stack:
            for module in (wal, segment, checkpoint):
                stack.enter_context(mock.patch.object(module, "os", self.disk))
            for module in (wal, clock, keeper, runtime):
                stack.enter_context(mock.patch.object(module, "time", times))
            stack.enter_context(mock.patch.object(wal, "new_salt", partial(self.chance.getrandbits, 32)))
            stack.enter_context(mock.patch.object(runtime.secrets, "randbits", self.chance.getrandbits))
            stack.enter_context(loaded_once())
            yield

    # -- the network -------------------------------------------------------------------------------------------------

    def _sending(self, request: Request, first_ns: int) -> Callable[[], None]:
        """An attempt to deliver `request`, which was first sent at `first_ns`."""
        return lambda: self._at(self.now_ns + self._delay(), lambda: self._arrive(request, first_ns))

    def _again(self, request: Request, first_ns: int) -> None:
        self._at(self.now_ns + SECOND // 2 + self._delay() // 3, self._sending(request, first_ns))

    def _arrive(self, request: Request, first_ns: int) -> None:
        """The request is at the service's door: stamped now, durable a little later."""
        patient = self.now_ns - first_ns < (LATE_MAX_S - 2 * self.trouble.delay_s) * SECOND
        if patient and self._happens(self.trouble.lost):
            self._note(f"lost {request.number}")
            self._again(request, first_ns)
            return
        stack, life = ExitStack(), self._life
        payload = Payload(request.signal, "default", request.data, 0)
        stamped = stack.enter_context(self.service._intake.arriving(payload))
        self._underway.append(stack)

        def durable() -> None:
            if life != self._life:  # the service died meanwhile, and the connection with it
                self._again(request, first_ns)
                return
            self._underway.remove(stack)
            self.disk.sound = not patient
            try:
                with stack:
                    self.service.journal.append(stamped)
            except (wal.JournalUnavailableError, RetryLaterError) as error:
                self._note(f"refused {request.number} {error}")
                self._again(request, first_ns)
                return
            except PowerCutError:
                self._again(request, first_ns)
                raise
            finally:
                self.disk.sound = False
            self._acknowledge(request, first_ns, heard=not (patient and self._happens(self.trouble.unheard)))

        self._at(self.now_ns + self._delay() // 10, durable)

    def _acknowledge(self, request: Request, first_ns: int, *, heard: bool) -> None:
        self._note(f"acknowledged {request.number}" + ("" if heard else ", unheard"))
        if request.number not in self._acknowledged:
            self._acknowledged.add(request.number)
            self.outcome.acknowledged.append(request)
        if not heard:
            self._again(request, first_ns)

    # -- the service -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._life += 1
        self.recorder = Recorder(
            self.outcome,
            at_once=lambda: self.chance.random() < 0.5,
            away=lambda: not self.disk.sound and self._happens(self.trouble.away),
        )
        service = runtime.Service(self.config, self.folder, [self.recorder], clock=lambda: self.now_ns - self.wrong_ns)
        process, replay = service._process, service._begin_checkpoint

        def watched(position: int, payload: Payload) -> None:
            if self.outcome.processed.setdefault(position, payload) != payload:
                self.outcome.changed.append(position)
            if service._health.note:  # in mid-replay
                if self._unkept is not None and self._happens(KEPT):
                    self._unkept()
                if self._happens(self.trouble.crash):
                    raise PowerCutError
            process(position, payload)

        def perhaps(interval_s: float) -> None:
            if self._happens(self.trouble.checkpoint):
                service._next_checkpoint = 0.0
                replay(interval_s)

        service._process = watched  # type: ignore[method-assign]
        service._begin_checkpoint = perhaps  # type: ignore[method-assign]
        self.service = service
        service._recover()
        service._restore()
        service._keeper.begin = self._keep_later  # type: ignore[method-assign]
        service._replay_journal()

    def _tick(self) -> None:
        self.service._turn(0)

    def _checkpoint(self) -> None:
        """The state as it is now, to be kept a little later, when the service has gone on."""
        self.service._turn(0)
        service = self.service
        service._next_checkpoint = 0.0
        runtime.Service._begin_checkpoint(service, 0.0)

    def _keep_later(self, position: int, state: dict[str, Any]) -> None:
        life = self._life
        self.service._keeper._thread = thread = mock.Mock()  # which is alive until the checkpoint is kept or given up

        def keep() -> None:
            self._unkept = None
            thread.is_alive.return_value = False
            if life != self._life or not self.service._keeper.keep(position, state):
                return
            self.outcome.checkpoints += 1
            self._note(f"checkpoint at {position}")
            needed = min(head[0] for head in map(_head, (self.folder / "journal").glob("checkpoint-*.bin")))
            segments = segment.segments_in(self.folder / "journal")
            self.outcome.kept_for_nothing += sum(following.first <= needed for following in segments[1:])

        if self.service._health.note:  # time stands still in a replay
            self._unkept = keep
        else:
            self._at(self.now_ns + self._delay(), keep)

    def _crash(self) -> None:
        self._die()
        self._start_in_the_end()

    def _die(self) -> None:
        self.outcome.crashes += 1
        self._note("crash")
        self._underway.clear()
        self._unkept = None
        self.disk.crash(self.folder / "journal")
        if self._happens(self.trouble.rot):
            self._rot()
        self.wrong_ns += int(self.chance.uniform(0, self.trouble.set_back_s) * SECOND)

    def _start_in_the_end(self) -> None:
        while True:
            try:
                return self._start()
            except (PowerCutError, OSError):  # a disk that does not sync lets nothing start; somebody starts it again
                self._die()

    def _rot(self) -> None:
        """Damages the newest checkpoint where the older one is there to be used."""
        kept = sorted((self.folder / "journal").glob("checkpoint-*.bin"))
        if len(kept) > 1:
            content = bytearray(kept[-1].read_bytes())
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            kept[-1].write_bytes(content if self._happens(0.5) else content[: self.chance.randrange(len(content))])

    def _stop(self) -> None:
        """An orderly end: what is open is judged, and every record is looked for."""
        self.disk.sound = True
        self.service._turn(0)
        engine, outcome = self.service.engine, self.outcome
        outcome.left_open = engine.joiner.open_chains
        self.service._emit(engine.flush())
        outcome.seed, outcome.learned = engine.seed, digest(engine.snapshot())
        self.recorder.flush(0)
        counted = engine.joiner.counters()
        gone = sum(counted[name] for name in ("late_spans", "late_logs", "oversize", "orphans"))
        gone += counted["duplicate_spans"] + counted["duplicate_logs"] + sum(engine.rejected.values())
        outcome.late = counted["late_spans"] + counted["late_logs"]
        outcome.unaccounted = sum(engine.received.values()) - engine.records_closed - gone
        outcome.in_doubt = len(self.requests) - len(self._acknowledged)
        self.service.journal.close()


def loaded_once() -> AbstractContextManager[object]:
    """Every engine uses the same session of a model: sessions have no state, and take longer to make than the rest."""
    return mock.patch.object(transformer, "load", LOAD)


LOAD = cache(transformer.load)


def _head(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        return checkpoint._head(file.read(checkpoint.BODY_AT))


def simulate(seed: int, trouble: Trouble, seconds: int = 40) -> tuple[Outcome, list[Request]]:
    """One run in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="spanchain-simulation-") as folder:
        world = World(seed, trouble, Path(folder), seconds)
        return world.run(), world.requests


def uninterrupted(processed: dict[int, Payload], seed: int, *, often: bool = False) -> Outcome:
    """What one engine of that seed says that gets the same payloads at the same times and never stops. often: and is
    told the time with each, and half way to it."""
    outcome = Outcome()
    with loaded_once():
        recorder, engine = Recorder(outcome, at_once=lambda: True, away=lambda: False), Engine(config(), seed)

    def take(output: Output) -> None:
        batches = output.verdicts or [engine.no_verdicts()]
        for index, verdicts in enumerate(batches):
            recorder.export(verdicts, output.incidents if index == len(batches) - 1 else [])

    for _, payload in sorted(processed.items()):
        if often and engine.now_ns:
            take(engine.tick((engine.now_ns + payload.arrival_ns) // 2))
        take(engine.process((payload,), payload.arrival_ns))
        if often:
            take(engine.tick(payload.arrival_ns))
    take(engine.flush())
    outcome.learned = digest(engine.snapshot())
    return outcome


def broken_promises(seed: int, trouble: Trouble, seconds: int = 40) -> list[str]:
    """Runs `seed`, again, calmly, and without interruption; names what differs that must not."""
    return [promise for promise, is_kept in promises(seed, trouble, seconds) if not is_kept]


def promises(seed: int, trouble: Trouble, seconds: int = 40) -> Iterator[tuple[str, bool]]:
    """Each promise, and whether it was kept: first those that one run shows, then those that need another."""
    outcome, requests = simulate(seed, trouble, seconds)
    arrived = {payload.data for payload in outcome.processed.values()}
    yield "every request is acknowledged in the end", outcome.in_doubt == 0
    yield "what was acknowledged is not lost", all(request.data in arrived for request in outcome.acknowledged)
    yield "a replay gives what came the first time", not outcome.changed
    told_once = not outcome.contradictions and len(outcome.verdicts) == len(outcome.chains)
    yield "nothing is told in two ways", told_once
    yield "nothing is told twice", not outcome.chain_twice
    yield "every record is accounted for", outcome.unaccounted == 0
    yield "only what is too late is late", outcome.late == outcome.strays
    yield "no chain is left open", outcome.left_open == 0
    yield "the journal keeps only what is needed", outcome.kept_for_nothing == 0
    yield "each record is in one chain", records(outcome) == sum(request.records for request in requests)
    straight = uninterrupted(outcome.processed, outcome.seed)
    yield "verdicts are those of a run without crashes", outcome.verdicts == straight.verdicts
    yield "incidents are those of a run without crashes", changes(outcome) == changes(straight)
    yield "what was learned is that of a run without crashes", outcome.learned == straight.learned
    often = uninterrupted(outcome.processed, seed=1, often=True)
    same = (often.verdicts, often.order) == (straight.verdicts, straight.order)
    yield "verdicts are the same, in an order of their own, however often time is told", same
    calm, _ = simulate(seed, replace(CALM, skew_s=trouble.skew_s, absurd=trouble.absurd), seconds)
    yield "chains are those of a calm world", outcome.chains == calm.chains
    yield "a calm world is calm", not (calm.unaccounted or calm.late or calm.left_open)
    again, _ = simulate(seed, trouble, seconds)
    yield "the same seed gives the same bytes", (outcome.digest(), outcome.learned) == (again.digest(), again.learned)


def changes(outcome: Outcome) -> set[bytes]:
    """Incidents that were opened or resolved; after a start those that are open are told again as updated."""
    return {row for row in outcome.incidents if orjson.loads(row)["resolved_unix_nano"] is not None}


def records(outcome: Outcome) -> int:
    """Records in all chains."""
    return sum(len(chain[4]) for chain in outcome.chains.values())
