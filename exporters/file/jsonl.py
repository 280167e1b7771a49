"""Two JSON-lines files that hold each id once, whatever is given twice and whenever the process is killed.

How it works. `VerdictFile` only appends. It remembers where its end was at the two checkpoints that are kept (`mark`):
after a crash the runtime gives again what came after the one it restored, and whatever of that is already there stands
behind the older mark, so on opening only the ids from there on are read. `IncidentFile` holds one line an incident: a
new one goes to the end, a changed one in the place of the old, by writing a new file and renaming it, so that a reader
always sees whole lines. In both a line torn by a kill is cut off when the file is opened.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from collector_processor.model import U64

MARKS = 2  # the checkpoints that are kept
TAIL_MAX = 256 << 20  # bytes read at most for known ids

_ID = re.compile(rb'^\{"verdict_id":"([0-9a-f]{16})', re.MULTILINE)


def encode(row: dict[str, Any]) -> bytes:
    """`row` as one line."""
    return orjson.dumps(row, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def cut_torn_line(path: Path) -> None:
    """Ends the file `path` after its last whole line."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - (1 << 16), 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


class VerdictFile:
    """`path`, appended to. Every method may raise `OSError`; a failed `append` has then left the file as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marks_path = path.with_name(path.name + ".marks")
        path.touch()
        cut_torn_line(path)
        self._file = path.open("ab", buffering=0)
        self.size = self._file.tell()
        self._marks = self._read_marks()
        # Whatever has not been given yet in this process stands behind `position`: rows are given in the same order
        # again, so all that is there has been given once a new one is appended.
        self.position = self._marks[0] if len(self._marks) == MARKS else 0
        self._known = self._read_known(self.position)

    def _read_marks(self) -> list[int]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            marks = [int(mark) for mark in orjson.loads(self._marks_path.read_bytes())["marks"]]
            if marks == sorted(marks) and marks and marks[-1] <= self.size:
                return marks[-MARKS:]
        return []

    def _read_known(self, start: int) -> U64:
        """The first 64 bits of every id from the offset `start` on, sorted."""
        start = max(start, self.size - TAIL_MAX)
        if start >= self.size:
            return np.zeros(0, np.uint64)
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            ids = _ID.findall(content, start)
        return np.unique(np.array([int(each, 16) for each in ids], np.uint64))

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends the rows whose id is not there yet."""
        content = b"".join(encode(row) for row in rows if not self._knows(row["verdict_id"]))
        self._expect_size()
        try:
            written = 0
            while written < len(content):
                written += self._file.write(content[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self._expect_size()
            raise
        self.size += len(content)
        if content:
            self.position = self.size

    def _expect_size(self) -> None:
        """Cuts off what a failed append left behind; takes it as it is when somebody emptied the file."""
        size = os.fstat(self._file.fileno()).st_size
        if size > self.size:
            os.ftruncate(self._file.fileno(), self.size)
        self.size = min(self.size, size)

    def _knows(self, verdict_id: str) -> bool:
        if not self._known.size:
            return False
        key = np.uint64(int(verdict_id[:16], 16))
        place = int(np.searchsorted(self._known, key))
        return place < self._known.size and bool(self._known[place] == key)

    def mark(self, position: int) -> None:
        """A checkpoint is kept, at which this was `position`."""
        self._marks = [*self._marks, position][-MARKS:]
        replace(self._marks_path, orjson.dumps({"version": 1, "marks": self._marks}))

    def sync(self) -> None:
        """Puts all on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class IncidentFile:
    """`path`, one line an incident, in the order in which they were opened. Every method may raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place: dict[str, int] = {}  # incident -> number of its line
        self._resolved: set[str] = set()
        self._lines = 0
        path.touch()
        cut_torn_line(path)
        with path.open("rb") as file:
            for line in file:
                self._read(line)

    def _read(self, line: bytes) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line of somebody else's keeps its place
            row = orjson.loads(line)
            self._note(row, self._lines)
        self._lines += 1

    def _note(self, row: dict[str, Any], place: int) -> None:
        self._place[row["incident_id"]] = place
        if row["resolved_unix_nano"] is not None:
            self._resolved.add(row["incident_id"])

    def update(self, rows: Iterable[dict[str, Any]]) -> None:
        """Makes these rows the state of their incidents. A resolved one stays resolved: older news is given again."""
        changed: dict[int, dict[str, Any]] = {}
        added: dict[str, dict[str, Any]] = {}
        for row in rows:
            incident = row["incident_id"]
            if incident in self._resolved and row["resolved_unix_nano"] is None:
                continue
            if incident in self._place:
                changed[self._place[incident]] = row
            else:
                added[incident] = row
        if not changed and not added:
            return
        self._write({place: encode(row) for place, row in changed.items()}, [encode(row) for row in added.values()])
        for place, row in changed.items():
            self._note(row, place)
        for row in added.values():
            self._note(row, self._lines)
            self._lines += 1

    def _write(self, changed: dict[int, bytes], added: list[bytes]) -> None:
        with self.path.open("rb") as file:
            old = [changed.get(place, line) for place, line in enumerate(file)]
        replace(self.path, b"".join([*old, *added]))

    def close(self) -> None:
        """Nothing is held open."""


def replace(path: Path, content: bytes) -> None:
    """Makes `content` the whole of `path` in one step that survives a power cut."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
