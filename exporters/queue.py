"""The bounded queue between the engine and one sink, with the thread that empties it.

How it works. `put` only appends to a deque under a lock that nobody holds for long; what does not fit is counted and
gone. The worker thread gives the oldest items to `deliver`; when the sink cannot take them now (`RetryLater`) it waits,
twice as long each time, spread at random, never shorter than the sink asked for. With a `path` the worker first moves
what comes in to disk (`backlog.py`) and delivers from there, so that what a dead sink has not taken survives a restart,
and memory stays small however long it is dead. When the disk itself fails, items go from memory to the sink directly.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from collector_processor.config import QueueConfig
from exporters.backlog import Backlog, DiskBacklog, Item, MemoryBacklog
from exporters.protocol import Meter

DROP_REASONS = ("queue_full", "refused", "rejected", "too_large", "shutdown", "error")
RETRY_AFTER_MAX_S = 300.0  # longest wait that a sink may ask for

log = structlog.get_logger(__name__)

Deliver = Callable[[list[Item]], int]
"""Sends items; returns how many of them the sink took but rejected. Raises `RetryLater` or `Refused`."""


class RetryLater(Exception):  # noqa: N818  # a request, not an error
    """The sink cannot take it now. `reason` is a label value; `after_s` is what the sink asked for."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


