"""The write-ahead log: what is acknowledged has been appended here, and a restart reads it again.

How it works. `append` numbers a payload, writes its frame (segment.py) and returns when the frame is as durable as
configured. With `fsync`, whoever comes first syncs for everybody whose frame is already written, and the others wait:
under load one sync serves many requests, without a thread of its own. Each that waits has a lock of its own, so that
nobody is woken for nothing; what was written during a sync is synced by the first of those who wait then. Segments end
at a size or an age, so that those that no checkpoint needs any more can go.

A journal that is opened syncs what it finds before anybody replays it: its writer may have been killed before it could.

A write or sync that fails (disk full, I/O error) is taken back: the caller gets `JournalUnavailableError` and must not
acknowledge. After a failed sync nobody knows what is on the disk, so that segment is cut and left, and the next append
begins a new one. When there is room again, appends succeed again, with no hand needed.

What was taken back may still be there when the cut fails too, or be back after a power cut, and what follows has been
decided without it. So its position is given again, and a segment ends, for every reader, before the first position of
the next one, which is in that one's name.

`on_durable`, when given, is called with each durable payload in the order of positions, under the journal's lock: a
queue filled there has exactly the order that a replay gives.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from collector_processor.config import JournalConfig
from collector_processor.journal.segment import (
    HEADER,
    ReadCounters,
    Segment,
    frame,
    last_of,
    new_salt,
    read,
    read_on,
    segments_in,
    write_all,
)
from collector_processor.model import Payload

FIRST_POSITION = 1
FAILURES_MAX = 10  # to read a segment, before a tail goes on behind it


class JournalUnavailableError(Exception):
    """The payload is not durable; the sender should come again. reason: disk_full, io_error, journal_full or closed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class JournalLockedError(OSError):
    """Another process has the journal open."""


@dataclass(slots=True)
class Counters:
    """What the journal did since it was opened."""

    appended: int = 0
    appended_bytes: int = 0
    syncs: int = 0
    failures: int = 0
    truncated_segments: int = 0


class _Waiting:
    """An append that is written and not yet synced."""

    __slots__ = ("error", "is_done", "payload", "position", "woken")

    def __init__(self, position: int, payload: Payload) -> None:
        self.position = position
        self.payload = payload
        self.is_done = False
        self.error: JournalUnavailableError | None = None
        self.woken = threading.Lock()  # held until it is done, or has to sync
        self.woken.acquire()


