"""What waits for a sink: in memory, or in one SQLite file that survives the process.

How it works. Both kinds keep items in order and give the oldest first; an item leaves when it was delivered. On disk
an item is a row; SQLite's write-ahead log makes each step atomic, so a kill at any point leaves the step before or the
step after. A delivered row leaves its key behind for two checkpoints: after a crash the runtime gives again what came
after the older of the two that it keeps, and an item given again is known by its key and not sent again. A file that is
damaged is moved aside, not trusted.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

CHECKPOINTS = 2  # that a delivered key outlives: those that may be restored, for it may be younger than the first
DELIVERED_MAX = 100_000  # delivered keys remembered when there are no checkpoints

_SCHEMA = """
CREATE TABLE IF NOT EXISTS item
    (seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, payload BLOB, made_at REAL, checkpoints INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS item_key ON item (key) WHERE key != '';
CREATE INDEX IF NOT EXISTS item_waiting ON item (seq) WHERE payload IS NOT NULL;
CREATE INDEX IF NOT EXISTS item_delivered ON item (seq) WHERE payload IS NULL;
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to deliver."""

    payload: Any
    size: int  # bytes
    key: str = ""  # content hash; empty when the same thing may be sent twice
    number: int = 1  # how many verdicts or incidents it holds; on disk always 1
    made_at: float = field(default_factory=time.time, compare=False)  # seconds since 1970


class Backlog(Protocol):
    """Items in order; `size` is theirs in bytes. Not thread-safe: the queue holds the locks."""

    size: int

    def __len__(self) -> int: ...

    def oldest(self, items_max: int, bytes_max: int) -> list[Item]:
        """The oldest items: at least one when there is any, at most `items_max`, at most `bytes_max` together."""
        ...

    def drop_oldest(self, number: int) -> None:
        """Takes out the `number` oldest items: they were delivered, or given up."""
        ...


class MemoryBacklog:
    """Items in a deque; any payload."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._items)

    def append(self, items: Sequence[Item]) -> None:
        self._items.extend(items)
        self.size += sum(item.size for item in items)

    def oldest(self, items_max: int, bytes_max: int) -> list[Item]:
        return _fitting(self._items, items_max, bytes_max)

    def drop_oldest(self, number: int) -> None:
        for _ in range(number):
            self.size -= self._items.popleft().size


class DiskBacklog:
    """Items in the SQLite file `path`; payloads are bytes.

    Every method raises `sqlite3.Error` when the disk does not do it, and has then changed nothing. The constructor
    raises `OSError` when the file cannot be had at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = opened(path, _SCHEMA, "NORMAL", self._read)

    def _read(self, db: sqlite3.Connection) -> None:
        self._db = db
        waiting = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM item WHERE payload IS NOT NULL"
        rows, self.size = db.execute(waiting).fetchone()
        self._waiting = int(rows)
        self._delivered = self._count_delivered()
        # Items are given in the same order again: all that is here has been given once a new one is added.
        self._caught_up = self._delivered == 0

    def _count_delivered(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM item WHERE payload IS NULL").fetchone()[0])

    def __len__(self) -> int:
        return self._waiting

    def append(self, items: Sequence[Item]) -> int:
        """Keeps those whose key is not known; how many that were."""
        added = size = 0
        insert = "INSERT OR IGNORE INTO item (key, payload, made_at, checkpoints) VALUES (?, ?, ?, 0)"
        with self._db:
            self._db.execute("BEGIN")
            for item in items:
                new = self._db.execute(insert, (item.key, item.payload, item.made_at)).rowcount
                added, size = added + new, size + new * item.size
        self._waiting, self.size = self._waiting + added, self.size + size
        self._caught_up = self._caught_up or added > 0
        return added

    def oldest(self, items_max: int, bytes_max: int) -> list[Item]:
        rows = self._db.execute(
            "SELECT payload, key, made_at FROM item WHERE payload IS NOT NULL ORDER BY seq LIMIT ?", (items_max,)
        )
        try:
            items = (Item(payload, len(payload), key, made_at=made_at) for payload, key, made_at in rows)
            return _fitting(items, items_max, bytes_max)
        finally:
            rows.close()

    def drop_oldest(self, number: int) -> None:
        dropped = self._db.execute(
            "SELECT seq, length(payload) FROM item WHERE payload IS NOT NULL ORDER BY seq LIMIT ?", (number,)
        ).fetchall()
        last = (dropped[-1][0],)
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM item WHERE payload IS NOT NULL AND key = '' AND seq <= ?", last)
            update = "UPDATE item SET payload = NULL WHERE payload IS NOT NULL AND seq <= ?"
            delivered = self._delivered + self._db.execute(update, last).rowcount
            if delivered > DELIVERED_MAX * 11 // 10:
                oldest = "SELECT seq FROM item WHERE payload IS NULL ORDER BY seq LIMIT ?"
                self._db.execute(f"DELETE FROM item WHERE seq IN ({oldest})", (delivered - DELIVERED_MAX,))
                delivered = DELIVERED_MAX
        self._waiting, self.size = self._waiting - number, self.size - sum(size for _, size in dropped)
        self._delivered = delivered

    def sync(self) -> None:
        """Makes what is kept safe against a power cut too."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def checkpointed(self) -> None:
        """Forgets the keys that nobody will give again."""
        if not self._caught_up:
            return
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute(f"DELETE FROM item WHERE payload IS NULL AND checkpoints >= {CHECKPOINTS}")
            self._db.execute("UPDATE item SET checkpoints = checkpoints + 1 WHERE payload IS NULL")
            delivered = self._count_delivered()
        self._delivered = delivered

    def close(self) -> None:
        self._db.close()


def _fitting(items: Any, items_max: int, bytes_max: int) -> list[Item]:
    out: list[Item] = []
    size = 0
    for item in items:
        size += item.size
        if out and (len(out) == items_max or size > bytes_max):
            break
        out.append(item)
    return out


def move_aside(path: Path) -> None:
    """Gives the SQLite file `path`, with what belongs to it, names that end in `.damaged`. Raises `OSError`."""
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(part.with_name(part.name + ".damaged"))


def opened(path: Path, schema: str, synchronous: str, read: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """A connection to the SQLite file `path`, for one thread at a time, after `read` has taken in what it holds. A
    damaged file is moved aside, and `read` sees an empty one. Raises `OSError` when there can be no file at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _opened(path, schema, synchronous, read)
    except sqlite3.OperationalError as error:
        raise OSError(f"{path}: {error}") from error
    except sqlite3.DatabaseError:
        move_aside(path)
        return _opened(path, schema, synchronous, read)


def _opened(
    path: Path, schema: str, synchronous: str, read: Callable[[sqlite3.Connection], None]
) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.executescript(schema)
        read(db)
    except sqlite3.Error:
        db.close()
        raise
    return db
