"""Inline mode: every payload of the journal goes to the receiver, in order, with the events on its spans.

How it works. One thread follows the journal. The oldest payload may go when each of its traces has a verdict, or when
engine time is `hold_s` past its arrival: no verdict that could matter is waited for any longer. What may go is a
window: its end is written down (`notes.py`), the events are written into the bytes of their spans (`splice.py`), and
payloads of one tenant and signal in a row share requests. When all of a window has been taken by the receiver, the
journal is told, and the next one begins. A crash in between sends that window again, with the same bytes.

A receiver that is down stops this thread and nothing else: the journal keeps what waits, and at its limit senders are
told to come again. What a receiver refuses for good is counted and kept aside in a file, and the rest goes on.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from collector_processor.config import OtlpExportConfig
from collector_processor.kernels import spans as kernel
from collector_processor.model import U64, ChainBatch, Payload
from collector_processor.model import Signal as Kind
from exporters.forwarding import Reader, Source
from exporters.otlp.events import ANOMALY
from exporters.otlp.notes import Note, Notes
from exporters.otlp.splice import carries, pieces, with_events
from exporters.otlp.transport import Signal, Transport
from exporters.protocol import Meter
from exporters.queue import DROP_REASONS, RETRY_AFTER_MAX_S, Refused, RetryLater

WINDOW_BYTES = 16 << 20
LATE_MAX = 512  # events of spans that have gone, in one window
JUDGED_MAX = 1_000_000  # traces remembered as judged, twice; beyond it payloads wait for `hold_s`
POLL_S = 0.5
FIRST_POSITION = 1
NO_NOTES: list[Note] = []
SIGNALS: dict[Kind, Signal] = {Kind.TRACES: "spans", Kind.LOGS: "logs"}

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """Whole payloads, or parts of one that is too large, of one tenant and signal."""

    tenant: str
    signal: Signal
    parts: list[tuple[bytes, int]]  # each a request by itself, and how many records it holds

    @property
    def records(self) -> int:
        return sum(records for _, records in self.parts)


@dataclass(slots=True)
class Window:
    """What goes out next."""

    requests: list[Request]
    on_spans: list[Note]  # whose events are in it
    late: list[Note]  # whose spans have gone: their child spans are in it

    settled: list[Note] = field(init=False)

    def __post_init__(self) -> None:
        self.settled = self.on_spans + self.late


class Judged:
    """Traces that have a verdict, of the last `hold_s` of engine time and a little more. One writer, one reader."""

    def __init__(self, hold_s: float) -> None:
        self._hold_ns = int(hold_s * 1e9)
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()
        self._since_ns = 0

    def add(self, chains: ChainBatch) -> None:
        if len(self._newer) < JUDGED_MAX:
            self._newer.update(trace_ids(chains.trace_hi, chains.trace_lo))

    def advance(self, now_ns: int) -> None:
        if now_ns - self._since_ns > self._hold_ns:
            self._older, self._newer = self._newer, set()
            self._since_ns = now_ns

    def without(self, traces: set[bytes]) -> set[bytes]:
        """Those of `traces` that have none."""
        return traces - self._newer - self._older


class Forwarder:
    """Sends what `source` holds. `path` is the file of its notes."""

    name = "otlp_forward"
    notes_name = "otlp_spans"  # as in tee mode: events on their way to a span

    def __init__(self, config: OtlpExportConfig, path: Path, meter: Meter) -> None:
        self._config = config
        self._path = path
        self._meter = meter
        self._judged = Judged(config.inline.hold_s)
        self._hold_ns = int(config.inline.hold_s * 1e9)
        self._now_ns = 0
        self._source: Source | None = None
        self._tail: Reader | None = None
        self._transport: Transport | None = None
        self._thread: threading.Thread | None = None
        self._notes: Notes | None = None
        self._disk = threading.Lock()  # guards the notes on disk; taken before `_changed`
        self._disk_failed = False
        self._changed = threading.Condition()  # guards the inbox and the flags
        self._inbox: list[Note] = []
        self._inbox_bytes = 0
        self._woken = False
        self._stop_at: float | None = None  # monotonic; set once, by shutdown
        self._ahead: deque[tuple[int, Payload]] = deque()
        self._unjudged: set[bytes] | None = None  # traces of the oldest payload that have no verdict yet
        self._failures = 0  # in a row
        self._jitter = random.Random()

    # -- the engine's thread, and the runtime's -----------------------------------------------------------------------

    def attach(self, source: Source) -> None:
        self._source = source

    def start(self, transport: Transport) -> None:
        """Raises `OSError` when the disk cannot be had."""
        if self._thread is not None or self._stop_at is not None:
            return
        assert self._source is not None, "attached before the start"
        self._transport = transport
        self._notes = Notes(self._path)
        if self._notes.until > self._source.durable:  # another journal than the one that was forwarded
            self._notes.move_to(FIRST_POSITION)
        self._tail = self._source.tail(self._notes.sent)
        for name in (self.name, self.notes_name):
            self._meter.count("exporter_sent_total", 0, exporter=name)
            for reason in DROP_REASONS:
                self._meter.count("exporter_dropped_total", 0, exporter=name, reason=reason)
        self._thread = threading.Thread(target=self._run, name=f"exporter-{self.name}", daemon=True)
        self._thread.start()

    def put(self, notes: list[Note]) -> None:
        """Takes events. Never blocks."""
        dropped = 0
        with self._changed:
            for note in notes:
                queue = self._config.queue
                fits = len(self._inbox) < queue.items_max and self._inbox_bytes + note.size <= queue.bytes_max
                if fits and self._stop_at is None:
                    self._inbox.append(note)
                    self._inbox_bytes += note.size
                else:
                    dropped += 1
            reason = "queue_full" if self._stop_at is None else "shutdown"
        self.drop(reason, dropped, self.notes_name)
        if notes:
            self._show()

    def judged(self, chains: ChainBatch) -> None:
        """Their spans need not wait any longer."""
        self._judged.add(chains)

    def advance(self, now_ns: int) -> None:
        self._judged.advance(now_ns)
        self._now_ns = now_ns
        self._wake()

    def flush(self, deadline_s: float) -> bool:
        """True once all notes are on disk."""
        if not self._disk.acquire(timeout=deadline_s):
            return False
        try:
            self._persist()
            if self._notes is not None:
                self._notes.sync()
        except sqlite3.Error as error:
            self._disk_trouble(error)
            return False
        finally:
            self._disk.release()
        self._show()
        return True

    def checkpointed(self) -> None:
        self._on_disk(Notes.checkpointed, None)

    def shutdown(self, deadline_s: float) -> None:
        """Sends what may go, until that or `deadline_s` is over; the rest stays in the journal."""
        with self._changed:
            if self._stop_at is not None:
                return
            self._stop_at = time.monotonic() + deadline_s
        self._wake()
        if self._thread is not None:
            self._thread.join(deadline_s)
        self.flush(1.0)
        if self._notes is not None and self._disk.acquire(timeout=1):
            self._notes.close()
            self._notes = None
            self._disk.release()
        self.drop("shutdown", len(self._inbox), self.notes_name)

    def drop(self, reason: str, number: int, name: str = "") -> None:
        """Counts what was given up: records, or events under the name of the notes."""
        if number:
            self._meter.count("exporter_dropped_total", number, exporter=name or self.name, reason=reason)

    # -- the forwarder's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._stop_at is None or time.monotonic() < self._stop_at:
            try:
                moved = self._turn()
            except Exception:
                log.exception("forwarding failed and begins again at the last window", exporter=self.name)
                self._begin_again()
                moved = False
            if not moved and self._stop_at is not None:
                return  # what is left stands in the journal, and goes with the next start
            with self._changed:
                if not moved and not self._woken:
                    self._changed.wait(POLL_S)
                self._woken = False

    def _turn(self) -> bool:
        """Sends a window; False when there is none, or the service stops before."""
        window = self._next_window()
        if window is None or not all(self._delivered(request) for request in window.requests):
            return False
        self._settle(window)
        return True

    def _begin_again(self) -> None:
        self._ahead.clear()
        self._unjudged = None
        if self._source is not None and self._notes is not None:
            self._tail = self._source.tail(self._notes.sent)

    def _next_window(self) -> Window | None:
        """What may go now; None when that is nothing."""
        with self._disk:
            notes = self._notes
        if notes is None:
            return None
        recovered = notes.until > notes.sent
        payloads = list(self._released(notes.until if recovered else None))
        self._on_disk(lambda _: self._persist(), None)
        self._show()
        if recovered:
            until = notes.until
        elif payloads:
            until = payloads[-1][0] + 1
        elif len(notes):
            until = notes.sent
        else:
            return None
        if not recovered:
            self._on_disk(lambda each: each.begin(until), None)
        late = self._on_disk(lambda each: each.late(LATE_MAX), NO_NOTES)
        return self._built([payload for _, payload in payloads], late) if recovered or payloads or late else None

    def _released(self, before: int | None) -> Iterator[tuple[int, Payload]]:
        """(position, payload) of what may go now, taken out; with `before`, all that stands before that position."""
        size = 0
        while before is not None or size < WINDOW_BYTES:
            if not self._ahead:
                self._ahead.extend(self._read())
                self._unjudged = None
            if not self._ahead:
                return
            position, payload = self._ahead[0]
            if position >= before if before is not None else not self._may_go(payload):
                return
            self._ahead.popleft()
            self._unjudged = None
            size += len(payload.data)
            yield position, payload

    def _read(self) -> list[tuple[int, Payload]]:
        assert self._tail is not None
        while True:
            try:
                return self._tail.read(WINDOW_BYTES)
            except OSError as error:
                log.warning("the journal cannot be read and is tried again", error=str(error))
                if not self._pause(RetryLater("journal")):
                    return []

    def _may_go(self, payload: Payload) -> bool:
        """Whether no verdict is waited for; it is the oldest payload."""
        if payload.signal != Kind.TRACES or self._now_ns - payload.arrival_ns >= self._hold_ns:
            return True
        if self._unjudged is None:
            self._unjudged = traces_of(kernel.rows_of(payload.data))
        self._unjudged = self._judged.without(self._unjudged)
        return not self._unjudged

    def _built(self, payloads: list[Payload], late: list[Note]) -> Window:
        lanes: dict[tuple[str, Signal], list[tuple[bytes, int]]] = {}
        on_spans: dict[int, Note] = {}
        for payload in filter(lambda payload: payload.data, payloads):  # the service's own marks are empty
            data, records, used = self._with_events(payload)
            on_spans |= {note.seq: note for note in used}
            lanes.setdefault((payload.tenant, SIGNALS[payload.signal]), []).append((data, records))
        late = [note for note in late if note.seq not in on_spans]
        for note in filter(lambda note: note.child, late):
            lanes.setdefault((note.tenant, "spans"), []).append((note.child, 1))
        requests = [request for lane, parts in lanes.items() for request in self._packed(lane, parts)]
        return Window(requests, list(on_spans.values()), late)

    def _with_events(self, payload: Payload) -> tuple[bytes, int, list[Note]]:
        """The payload's bytes with the events of its spans, how many records it holds, and whose events those are."""
        data = payload.data
        if payload.signal != Kind.TRACES or not self._notes:  # there are none
            return data, kernel.records_in(data), []
        rows = kernel.rows_of(data)
        traces = traces_of(rows)
        found = self._on_disk(lambda notes: notes.about(traces), NO_NOTES)
        events: dict[int, list[bytes]] = {}
        used = []
        for note in found:
            if note.tenant != payload.tenant:
                continue
            spans = rows_about(note, rows)
            for row in spans:
                if not carries(data, rows[row], ANOMALY):
                    events.setdefault(row, []).append(note.event)
            if spans:
                used.append(note)
        return with_events(data, rows, events) if events else data, len(rows), used

    def _packed(self, lane: tuple[str, Signal], parts: list[tuple[bytes, int]]) -> Iterator[Request]:
        """The parts, in order, as requests that the receiver takes."""
        bytes_max, size = self._config.request_bytes_max, 0
        batch: list[tuple[bytes, int]] = []
        for data, records in parts:
            cut = pieces(data, bytes_max)
            for piece in cut:
                if batch and size + len(piece) > bytes_max:
                    yield Request(*lane, batch)
                    batch, size = [], 0
                batch.append((piece, records if len(cut) == 1 else kernel.records_in(piece)))
                size += len(piece)
        if batch:
            yield Request(*lane, batch)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _delivered(self, request: Request) -> bool:
        """Sends until it is taken or refused for good; False when the service stops before."""
        assert self._transport is not None
        header = self._config.inline.tenant_header
        headers = {header: request.tenant} if header else {}
        while True:
            try:
                rejected = self._transport.send(request.signal, b"".join(data for data, _ in request.parts), headers)
            except RetryLater as later:
                if not self._pause(later):
                    return False
                continue
            except Refused as refused:
                if len(request.parts) > 1:  # one of them is at fault, not all
                    alone = (Request(request.tenant, request.signal, [part]) for part in request.parts)
                    return all(self._delivered(each) for each in alone)
                self._keep_aside(request)
                self.drop(refused.reason, request.records)
            except Exception:
                log.exception("a request cannot be sent and is kept aside", records=request.records)
                self._keep_aside(request)
                self.drop("error", request.records)
            else:
                self._meter.count("exporter_sent_total", request.records - rejected, exporter=self.name)
                self.drop("rejected", rejected)
            self._failures = 0
            return True

    def _pause(self, later: RetryLater) -> bool:
        """Waits before the next attempt; False when the service stops."""
        queue = self._config.queue
        wait = min(queue.retry_initial_s * 2 ** min(self._failures, 30), queue.retry_max_s)
        wait = max(wait * self._jitter.uniform(0.5, 1.0), min(later.after_s, RETRY_AFTER_MAX_S))
        if self._failures == 0:
            log.warning("exporter cannot deliver and tries again", exporter=self.name, reason=later.reason)
        self._failures += 1
        self._meter.count("exporter_retries_total", exporter=self.name, reason=later.reason)
        self._show()
        with self._changed:
            return not self._changed.wait_for(lambda: self._stop_at is not None, wait)

    def _keep_aside(self, request: Request) -> None:
        """Adds what was refused to a file like the Collector's: each request behind its length, 4 bytes big-endian."""
        path = self._path.with_name(f"refused_{request.signal}.binpb")
        try:
            with path.open("ab") as file:
                for data, _ in request.parts:
                    if file.tell() + len(data) <= self._config.queue.disk_bytes_max:
                        file.write(len(data).to_bytes(4, "big") + data)
        except OSError as error:
            log.warning("what was refused cannot be kept aside", error=str(error))

    def _settle(self, window: Window) -> None:
        self._on_disk(lambda notes: notes.done(window.settled), None)
        self._meter.count("exporter_sent_total", len(window.settled), exporter=self.notes_name)
        self._meter.count("inline_events_total", len(window.on_spans), place="span")
        self._meter.count("inline_events_total", len(window.late), place="child")
        if self._notes is not None and self._tail is not None:
            self._tail.pass_to(self._notes.sent)
        self._show()

    # -- notes --------------------------------------------------------------------------------------------------------

    def _persist(self) -> None:
        """Moves the inbox to disk; what is over the bound of the disk is dropped. The disk's lock is held."""
        if self._notes is None or self._source is None:
            return
        with self._changed:
            notes = list(self._inbox)
        room, kept = self._config.queue.disk_bytes_max - self._notes.size, 0
        for note in notes:
            room -= note.size
            if room < 0:
                break
            kept += 1
        if kept:
            self._notes.add(notes[:kept], self._source.durable)
            self._disk_failed = False
        with self._changed:
            del self._inbox[: len(notes)]
            self._inbox_bytes -= sum(note.size for note in notes)
        self.drop("queue_full", len(notes) - kept, self.notes_name)

    def _on_disk(self, step: Callable[[Notes], T], otherwise: T) -> T:
        """What `step` gives; `otherwise` when the disk does not do it."""
        with self._disk:
            try:
                return otherwise if self._notes is None else step(self._notes)
            except sqlite3.Error as error:
                self._disk_trouble(error)
                return otherwise

    def _disk_trouble(self, error: sqlite3.Error) -> None:
        if not self._disk_failed:
            log.warning("exporter cannot use its notes on disk", exporter=self.name, error=str(error))
        self._disk_failed = True

    def _show(self) -> None:
        notes, source = self._notes, self._source
        if notes is None or source is None:
            return
        self._meter.set("exporter_queue_length", len(notes) + len(self._inbox), exporter=self.notes_name)
        self._meter.set("exporter_queue_length", source.durable - notes.sent, exporter=self.name)
        oldest_ns = self._ahead[0][1].arrival_ns if self._ahead else self._now_ns
        self._meter.set("inline_lag_seconds", max(self._now_ns - oldest_ns, 0) / 1e9)

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()


def trace_ids(high: U64, low: U64) -> list[bytes]:
    """The ids whose halves are given, 16 bytes each."""
    ids = np.stack([high, low], axis=1).astype(">u8").tobytes()
    return [ids[at : at + 16] for at in range(0, len(ids), 16)]


def traces_of(rows: U64) -> set[bytes]:
    """The trace ids in rows of `kernels/spans.py`."""
    return set(trace_ids(rows[:, kernel.TRACE_HI], rows[:, kernel.TRACE_LO]))


def rows_about(note: Note, rows: U64) -> list[int]:
    """The rows that are the span of the note: more than one when it came more than once."""
    high, low, span = (int.from_bytes(half, "big") for half in (note.trace_id[:8], note.trace_id[8:], note.span_id))
    is_it = (rows[:, kernel.TRACE_HI] == np.uint64(high)) & (rows[:, kernel.TRACE_LO] == np.uint64(low))
    is_it &= (rows[:, kernel.SPAN_ID] == np.uint64(span)) & (rows[:, kernel.KIND] == np.uint64(note.kind))
    return [int(row) for row in np.flatnonzero(is_it)]
