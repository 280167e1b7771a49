"""Recorded OTLP as a source: the files that a Collector's file exporter writes, read back in event time.

How it works. What a file holds is told by its bytes, never by its name:

| bytes | form |
|---|---|
| zstd or gzip magic at the start | the whole file is compressed; what is inside is looked at again |
| `{` first | one JSON request a line |
| else | each request behind its length, four bytes big-endian; each may be zstd by itself; protobuf or JSON |

A request's signal shows in its records (`kernels/peek.py`), its event time is the median over them. Files are merged by
that time. It becomes `arrival_ns` and never goes back; a jump of more than an hour counts only when the requests that
follow agree, so a crazy clock moves nothing. What cannot be read is counted, with file and place, and the rest goes on.
Files are streamed: at most a few requests of each are in memory.
"""

from __future__ import annotations

import heapq
import io
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import zstandard

from collector_processor.ingest.answers import RefusedError
from collector_processor.ingest.inflate import inflate
from collector_processor.kernels import peek as kernel
from collector_processor.model import Payload, Signal

HOUR_NS: Final = 3_600_000_000_000
MONTH_NS: Final = 30 * 24 * HOUR_NS
CONFIRMING: Final = 8  # requests that are asked whether a jump of the clock is real
MESSAGES_MAX: Final = 100
BUFFER_BYTES: Final = 1 << 20
WINDOW_BYTES_MAX: Final = 1 << 27  # of a whole file compressed with zstd; `--long=27`
ZSTD: Final = b"\x28\xb5\x2f\xfd"
GZIP: Final = b"\x1f\x8b"
BLANKS: Final = b" \t\r\n"

FromJson = Callable[[bytes], tuple[Signal, bytes]]
"""OTLP JSON to its signal and protobuf; ValueError when it is not that (`decode.otlp_json.to_protobuf`)."""


@dataclass(slots=True)
class Progress:
    """How far the reading is, and what could not be read. `rejected` counts lines and frames by reason."""

    bytes_total: int
    bytes_read: int = 0
    requests: int = 0
    metrics: int = 0  # requests of metrics: they are left out
    rejected: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)  # the first MESSAGES_MAX

    def reject(self, reason: str, place: str, why: str) -> None:
        """Counts a line or frame that cannot be read."""
        self.rejected[reason] += 1
        if len(self.messages) < MESSAGES_MAX:
            self.messages.append(f"{place}: {why}")


class _Request(NamedTuple):
    signal: Signal
    data: bytes
    time_ns: int  # -1 unknown