class Refused(Exception):  # noqa: N818  # as above
    """The sink will never take it. `reason` is a label value."""

    def __init__(self, reason: str = "refused") -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerQueue:
    """A queue named `name`. `wait_when_full` makes `put` wait for room: for replay, where nothing may be dropped."""

    def __init__(
        self,
        name: str,
        config: QueueConfig,
        meter: Meter,
        deliver: Deliver,
        *,
        batch_items: int = 512,
        batch_bytes: int = 1 << 22,
        path: Path | None = None,
        wait_when_full: bool = False,
    ) -> None:
        self.name = name
        self._config = config
        self._meter = meter
        self._deliver = deliver
        self._batch = (batch_items, batch_bytes)
        self._path = path
        self._wait_when_full = wait_when_full
        self._jitter = random.Random()
        self._inbox = MemoryBacklog()
        self._disk: DiskBacklog | None = None
        self._changed = threading.Condition()  # guards the inbox, the counters and the flags
        self._disk_lock = threading.Lock()  # guards the disk; taken before `_changed`
        self._thread: threading.Thread | None = None
        self._woken = False
        self._stop_at: float | None = None  # monotonic; set once, by shutdown
        self._abandoned = False
        self._disk_failed = False  # the last move to disk failed
        self._lent = False  # the worker delivers from memory although there is a disk: nothing may move meanwhile
        self._waiting = 0  # verdicts and incidents in memory and on disk
        self._put = 0  # items ever put
        self._done = 0  # of those, the ones that left memory
        self._failures = 0  # in a row
        self._try_at = 0.0

    def start(self) -> None:
        """Opens the disk and starts the worker. Raises `OSError` when the disk cannot be had."""
        if self._thread is not None or self._stop_at is not None:
            return
        if self._path is not None:
            self._disk = DiskBacklog(self._path)
        self._count(0 if self._disk is None else len(self._disk))
        # There from the start, at 0, so that the first increase is seen as one.
        self._meter.count("exporter_sent_total", 0, exporter=self.name)
        for reason in DROP_REASONS:
            self._meter.count("exporter_dropped_total", 0, exporter=self.name, reason=reason)
        self._thread = threading.Thread(target=self._run, name=f"exporter-{self.name}", daemon=True)
        self._thread.start()

    def put(self, items: Sequence[Item]) -> None:
        """Takes items, or counts those that do not fit. Waits for nothing, unless the queue was made to."""
        dropped = 0
        with self._changed:
            for item in items:
                while self._wait_when_full and self._stop_at is None and not self._fits(item.size):
                    self._wake()
                    self._changed.wait()
                if self._stop_at is None and self._fits(item.size):
                    self._inbox.append([item])
                    self._put += 1
                    self._waiting += item.number
                else:
                    dropped += item.number
            stopped = self._stop_at is not None
            self._wake()
        self.drop("shutdown" if stopped else "queue_full", dropped)
        self._count(0)

    def flush(self, deadline_s: float) -> bool:
        """True once what was put before is on disk, or without a disk: delivered or given up."""
        end = time.monotonic() + deadline_s
        if self._disk is not None:
            self._persist(deadline_s)
            if not self._on_disk(DiskBacklog.sync, deadline_s):
                return False
        with self._changed:
            put = self._put
            return self._changed.wait_for(lambda: self._done >= put, max(end - time.monotonic(), 0))

    def checkpointed(self) -> None:
        """Tells the disk which keys it may forget; a disk that is busy or broken forgets them another time."""
        self._on_disk(DiskBacklog.checkpointed, 1.0)

    def shutdown(self, deadline_s: float) -> None:
        """Delivers until empty or `deadline_s` is over; then what is not on disk is counted as dropped."""
        with self._changed:
            if self._stop_at is not None:
                return
            self._stop_at = time.monotonic() + deadline_s
            self._try_at = 0.0
            self._wake()
        if self._thread is not None:
            self._thread.join(deadline_s)
        self._persist(1.0)
        with self._changed:
            self._abandoned = True
            left = self._inbox.oldest(len(self._inbox), self._inbox.size)
            self._inbox.drop_oldest(len(left))
            self._done += len(left)
        self.drop("shutdown", _number(left))
        self._count(-_number(left))
        if self._disk is not None and self._disk_lock.acquire(timeout=1):
            with contextlib.suppress(sqlite3.Error):
                self._disk.close()
            self._disk = None
            self._disk_lock.release()

    def __len__(self) -> int:
        """Verdicts and incidents that wait."""
        return self._waiting

    def _wake(self) -> None:
        self._woken = True
        self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        inbox, config = self._inbox, self._config
        # Something larger than the whole queue goes through alone where waiting is asked for: it would wait for ever.
        alone = self._wait_when_full and len(inbox) == 0
        return alone or (len(inbox) < config.items_max and inbox.size + size <= config.bytes_max)

    def _run(self) -> None:
        while True:
            self._persist()
            with self._changed:
                now = time.monotonic()
                if self._abandoned or self._must_stop(now):
                    return
                wait = None if len(self) == 0 else max(self._try_at - now, 0.0)
                if wait is None or wait > 0:
                    if self._stop_at is not None:
                        wait = min(wait or 0.0, self._stop_at - now)
                    if not self._woken:
                        self._changed.wait(wait)
                    self._woken = False
                    continue
            self._attempt()

    def _must_stop(self, now: float) -> bool:
        """After `shutdown`: nothing is left, or the time is over, or the rest is safe on disk and the sink is down."""
        if self._stop_at is None:
            return False
        safe = self._disk is not None and len(self._inbox) == 0 and self._failures > 0
        return len(self) == 0 or now >= self._stop_at or safe

    def _attempt(self) -> None:
        """Delivers one batch: from memory, or from the disk where there is one that works."""
        source, batch = self._oldest()
        if not batch:
            return
        try:
            self._send(source, batch)
        finally:
            self._lent = False

    def _send(self, source: Backlog, batch: list[Item]) -> None:
        try:
            rejected = self._deliver(batch)
        except RetryLater as later:
            self._retry(later.reason, later.after_s)
            return
        except Refused as refused:
            self.drop(refused.reason, _number(batch))
        except Exception:
            log.exception("exporter failed on a batch and goes on without it", exporter=self.name, items=len(batch))
            self.drop("error", _number(batch))
        else:
            self._meter.count("exporter_sent_total", _number(batch) - rejected, exporter=self.name)
            now = time.time()
            waited = [max(now - item.made_at, 0.0) for item in batch]  # a clock may have been set back
            self._meter.observe("exporter_delay_seconds", waited, exporter=self.name)
            self.drop("rejected", rejected)
        try:
            self._forget(source, batch)
        except sqlite3.Error as error:
            log.warning("exporter cannot note on disk what was delivered", exporter=self.name, error=str(error))
            self._retry("disk", 0)
            return
        if self._failures:
            log.info("exporter delivers again", exporter=self.name, failures=self._failures)
        self._failures = 0

    def _oldest(self) -> tuple[Backlog, list[Item]]:
        disk = self._disk
        if disk is not None:
            with self._disk_lock:
                self._lent = self._disk_failed and len(disk) == 0
                try:
                    if not self._lent:
                        return disk, disk.oldest(*self._batch)
                except sqlite3.Error as error:
                    log.warning("exporter cannot read its queue on disk", exporter=self.name, error=str(error))
                    self._retry("disk", 0)
                    return disk, []
        with self._changed:
            return self._inbox, self._inbox.oldest(*self._batch)

    def _forget(self, source: Backlog, batch: list[Item]) -> None:
        if source is self._disk:
            with self._disk_lock:
                source.drop_oldest(len(batch))
        else:
            with self._changed:
                if self._abandoned:
                    return
                source.drop_oldest(len(batch))
                self._done += len(batch)
                self._changed.notify_all()
        self._count(-_number(batch))

    def _retry(self, reason: str, after_s: float) -> None:
        config = self._config
        wait = min(config.retry_initial_s * 2 ** min(self._failures, 30), config.retry_max_s)
        wait *= self._jitter.uniform(0.5, 1.0)
        if self._failures == 0:
            log.warning("exporter cannot deliver and tries again", exporter=self.name, reason=reason)
        self._failures += 1
        self._try_at = time.monotonic() + max(wait, min(after_s, RETRY_AFTER_MAX_S))
        self._meter.count("exporter_retries_total", exporter=self.name, reason=reason)

    def _persist(self, timeout_s: float = -1) -> None:
        """Moves the inbox to disk; what is over the bound of the disk is dropped. On an error all stays in memory."""
        disk = self._disk
        if disk is None or len(self._inbox) == 0 or not self._disk_lock.acquire(timeout=timeout_s):
            return
        try:
            if self._lent:
                return
            with self._changed:
                items = self._inbox.oldest(len(self._inbox), self._config.bytes_max)
            room, kept = self._config.disk_bytes_max - disk.size, 0
            for item in items:
                room -= item.size
                if room < 0:
                    break
                kept += 1
            known = kept - disk.append(items[:kept])
            self._disk_failed = False
            with self._changed:
                self._inbox.drop_oldest(len(items))
                self._done += len(items)
                self._changed.notify_all()
        except sqlite3.Error as error:
            if not self._disk_failed:
                log.warning("exporter cannot write to its queue on disk", exporter=self.name, error=str(error))
            self._disk_failed = True
            return
        finally:
            self._disk_lock.release()
        self.drop("queue_full", _number(items[kept:]))
        self._count(-known - _number(items[kept:]))

    def _on_disk(self, step: Callable[[DiskBacklog], None], timeout_s: float) -> bool:
        """Does `step` on the disk, if there is one; whether it was done."""
        if not self._disk_lock.acquire(timeout=timeout_s):
            return False
        try:
            if self._disk is not None:
                step(self._disk)
        except sqlite3.Error as error:
            log.warning("exporter cannot write to its queue on disk", exporter=self.name, error=str(error))
            return False
        finally:
            self._disk_lock.release()
        return True

    def drop(self, reason: str, number: int) -> None:
        """Counts what was given up."""
        if number:
            self._meter.count("exporter_dropped_total", number, exporter=self.name, reason=reason)

    def _count(self, change: int) -> None:
        with self._changed:
            self._waiting += change
            self._meter.set("exporter_queue_length", self._waiting, exporter=self.name)


def _number(items: Sequence[Item]) -> int:
    return sum(item.number for item in items)
