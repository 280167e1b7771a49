"""A disk that forgets: real files, of which only what was synced is sure to be there after a power cut.

How it works. It stands in for the module `os` in the journal: every call goes to the real one, but syncs cost nothing
and are remembered per file, and writes, syncs and renames may fail or be the last thing that happens. After a power cut
each file keeps what was synced and any part of the rest, at times with a damaged byte in it; what was cut off may be
back, and a name that no sync of the folder has covered may be gone.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CUT_SHARE = 0.1  # of the failures that are a power cut in mid-call
KILLED_SHARE = 0.3  # of the power cuts that are but the end of the process: a later one tears what this one left


class PowerCutError(BaseException):
    """The machine is off. Not an Exception: nothing in the service may catch it and go on."""


class Disk:
    """`os`, as far as the journal needs it."""

    def __init__(self, chance: random.Random, failing: float, torn: bool) -> None:
        self.sound = False  # whether nothing fails for now
        self._chance = chance
        self._failing = failing
        self._torn = torn
        self._synced: dict[tuple[int, int], int] = {}  # (device, inode) -> bytes that are sure
        self._cut_off: dict[tuple[int, int], tuple[int, bytes]] = {}  # since the last sync: where, and what
        self._open: set[int] = set()
        self._unsure: list[Callable[[], None]] = []  # how to take back names that no sync of the folder has covered

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        descriptor = os.open(path, flags, mode, **rest)
        state = os.fstat(descriptor)
        if not state.st_size:
            for known in (self._synced, self._cut_off):  # numbers of deleted files are given again
                known.pop((state.st_dev, state.st_ino), None)
        if str(path).endswith((".wal", "lock")):  # the others are closed by their file objects
            self._open.add(descriptor)
        if flags & os.O_CREAT and str(path).endswith(".wal"):
            self._unsure.append(Path(path).unlink)
        return descriptor

    def close(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        os.close(descriptor)

    def writev(self, descriptor: int, buffers: list[bytes]) -> int:
        """Writes all, or a part and fails, or a part and the lights go out."""
        if self._fails():
            whole = b"".join(buffers)
            os.write(descriptor, whole[: self._chance.randrange(len(whole) + 1)])
            self._end(errno.ENOSPC)
        return os.writev(descriptor, buffers)

    def fdatasync(self, descriptor: int) -> None:
        if self._fails():
            self._end(errno.EIO)
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            self._unsure.clear()
        self._synced[state.st_dev, state.st_ino] = state.st_size
        self._cut_off.pop((state.st_dev, state.st_ino), None)

    def ftruncate(self, descriptor: int, size: int) -> None:
        if self._fails():
            self._end(errno.EIO)
        state = os.fstat(descriptor)
        if state.st_size > size:
            file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            self._cut_off[state.st_dev, state.st_ino] = size, os.pread(file, state.st_size - size, size)
            os.close(file)
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        self.fdatasync(descriptor)

    def replace(self, source: Any, target: Any) -> None:
        # A damaged checkpoint that can neither be used nor renamed would be two faults at once.
        if not str(target).endswith(".damaged") and self._fails():
            self._end(errno.EIO)
        os.replace(source, target)
        self._unsure.append(lambda: os.replace(target, source))

    def crash(self, folder: Path) -> None:
        """The files of `folder` as they are found after a power cut, or a kill, which takes nothing away; what was
        open is closed."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()
        if not self._torn or self._chance.random() < KILLED_SHARE:
            return
        unsure, self._unsure = self._unsure, []
        for take_back in unsure:
            if self._chance.random() < 0.5:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    take_back()
        for path in sorted(folder.iterdir()):
            state = path.stat()
            sure = self._synced.get((state.st_dev, state.st_ino), 0)
            cut_at, cut_off = self._cut_off.pop((state.st_dev, state.st_ino), (0, b""))
            if cut_off and state.st_size == cut_at and self._chance.random() < 0.5:
                with path.open("ab") as file:
                    file.write(cut_off)
                state = path.stat()
            if path.suffix in {".wal", ".bin"} and state.st_size > sure:
                kept = self._chance.choice((self._chance.randint(sure, state.st_size), state.st_size))
                with path.open("r+b") as file:
                    file.truncate(kept)
                    if kept > sure and self._chance.random() < 0.5:
                        file.seek(self._chance.randrange(sure, kept))
                        file.write(self._chance.randbytes(1))

    def _fails(self) -> bool:
        return not self.sound and self._failing > 0 and self._chance.random() < self._failing

    def _end(self, number: int) -> None:
        if self._chance.random() < CUT_SHARE:
            raise PowerCutError
        raise OSError(number, os.strerror(number))