class _File:
    """The requests of one file in the order in which they were written."""

    def __init__(self, path: Path, from_json: FromJson, bytes_max: int, progress: Progress) -> None:
        self.path = path
        self.from_json = from_json
        self.bytes_max = bytes_max
        self.progress = progress
        self._counted = 0
        self._votes = np.zeros(3, np.int64)
        self._times = np.zeros((2, kernel.SAMPLE), np.int64)

    def __iter__(self) -> Iterator[_Request]:
        with self.path.open("rb") as raw:
            try:
                stream = _decompressed(raw)
                lines = _is_text(stream.peek(4)[:4])
                for place, data in self._lines(stream) if lines else self._frames(stream):
                    self._count(raw.tell())
                    request = self._request(place, data)
                    if request is not None:
                        yield request
            except (zstandard.ZstdError, zlib.error, EOFError, OSError) as error:
                self.progress.reject("damaged", f"{self.path}, byte {raw.tell()}", f"cannot read on: {error}")
            self._count(self.path.stat().st_size)

    def _count(self, position: int) -> None:
        self.progress.bytes_read += position - self._counted
        self._counted = position

    def _lines(self, stream: io.BufferedReader) -> Iterator[tuple[str, bytes]]:
        number = 0
        while line := stream.readline(self.bytes_max + 1):
            number += 1
            place = f"{self.path}, line {number}"
            if len(line) > self.bytes_max:
                self.progress.reject("too_large", place, f"a request of more than {self.bytes_max} bytes")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(BUFFER_BYTES)
            elif line.strip(BLANKS):
                yield place, line

    def _frames(self, stream: io.BufferedReader) -> Iterator[tuple[str, bytes]]:
        position = 0
        while head := stream.read(4):
            place = f"{self.path}, byte {position}"
            size = int.from_bytes(head, "big")
            if len(head) == 4 and size > self.bytes_max:
                self.progress.reject("bad_length", place, f"a length of {size} bytes; nothing after it can be read")
                return
            data = stream.read(size) if len(head) == 4 else b""
            if len(head) < 4 or len(data) < size:
                self.progress.reject("truncated", place, f"{len(data)} of {size} bytes are there")
                return
            position += 4 + size
            if data:
                yield place, data

    def _request(self, place: str, data: bytes) -> _Request | None:
        """What one line or frame holds; None when it cannot be read or is not for us."""
        try:
            if data.startswith(ZSTD):
                data = inflate(data, "zstd", self.bytes_max)
            if data.lstrip(BLANKS)[:1] == b"{":
                signal, data = self.from_json(data)
                _, records, time_ns = self._peek(data)
            else:
                signal, records, time_ns = self._told_by_records(data)
        except (ValueError, RefusedError) as error:
            torn = data.lstrip(BLANKS)[:1] == b"{" and not data.rstrip(BLANKS).endswith(b"}")
            self.progress.reject("truncated" if torn else "unreadable", place, str(error))
            return None
        if signal == Signal.METRICS:
            self.progress.metrics += 1
            return None
        self.progress.requests += 1
        return _Request(signal, data, time_ns) if records else None

    def _told_by_records(self, data: bytes) -> tuple[Signal, int, int]:
        number, records, time_ns = self._peek(data)
        if records < 0 or (records > 0 and number < 0):
            raise ValueError("neither spans, nor log records, nor metrics")
        return Signal(max(0, number)), records, time_ns

    def _peek(self, data: bytes) -> tuple[int, int, int]:
        number, records, time_ns = kernel.peek(np.frombuffer(data, np.uint8), self._votes, self._times)
        return int(number), int(records), int(time_ns)


def _is_text(start: bytes) -> bool:
    """Whether a file that begins with the bytes `start` holds lines. Text read as a length is above half a gigabyte."""
    return start.lstrip(BLANKS)[:1] == b"{" or all(byte in BLANKS or 0x20 <= byte < 0x7F for byte in start)


def _decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    """`raw` from its start, decompressed when the whole file is, as a buffered stream."""
    magic = raw.read(4)
    raw.seek(0)
    if magic == ZSTD:
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        return io.BufferedReader(decompressor.stream_reader(raw, read_across_frames=True), BUFFER_BYTES)
    if magic.startswith(GZIP):
        return io.BufferedReader(_Gunzip(raw), BUFFER_BYTES)
    return io.BufferedReader(raw, BUFFER_BYTES)


class _Gunzip(io.RawIOBase):
    """gzip members one after the other. Unlike `gzip.GzipFile`, gives all that stands before the place of damage."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._stream = zlib.decompressobj(31)  # 31: gzip, window of 32 KiB
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` as far as the next piece goes. Raises EOFError when a member is cut off, zlib.error."""
        while True:
            if self._stream.eof:
                self._rest = self._stream.unused_data or self._raw.read(BUFFER_BYTES)
                if not self._rest:
                    return 0
                self._stream = zlib.decompressobj(31)
            compressed = self._rest or self._raw.read(BUFFER_BYTES)
            piece = self._stream.decompress(compressed, len(buffer))
            self._rest = self._stream.unconsumed_tail
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)
            if not compressed and not self._stream.eof:
                raise EOFError("the file ends inside a gzip member")


