"""Checkpoints: a journal position and the engine's state at it, in a file that is either whole or not there.

How it works. State is nested dicts, lists, tuples, strings, numbers, bytes, None and numpy arrays. It is written as
tagged values one after the other, arrays raw and aligned, so that a gigabyte of arrays costs little more than its
bytes; there is no pickle and nothing that could run. The file is written beside its name, synced, renamed, and the
folder synced. The newest two are kept. A reader checks length, checksum and structure, counts what is damaged and takes
the older one.

| file | bytes | | |---|---|---| | magic, version | 8 + 4 | | | position | 8 | the first journal position that is not in
the state | | length of the body | 8 | | | checksum of these | 4 | CRC-32 | | body | | the tagged values | | checksum of
the body | 4 | CRC-32 |
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from collector_processor.journal.wal import sync_directory

MAGIC = b"SPANCHCP"
VERSION = 1
HEADER = struct.Struct("<8sIQQ")
SUM = struct.Struct("<I")
BODY_AT = HEADER.size + SUM.size
ALIGNMENT = 64
GENERATIONS = 2
BUFFERED_BYTES = 1 << 20
DEPTH_MAX = 64
DESCRIPTION_DEPTH = 8  # of the description of an array's type
NAME = re.compile(r"checkpoint-(\d{12})\.bin")


@dataclass(slots=True)
class Counters:
    """What readers and writers found."""

    written: int = 0
    failures: int = 0
    corrupt: int = 0


class CorruptError(ValueError):
    """The file is not a whole checkpoint of a known version."""


def write_checkpoint(directory: Path, position: int, state: dict[str, Any], counters: Counters | None = None) -> int:
    """Writes a new generation and drops those beyond the newest two; gives the oldest kept position.

    The journal is needed from that position on, so that a damaged newest checkpoint costs nothing. Errors: OSError
    when it cannot be written, with the older generations as they were; TypeError for state that is not of the kinds
    above.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    generations = _generations(directory)
    number = generations[-1][0] + 1 if generations else 1
    unfinished = directory / f"checkpoint-{number:012d}.tmp"
    try:
        with open(unfinished, "wb", opener=_private) as file:
            file.write(bytes(BODY_AT))
            writer = _Writer(file)
            writer.value(state, 0)
            writer.flush()
            file.write(SUM.pack(writer.checksum))
            head = HEADER.pack(MAGIC, VERSION, position, writer.size)
            file.seek(0)
            file.write(head + SUM.pack(zlib.crc32(head)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, directory / f"checkpoint-{number:012d}.bin")
        sync_directory(directory)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        if counters is not None:
            counters.failures += 1
        raise
    if counters is not None:
        counters.written += 1
    for _, path in _generations(directory)[:-GENERATIONS]:
        path.unlink(missing_ok=True)
    return min(_position(path, position) for _, path in _generations(directory))


def read_checkpoint(directory: Path, counters: Counters | None = None) -> tuple[int, dict[str, Any]] | None:
    """(position, state) of the newest whole checkpoint; None when there is none. Never raises for bad content.

    Damaged ones are set aside as `checkpoint.damaged`, where the last of them stays for inquiry. Arrays are writable;
    they share memory that is private to this process.
    """
    for _, path in reversed(_generations(directory)):
        try:
            return _read(path)
        except (OSError, CorruptError) as error:
            if counters is not None:
                counters.corrupt += 1
            if isinstance(error, CorruptError):
                _set_aside(path)
    return None


def newest_position(directory: Path) -> int:
    """The highest position that any checkpoint says it has passed, by their heads alone; 0 without one."""
    return max((_position(path, 0) for _, path in _generations(directory)), default=0)


def _set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, so that it does not take the place of a whole one among the newest two."""
    with suppress(OSError):  # a folder that cannot be written will be seen soon enough
        os.replace(path, path.with_name("checkpoint.damaged"))


def _generations(directory: Path) -> list[tuple[int, Path]]:
    """(number, path) of the checkpoints in `directory`, oldest first."""
    if not directory.is_dir():
        return []
    found = [(match, path) for path in directory.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _position(path: Path, otherwise: int) -> int:
    """The position in the head of a checkpoint; `otherwise` when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return _head(file.read(BODY_AT))[0]
    except (OSError, CorruptError):
        return otherwise


def _head(content: bytes) -> tuple[int, int]:
    """(position, length of the body). Errors: CorruptError."""
    if len(content) < BODY_AT:
        raise CorruptError("too short")
    magic, version, position, size = HEADER.unpack_from(content)
    if magic != MAGIC or zlib.crc32(content[: HEADER.size]) != SUM.unpack_from(content, HEADER.size)[0]:
        raise CorruptError("the head is damaged")
    if version != VERSION:
        raise CorruptError(f"version {version} is not known")
    return position, size


def _read(path: Path) -> tuple[int, dict[str, Any]]:
    with open(path, "rb") as file:
        position, size = _head(file.read(BODY_AT))
        if os.fstat(file.fileno()).st_size != BODY_AT + size + SUM.size:
            raise CorruptError("the length is wrong")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    view = memoryview(content)
    if zlib.crc32(view[BODY_AT : BODY_AT + size]) != SUM.unpack_from(view, BODY_AT + size)[0]:
        raise CorruptError("the body is damaged")
    try:
        state = _Reader(view, BODY_AT, BODY_AT + size).value(0)
    except (struct.error, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise CorruptError("the body cannot be read") from error
    if not isinstance(state, dict):
        raise CorruptError("the state is not a dict")
    return position, state


# One byte of tag stands before each value.
NONE, FALSE, TRUE, INTEGER, BIG, FLOAT, TEXT, BYTES, LIST, TUPLE, DICT, ARRAY = b"NFTiIdsbltma"
INT64, FLOAT64, LENGTH = struct.Struct("<q"), struct.Struct("<d"), struct.Struct("<Q")
CONSTANTS: dict[Any, int] = {None: NONE, False: FALSE, True: TRUE}


class _Writer:
    """Writes tagged values; keeps the checksum and the size of what it has written."""

    def __init__(self, file: BinaryIO) -> None:
        self.checksum = 0
        self.size = 0
        self._file = file
        self._pending = bytearray()

    def value(self, value: Any, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise TypeError("state is nested too deep")
        if isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, np.generic):
            self.value(value.item(), depth)
        elif value is None or isinstance(value, bool):
            self._pending.append(CONSTANTS[value])
        elif isinstance(value, int):
            self._integer(int(value))
        elif isinstance(value, float):
            self._add(FLOAT, FLOAT64.pack(value))
        elif isinstance(value, str):
            self._sized(TEXT, value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, bytes):
            self._sized(BYTES, value)
        elif isinstance(value, dict):
            self._add(DICT, LENGTH.pack(len(value)))
            for key, item in value.items():
                self.value(key, depth + 1)
                self.value(item, depth + 1)
        elif isinstance(value, (list, tuple)):
            self._add(LIST if isinstance(value, list) else TUPLE, LENGTH.pack(len(value)))
            for item in value:
                self.value(item, depth + 1)
        else:
            raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")

    def flush(self) -> None:
        if self._pending:
            self._write(memoryview(bytes(self._pending)))
            self._pending.clear()

    def _integer(self, value: int) -> None:
        if -(2**63) <= value < 2**63:
            self._add(INTEGER, INT64.pack(value))
        else:
            self._sized(BIG, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))

    def _sized(self, tag: int, content: bytes) -> None:
        self._add(tag, LENGTH.pack(len(content)))
        self._pending += content

    def _add(self, tag: int, content: bytes) -> None:
        self._pending.append(tag)
        self._pending += content
        if len(self._pending) > BUFFERED_BYTES:
            self.flush()

    def _array(self, array: np.ndarray[Any, Any]) -> None:
        if array.dtype.hasobject:
            raise TypeError("a checkpoint cannot hold an array of objects")
        self._pending.append(ARRAY)
        self.value(np.lib.format.dtype_to_descr(array.dtype), DEPTH_MAX - DESCRIPTION_DEPTH)
        self._pending += LENGTH.pack(array.ndim) + b"".join(LENGTH.pack(length) for length in array.shape)
        self._pending += bytes(-(BODY_AT + self.size + len(self._pending)) % ALIGNMENT)
        self.flush()
        if array.size:
            self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _write(self, content: memoryview) -> None:
        self.checksum = zlib.crc32(content, self.checksum)
        self.size += len(content)
        self._file.write(content)


class _Reader:
    """Reads tagged values from view[at:end]. Errors: CorruptError, or what numpy and struct raise for nonsense."""

    def __init__(self, view: memoryview, at: int, end: int) -> None:
        self._view = view
        self._at = at
        self._end = end

    def value(self, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise CorruptError("nested too deep")
        tag = self._take(1)[0]
        if tag == INTEGER:
            return INT64.unpack(self._take(8))[0]
        if tag == FLOAT:
            return FLOAT64.unpack(self._take(8))[0]
        if tag == TEXT:
            return str(self._take(self._length()), "utf-8", "surrogatepass")
        if tag == DICT:
            return {self.value(depth + 1): self.value(depth + 1) for _ in range(self._length())}
        if tag == LIST:
            return [self.value(depth + 1) for _ in range(self._length())]
        if tag == TUPLE:
            return tuple(self.value(depth + 1) for _ in range(self._length()))
        if tag == ARRAY:
            return self._array()
        if tag == BYTES:
            return bytes(self._take(self._length()))
        if tag == BIG:
            return int.from_bytes(self._take(self._length()), "little", signed=True)
        for constant, its_tag in CONSTANTS.items():
            if tag == its_tag:
                return constant
        raise CorruptError(f"unknown tag {tag}")

    def _array(self) -> np.ndarray[Any, Any]:
        dtype = np.lib.format.descr_to_dtype(self.value(DEPTH_MAX - DESCRIPTION_DEPTH))
        if dtype.hasobject:
            raise CorruptError("an array of objects")
        shape = tuple(self._length() for _ in range(self._length()))
        self._take(-self._at % ALIGNMENT)
        content = self._take(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(shape) if len(content) else np.empty(shape, dtype)

    def _length(self) -> int:
        length: int = LENGTH.unpack(self._take(8))[0]
        return length

    def _take(self, size: int) -> memoryview:
        if size > self._end - self._at:
            raise CorruptError("a value runs over the end")
        self._at += size
        return self._view[self._at - size : self._at]
