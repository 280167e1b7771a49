"""One file of the journal: how a frame is written, and how it is found again whatever has happened to the file.

How it works. A segment is a header and frames one after the other:

| frame | bytes | | |---|---|---| | magic | 4 | where a search for the next frame can stop | | checksum | 4 | CRC-32 of
the rest of the head and the tenant, begun with the segment's salt | | payload's checksum | 4 | CRC-32 | | length | 4 |
of the payload | | position | 8 | number of the payload in the journal, ascending | | arrival_ns | 8 | | | signal,
tenant length | 1 + 1 | and two bytes of zero | | tenant, payload | | |

A reader takes a frame when its checksums hold. When it does not, the reader searches for the next frame that does, and
counts what it passed: *corrupt* when frames follow, *torn* when none does, as after a crash in mid-write. The salt is
random and stands in the file's name, so that bytes inside a payload can never pass for a frame.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from collector_processor.model import Payload, Signal

MAGIC = b"\xf5SCJ"
HEADER = struct.Struct("<8sHxxI")  # magic, version, salt
HEADER_MAGIC = b"SPANCHWL"
VERSION = 1
READ_BYTES = 8 << 20
FRAME = struct.Struct("<4sIIIQqBBxx")
SUM_FROM = 8  # the head's checksum covers what follows it
NAME = re.compile(r"(\d{12})-(\d{20})-([0-9a-f]{8})\.wal")
SIGNALS = {int(signal): signal for signal in Signal}


@dataclass(slots=True)
class ReadCounters:
    """What readers found. torn: unfinished ends of segments."""

    frames: int = 0
    corrupt: int = 0
    torn: int = 0
    skipped_bytes: int = 0
    unreadable_files: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A segment file by what its name says. number: order of the files. first: position of the first frame."""

    number: int
    first: int
    salt: int
    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / f"{self.number:012d}-{self.first:020d}-{self.salt:08x}.wal"

    def create(self) -> int:
        """A descriptor for appending to the new, empty segment. Errors: OSError."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, [HEADER.pack(HEADER_MAGIC, VERSION, self.salt)])
        except OSError:
            os.close(descriptor)
            self.path.unlink(missing_ok=True)
            raise
        return descriptor


def segments_in(directory: Path) -> list[Segment]:
    """The segments in `directory`, oldest first; other files are left alone."""
    names = [match for path in directory.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted(Segment(int(name[1]), int(name[2]), int(name[3], 16), directory) for name in names)


def new_salt() -> int:
    return secrets.randbits(32)


def frame(payload: Payload, checksum: int, position: int, salt: int) -> list[bytes]:
    """The buffers that make the frame of a payload whose data has `checksum`.

    Errors: ValueError when the tenant's name is longer than 255 bytes.
    """
    tenant = payload.tenant.encode()
    if len(tenant) > 255:
        raise ValueError("a tenant's name is at most 255 bytes long")
    signal, size = int(payload.signal), len(payload.data)
    head = FRAME.pack(MAGIC, 0, checksum, size, position, payload.arrival_ns, signal, len(tenant)) + tenant
    head_checksum = zlib.crc32(head[SUM_FROM:], salt)
    return [head[:4] + head_checksum.to_bytes(4, "little") + head[SUM_FROM:], payload.data]


def write_all(descriptor: int, buffers: list[bytes]) -> int:
    """Writes `buffers` in full and gives the number of bytes. Errors: OSError, with any part of them written."""
    size = sum(map(len, buffers))
    written = os.writev(descriptor, buffers)
    if written < size:  # the disk is nearly full, or a signal came: the rest in one piece
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return size


class Found(NamedTuple):
    """A good frame: where its parts stand."""

    position: int
    arrival_ns: int
    signal: Signal
    tenant_at: int
    data_at: int
    end: int


def read(segment: Segment, counters: ReadCounters, size: int | None = None) -> Iterator[tuple[int, Payload]]:
    """(position, payload) of each good frame in the first `size` bytes of the segment; never raises for bad content."""
    content = _content(segment, counters, size)
    with memoryview(content) as view:
        for found in _frames(content, view, segment, counters):
            tenant = str(view[found.tenant_at : found.data_at], "utf-8", "replace")
            data = bytes(view[found.data_at : found.end])
            yield found.position, Payload(found.signal, tenant, data, found.arrival_ns)


def read_on(
    segment: Segment, counters: ReadCounters, at: int, size: int, last: int, bytes_max: int
) -> tuple[list[tuple[int, Payload, int]], int]:
    """((position, payload, where its frame ends) of the next good frames, where to go on).

    Reads from byte `at`, where a frame begins, about `bytes_max` bytes of the first `size` of the file; positions are
    above `last`. Nothing was found only when nothing is left. Errors: OSError.
    """
    until = min(size, at + bytes_max)
    while True:
        with open(segment.path, "rb", buffering=0) as file:
            file.seek(at)
            content = bytearray(file.read(until - at))
        out = []
        with memoryview(content) as view:
            for found in _frames(content, view, segment, counters, 0, last, is_whole=until == size):
                tenant = str(view[found.tenant_at : found.data_at], "utf-8", "replace")
                payload = Payload(found.signal, tenant, bytes(view[found.data_at : found.end]), found.arrival_ns)
                out.append((found.position, payload, at + found.end))
        if out or until == size:
            return out, size if until == size else out[-1][2]
        until = size  # a frame larger than that, or damage: all the rest


def last_of(segment: Segment) -> Found | None:
    """The last good frame of the segment."""
    content = _content(segment, ReadCounters(), None)
    with memoryview(content) as view:
        return max(_frames(content, view, segment, ReadCounters()), default=None)  # positions come first, and ascend


def _content(segment: Segment, counters: ReadCounters, size: int | None) -> bytearray:
    """What can be read of the file; empty when it is of a version from the future.

    The file is read, not mapped: a mapping ends the process when the disk fails, or when the file is cut meanwhile.
    """
    content, filled = bytearray(), 0
    try:
        with open(segment.path, "rb", buffering=0) as file:
            content = bytearray(os.fstat(file.fileno()).st_size if size is None else size)
            with memoryview(content) as view:
                while got := file.readinto(view[filled : filled + READ_BYTES]):
                    filled += got
    except OSError:
        counters.unreadable_files += 1
    del content[filled:]
    if filled >= HEADER.size:
        magic, version, _ = HEADER.unpack_from(content)
        if magic == HEADER_MAGIC and version != VERSION:
            counters.unreadable_files += 1
            return bytearray()
    return content


def _frames(
    content: bytearray,
    view: memoryview,
    segment: Segment,
    counters: ReadCounters,
    at: int = HEADER.size,
    last: int = -1,
    *,
    is_whole: bool = True,
) -> Iterator[Found]:
    """The good frames from `at` on with positions above `last`. Ends at damage when the content `is_whole` not: it may
    only have been cut short."""
    size, last = len(view), max(last, segment.first - 1)
    while at < size:
        found = _frame_at(view, at, segment.salt, last)
        if found is None:
            if not is_whole:
                return
            start = at
            at = _next_frame(content, view, at + 1, segment.salt, last)
            counters.skipped_bytes += at - start
            if at == size:
                counters.torn += 1
            else:
                counters.corrupt += 1
            continue
        last, at = found.position, found.end
        counters.frames += 1
        yield found


def _frame_at(view: memoryview, at: int, salt: int, last: int) -> Found | None:
    """The frame that begins at `at`, if there is a good one with a position above `last`."""
    tenant_at = at + FRAME.size
    if tenant_at > len(view):
        return None
    magic, head_checksum, checksum, size, position, arrival_ns, signal, tenant_size = FRAME.unpack_from(view, at)
    data_at = tenant_at + tenant_size
    end = data_at + size
    if magic != MAGIC or end > len(view) or position <= last or signal not in SIGNALS:
        return None
    if zlib.crc32(view[at + SUM_FROM : data_at], salt) != head_checksum:
        return None
    if zlib.crc32(view[data_at:end]) != checksum:
        return None
    return Found(position, arrival_ns, SIGNALS[signal], tenant_at, data_at, end)


def _next_frame(content: bytearray, view: memoryview, at: int, salt: int, last: int) -> int:
    """Where the next good frame begins; the end when there is none."""
    while (at := content.find(MAGIC, at)) >= 0:
        if _frame_at(view, at, salt, last) is not None:
            return at
        at += 1
    return len(view)