class Journal:
    """An open journal. All methods may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        config: JournalConfig,
        on_durable: Callable[[int, Payload], None] | None,
        lock_descriptor: int,
        next_position: int,
        last_arrival_ns: int,
    ) -> None:
        self.directory = directory
        self.config = config
        self.counters = Counters()
        self.read_counters = ReadCounters()
        self._on_durable = on_durable
        self._lock_descriptor = lock_descriptor
        self.last_arrival_ns = last_arrival_ns  # of what was there when it was opened; 0 when that was nothing
        self._next = self._durable = next_position
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[_Waiting] = deque()
        self._is_syncing = False
        self._is_closed = False
        self._segments = segments_in(directory)
        self._sizes = {segment.number: segment.path.stat().st_size for segment in self._segments}
        self._size = sum(self._sizes.values())
        self._tails: list[Tail] = []
        self._needless = 0  # the position from which checkpoints need the journal
        self._synced = 0  # bytes of the current segment that a sync has covered
        self._descriptor = -1
        self._is_spoiled = False  # the current segment ends in what was taken back and could not be cut off
        self._began = 0.0

    @classmethod
    def open(
        cls,
        directory: Path,
        config: JournalConfig,
        *,
        at_least: int = FIRST_POSITION,
        on_durable: Callable[[int, Payload], None] | None = None,
    ) -> Journal:
        """The journal in `directory`, which is made when missing.

        at_least: lowest position to give next; the position of the newest checkpoint, so that a journal that lost its
        files never gives a position that the checkpoint has passed. Errors: JournalLockedError, OSError.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if directory.stat().st_mode & 0o077:
            directory.chmod(0o700)  # made by somebody else, and what is in it is what was sent
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise JournalLockedError(f"another process uses the journal in {directory}") from error
        try:
            end, arrival_ns = _end_of(directory)
            if config.durability == "fsync":
                _sync_found(directory)
            return cls(directory, config, on_durable, descriptor, max(at_least, end), arrival_ns)
        except OSError:
            os.close(descriptor)
            raise

    @property
    def position(self) -> int:
        """The position that the next payload gets."""
        return self._next

    @property
    def durable(self) -> int:
        """The position before which everything is as durable as configured."""
        return self._durable

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return self._size

    def append(self, payload: Payload) -> int:
        """Writes `payload` and returns its position once it is durable. Errors: JournalUnavailableError."""
        checksum = zlib.crc32(payload.data) if self.config.durability != "none" else 0
        with self._lock:
            if self._is_closed:
                raise JournalUnavailableError("closed", "the journal is closed")
            position = self._next if self.config.durability == "none" else self._written(payload, checksum)
            self._next = position + 1
            self.counters.appended += 1
            self.counters.appended_bytes += len(payload.data)
            if self.config.durability != "fsync":
                self._delivered(position, payload)
                return position
            waiting = _Waiting(position, payload)
            self._waiting.append(waiting)
            if not self._is_syncing:
                self._sync()
        waiting.woken.acquire()
        if not waiting.is_done:
            with self._lock:
                self._sync()
        if waiting.error is not None:
            raise waiting.error
        return position

    def replay(self, from_position: int = 0, to_position: int | None = None) -> Iterator[tuple[int, Payload]]:
        """(position, payload) from `from_position` on and before `to_position`, as far as it is written by now."""
        with self._lock:
            segments = list(self._segments)
            end = self._next if to_position is None else to_position
        for index, segment in enumerate(segments):
            following = segments[index + 1].first if index + 1 < len(segments) else end
            before = min(following, end)
            if before <= max(from_position, segment.first):
                continue
            with self._lock:
                size = self._sizes.get(segment.number)
            if size is None:  # truncated meanwhile
                continue
            for position, payload in read(segment, self.read_counters, size):
                if position >= before:
                    break
                if position >= from_position:
                    yield position, payload

    def tail(self, position: int) -> Tail:
        """A reader that follows what is written, from `position` on; what it has not passed is not truncated."""
        tail = Tail(self, position)
        with self._lock:
            self._tails.append(tail)
        return tail

    def segments(self) -> list[tuple[Segment, int]]:
        """(segment, its bytes) as they are now, oldest first."""
        with self._lock:
            return [(segment, self._sizes[segment.number]) for segment in self._segments]

    def truncate(self, before_position: int) -> int:
        """Deletes segments whose frames are all before `before_position`, passed by every tail, and past retention;
        gives the bytes freed."""
        freed = 0
        keep_after = time.time() - self.config.retention_s
        with self._lock:
            self._needless = max(self._needless, before_position)
            before = min([self._needless, *(tail.passed for tail in self._tails)])
            while len(self._segments) > 1 and self._segments[1].first <= before:
                path = self._segments[0].path
                try:
                    if self.config.retention_s and path.stat().st_mtime > keep_after:
                        break
                    path.unlink(missing_ok=True)
                except OSError:
                    break
                freed += self._sizes.pop(self._segments.pop(0).number)
                self.counters.truncated_segments += 1
            self._size -= freed
        return freed

    def close(self) -> None:
        """Syncs and lets go of the files; safe to call twice."""
        with self._lock:
            while self._waiting and not self._is_closed:
                if self._is_syncing:
                    self._changed.wait()
                else:
                    self._sync()
            if self._is_closed:
                return
            self._is_closed = True
            self._leave_segment()
            os.close(self._lock_descriptor)

    def _written(self, payload: Payload, checksum: int) -> int:
        """The position of `payload`, whose frame is in the file then. Errors: JournalUnavailableError."""
        size = len(payload.data)
        if self._size + size > self.config.bytes_max:
            self.counters.failures += 1
            raise JournalUnavailableError("journal_full", "the journal has reached its limit")
        try:
            segment = self._segment_for(size)
            written = write_all(self._descriptor, frame(payload, checksum, self._next, segment.salt))
        except OSError as error:
            self._cut(self._sizes[self._segments[-1].number] if self._segments else 0)
            raise self._unavailable(error) from error
        self._sizes[segment.number] += written
        self._size += written
        return self._next

    def _segment_for(self, size: int) -> Segment:
        """The segment to write `size` bytes to: the current one, or a new one when that is full, old or left.

        May let go of the lock meanwhile, so that positions are given after it. Errors: OSError.
        """
        while self._descriptor >= 0:
            current = self._segments[-1]
            used = self._sizes[current.number]
            is_full = used > HEADER.size and used + size > self.config.segment_bytes_max
            is_old = time.monotonic() - self._began > self.config.segment_age_s
            if not (is_full or is_old or self._is_spoiled):
                return current
            if self._is_syncing:
                self._changed.wait()
            elif self._waiting:
                self._sync()
            else:
                self._leave_segment()
        number = self._segments[-1].number + 1 if self._segments else 1
        segment = Segment(number, self._next, new_salt(), self.directory)
        descriptor = segment.create()
        try:
            if self.config.durability == "fsync":
                sync_directory(self.directory)
        except OSError:  # the name may be gone after a power cut: nothing may be acknowledged from such a file
            os.close(descriptor)
            segment.path.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor
        self._began = time.monotonic()
        self._is_spoiled = False
        self._segments.append(segment)
        self._sizes[number] = self._synced = HEADER.size
        self._size += HEADER.size
        return segment

    def _sync(self) -> None:
        """Syncs what is written, with the lock released meanwhile, and answers those who wait for it; then the first of
        those who have come meanwhile has to sync, and nobody else may before."""
        self._is_syncing = True
        batch = list(self._waiting)
        descriptor, error = self._descriptor, None
        size = self._sizes[self._segments[-1].number]
        self._lock.release()
        try:
            os.fdatasync(descriptor)
        except OSError as failed:
            error = failed
        finally:
            self._lock.acquire()
        self.counters.syncs += 1
        unavailable = None
        if error is None:
            self._synced = size
        else:
            batch = list(self._waiting)  # what was written meanwhile is in doubt as well
            self._cut(self._synced)
            self._leave_segment()
            self._next = batch[0].position
            unavailable = self._unavailable(error)
        for waiting in batch:
            self._waiting.popleft()
            waiting.error = unavailable
            waiting.is_done = True
            if unavailable is None:
                self._delivered(waiting.position, waiting.payload)
            waiting.woken.release()
        self._is_syncing = bool(self._waiting)
        if self._waiting:
            self._waiting[0].woken.release()
        self._changed.notify_all()

    def _delivered(self, position: int, payload: Payload) -> None:
        self._durable = position + 1
        if self._on_durable is not None:
            self._on_durable(position, payload)

    def _cut(self, size: int) -> None:
        """Takes back what the current segment holds beyond `size`; nothing more is written to it when that fails."""
        if self._descriptor < 0:
            return
        number = self._segments[-1].number
        try:
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)
            self._size += size - self._sizes[number]
            self._sizes[number] = size
        except OSError:
            self._is_spoiled = True

    def _leave_segment(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _unavailable(self, error: OSError) -> JournalUnavailableError:
        self.counters.failures += 1
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return JournalUnavailableError("disk_full", "the disk is full")
        return JournalUnavailableError("io_error", "the disk cannot be written")


class Tail:
    """Follows a journal that is being written, for one reader's thread. What is durable comes once, in order."""

    def __init__(self, journal: Journal, position: int) -> None:
        self._journal = journal
        self._last = position - 1
        self.passed = position  # what is before it may go
        self._number, self._at = 0, HEADER.size  # the segment that is being read, and how far
        self._failures = 0  # in a row

    def read(self, bytes_max: int) -> list[tuple[int, Payload]]:
        """(position, payload) of about `bytes_max` bytes more, or at least one; nothing when nothing is left by now.

        Damage is passed over and counted, a segment that can never be read too. Errors: OSError, to be tried again.
        """
        durable = self._journal.durable  # first: what is durable now is in the sizes that are looked up then
        segments = self._journal.segments()
        for index, (segment, size) in enumerate(segments):
            following = segments[index + 1][0].first if index + 1 < len(segments) else durable
            before = min(following, durable)
            if segment.number < self._number or before <= self._last + 1:
                continue
            if segment.number > self._number:
                self._number, self._at = segment.number, HEADER.size
            if self._at >= size:
                continue
            found, next_at = self._found(segment, size, bytes_max)
            out = [(position, payload) for position, payload, _ in found if position < before]
            if len(out) == len(found):
                self._at = next_at
            elif out:
                self._at = found[len(out) - 1][2]
            if out:
                self._last = out[-1][0]
                return out
        return []

    def pass_to(self, position: int) -> None:
        """What is before `position` is not needed here any more; segments that nobody needs go at once, not with the
        next checkpoint: a disk that is full has no room for one."""
        self.passed = position
        self._journal.truncate(0)

    def _found(self, segment: Segment, size: int, bytes_max: int) -> tuple[list[tuple[int, Payload, int]], int]:
        counters, last = self._journal.read_counters, self._last
        try:
            found = read_on(segment, counters, self._at, size, last, bytes_max)
        except FileNotFoundError:  # truncated meanwhile
            found = [], size
        except OSError:
            self._failures += 1
            if self._failures < FAILURES_MAX:
                raise
            counters.unreadable_files += 1
            found = [], size
        self._failures = 0
        return found


def _end_of(directory: Path) -> tuple[int, int]:
    """The position after the last good frame in `directory`, and when that one arrived (0: there is none)."""
    segments = segments_in(directory)
    end = segments[-1].first if segments else FIRST_POSITION
    for segment in reversed(segments):
        last = last_of(segment)
        if last is not None:
            return max(end, last.position + 1), last.arrival_ns
    return end, 0


def _sync_found(directory: Path) -> None:
    """Syncs what an earlier run may have written and not synced before it was killed: what is replayed now, and so
    decided, must still be there after a power cut. Older segments were synced before the next one was begun.

    Errors: OSError.
    """
    segments = segments_in(directory)
    if segments:
        descriptor = os.open(segments[-1].path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable. Errors: OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