def _steady(requests: Iterable[_Request]) -> Iterator[tuple[int, _Request]]:
    """(event time, request): the time never goes back, and jumps above an hour only when what follows agrees."""
    source = iter(requests)
    ahead: deque[_Request] = deque()
    clock = -1
    while True:
        wanted = CONFIRMING if clock < 0 else 1
        while len(ahead) < wanted and (one := next(source, None)) is not None:
            ahead.append(one)
        if not ahead:
            return
        request = ahead.popleft()
        time_ns = request.time_ns
        if clock < 0:
            # The first is wrong when it is later than the others, or a month earlier: a clock that starts in 1970.
            agreed = _median([request, *ahead])
            sound = [t for t in (time_ns, *(r.time_ns for r in ahead)) if agreed - MONTH_NS <= t <= agreed + HOUR_NS]
            time_ns = time_ns if time_ns in sound else min(sound, default=-1)
        elif time_ns > clock + HOUR_NS:
            while len(ahead) < CONFIRMING and (one := next(source, None)) is not None:
                ahead.append(one)
            agreed = _median(ahead)
            time_ns = min(time_ns, agreed + HOUR_NS) if agreed > clock + HOUR_NS else clock
        clock = max(clock, time_ns)
        yield clock, request


def _median(requests: Iterable[_Request]) -> int:
    """The lower median of the requests' known times, -1 when none is known."""
    times = sorted(request.time_ns for request in requests if request.time_ns >= 0)
    return times[(len(times) - 1) // 2] if times else -1


def recorded_files(paths: Iterable[Path]) -> list[Path]:
    """`paths` with each folder replaced by the recordings in it, in the order of their names.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without a recording.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in sorted(path.iterdir()) if file.is_file() and is_recording(file)]
            if not inside:
                raise FileNotFoundError(f"{path}: no recorded OTLP in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file")
    return found


def is_recording(path: Path) -> bool:
    """Whether `path` begins as a recording does: a line that names OTLP's resources, or a sound length."""
    with path.open("rb") as raw:
        try:
            stream = _decompressed(raw)
            start = stream.read(65536)
        except (zstandard.ZstdError, zlib.error, EOFError, OSError):
            return False
    text = start.lstrip(BLANKS)
    if text[:1] == b"{":
        line = text.split(b"\n", 1)[0]
        return any(b'"resource%s' % name in line for name in (b"Spans", b"Logs", b"Metrics", b"_spans", b"_logs"))
    size = int.from_bytes(start[:4], "big")
    inside = start[4:8]
    return len(start) > 4 and 0 < size <= 1 << 30 and (inside == ZSTD or inside[:1] in {b"\n", b"{"})


class NothingReadError(OSError):
    """Not one request of the files could be read; the message says what is wrong at the first place."""


class Recording:
    """Recorded files as one stream. Iterating gives (payload, progress) in event time, once.

    Raises at its end:
        NothingReadError: the files hold something, and nothing of it is OTLP.
    """

    def __init__(self, paths: Iterable[Path], from_json: FromJson, *, tenant: str, bytes_max: int) -> None:
        found = recorded_files(paths)
        self.tenant = tenant
        self.progress = Progress(sum(path.stat().st_size for path in found))
        self._streams = [_steady(_File(path, from_json, bytes_max, self.progress)) for path in found]

    def __iter__(self) -> Iterator[tuple[Payload, Progress]]:
        heads = [(*head, index) for index, stream in enumerate(self._streams) if (head := next(stream, None))]
        heap = [(time_ns, index, request) for time_ns, request, index in heads]
        heapq.heapify(heap)
        now = 0
        while heap:
            time_ns, index, request = heap[0]
            now = max(now, time_ns)
            yield Payload(request.signal, self.tenant, request.data, now), self.progress
            following = next(self._streams[index], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following[0], index, following[1]))
        if self.progress.rejected and not self.progress.requests and not self.progress.metrics:
            raise NothingReadError(f"no request could be read: {self.progress.messages[0]}")


def open_recording(paths: Iterable[Path], from_json: FromJson, *, tenant: str, bytes_max: int) -> Recording:
    """Every request of the recorded files `paths` (folders too) in event time, and how far the reading is.

    `arrival_ns` is the event time and never falls. bytes_max: of one request, compressed or not. The `Progress` is the
    same object each time, also `Recording.progress`; it is complete when the iterator ends.

    Raises:
        FileNotFoundError: as `recorded_files`.
    """
    return Recording(paths, from_json, tenant=tenant, bytes_max=bytes_max)
