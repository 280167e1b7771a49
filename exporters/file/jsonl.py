"""Two JSON-lines files that hold each id once, whatever is given twice and whenever the process is killed.

How it works. `VerdictFile` only appends. It remembers where its end was at the two checkpoints that are kept (`mark`):
after a crash the runtime gives again what came after the one it restored, and whatever of that is already there stands
behind the older mark, so on opening only the ids from there on are read. When it has reached its size, it is renamed
and begun anew; a mark names its file by inode, which a rename does not change. `IncidentFile` holds one line an
incident: a new one goes to the end, a changed one in the place of the old, by writing a new file and renaming it, so
that a reader always sees whole lines. It holds so many incidents at most, which bounds what a change costs too: when
there are more, the oldest resolved ones go, then the oldest of all. In both a line torn by a kill is cut off when the
file is opened.
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


Mark = tuple[int, int]
"""Inode of a file, and an offset in it."""


class VerdictFile:
    """`path`, appended to, at most `bytes_max` bytes, with `files_kept` older ones beside it as `path`.1, .2, ...

    One batch stands in one file, also when it alone is larger. Every method may raise `OSError`; a failed `append` has
    then left the files as they were, or only begun a new one.
    """

    def __init__(self, path: Path, bytes_max: int | None = None, files_kept: int = 1) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._files_kept = files_kept
        self._marks_path = path.with_name(path.name + ".marks")
        path.touch()
        cut_torn_line(path)
        self._open()
        files = self._files()
        self._marks = self._read_marks(files)
        # Whatever has not been given yet in this process stands behind `position`: rows are given in the same order
        # again, so all that is there has been given once a new one is appended.
        self.position: Mark = self._marks[0] if len(self._marks) == MARKS else (files[0].stat().st_ino, 0)
        self._known = self._read_known(files, self.position)

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        self.size = self._file.tell()
        self._inode = os.fstat(self._file.fileno()).st_ino

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _files(self) -> list[Path]:
        """The files that are there, the oldest first."""
        older = [self._older(number) for number in range(self._files_kept, 0, -1)]
        return [path for path in older if path.exists()] + [self.path]

    def _read_marks(self, files: list[Path]) -> list[Mark]:
        """The marks, the older first; none when one is in no file, or they are not in that order."""
        status = [path.stat() for path in files]
        place = {each.st_ino: (index, each.st_size) for index, each in enumerate(status)}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            marks = [
                (int(inode), int(offset)) for inode, offset in orjson.loads(self._marks_path.read_bytes())["marks"]
            ]
            order = [(place[inode][0], offset) for inode, offset in marks]
            if order == sorted(order) and all(offset <= place[inode][1] for inode, offset in marks):
                return marks[-MARKS:]
        return []

    @staticmethod
    def _read_known(files: list[Path], start: Mark) -> U64:
        """The first 64 bits of every id from `start` on, sorted."""
        first = next(index for index, path in enumerate(files) if path.stat().st_ino == start[0])
        ids: list[bytes] = []
        left = TAIL_MAX
        for path in reversed(files[first:]):
            size = path.stat().st_size
            offset = max(start[1] if path is files[first] else 0, size - left)
            if offset < size:
                with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    ids += _ID.findall(content, offset)
                left -= size - offset
        return np.unique(np.array([int(each, 16) for each in ids], np.uint64))

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends the rows whose id is not there yet."""
        content = b"".join(encode(row) for row in rows if not self._knows(row["verdict_id"]))
        self._expect_size()
        if self._bytes_max is not None and self.size and self.size + len(content) > self._bytes_max:
            self._rotate()
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
            self.position = (self._inode, self.size)

    def _rotate(self) -> None:
        """Begins a new file. Killed in between, the next start finds one file less, or makes the new one."""
        oldest = self._older(self._files_kept)
        if oldest.exists() and any(inode == oldest.stat().st_ino for inode, _ in self._marks):
            self._write_marks([])  # its number may be given to a new file; without marks all is read
        self.sync()
        for number in range(self._files_kept, 1, -1):
            if self._older(number - 1).exists():
                self._older(number - 1).replace(self._older(number))
        self.path.replace(self._older(1))
        self._file.close()
        self._open()

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

    def mark(self, position: Mark) -> None:
        """A checkpoint is kept, at which this was `position`."""
        self._write_marks([*self._marks, position][-MARKS:])

    def _write_marks(self, marks: list[Mark]) -> None:
        self._marks = marks
        replace(self._marks_path, orjson.dumps({"version": 2, "marks": marks}))

    def sync(self) -> None:
        """Puts all on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class IncidentFile:
    """`path`, one line an incident, in the order in which they were opened, `incidents_max` at most (None: no bound).

    Every method may raise `OSError`, and has then changed nothing.
    """

    def __init__(self, path: Path, incidents_max: int | None = None) -> None:
        self.path = path
        self._incidents_max = incidents_max
        self._lines: dict[str, bytes] = {}  # incident -> its line
        self._resolved: set[str] = set()
        path.touch()
        cut_torn_line(path)
        with path.open("rb") as file:
            for number, line in enumerate(file):
                self._read(number, line)

    def _read(self, number: int, line: bytes) -> None:
        incident = f"line {number}"  # of somebody else: it keeps its place
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = orjson.loads(line)
            if row["resolved_unix_nano"] is not None:
                self._resolved.add(row["incident_id"])
            incident = row["incident_id"]
        self._lines[incident] = line

    def update(self, rows: Iterable[dict[str, Any]]) -> int:
        """Makes these rows the state of their incidents; how many older ones had to go. A resolved one stays resolved:
        older news is given again."""
        lines, resolved = self._lines.copy(), self._resolved.copy()
        for row in rows:
            incident, is_resolved = row["incident_id"], row["resolved_unix_nano"] is not None
            if is_resolved or incident not in resolved:
                lines[incident] = encode(row)
            if is_resolved:
                resolved.add(incident)
        if lines == self._lines:
            return 0
        gone = self._too_many(lines, resolved)
        for incident in gone:
            del lines[incident]
        replace(self.path, b"".join(lines.values()))
        self._lines, self._resolved = lines, resolved.difference(gone)
        return len(gone)

    def _too_many(self, lines: Iterable[str], resolved: set[str]) -> list[str]:
        """Those beyond the bound: the oldest that are over, then the oldest of all."""
        if self._incidents_max is None:
            return []
        order = sorted(lines, key=lambda incident: incident not in resolved)  # stable: the oldest first in each half
        return order[: max(0, len(order) - self._incidents_max)]

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
