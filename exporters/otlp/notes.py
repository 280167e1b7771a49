"""What inline mode has to remember, in one SQLite file: events that wait for their span, and how far it has come.

How it works. A note is the event of one verdict with the span that it belongs to. It waits until it has been written
into that span on its way out, or until that span turns out to have gone already: `before` is the end of the journal
when the note was made, so once all of that was sent the span was in it. A settled note leaves its id behind for two
checkpoints, since the runtime gives again after a crash what came after the older one.

Before a window of payloads is sent its end is written down, together with the last note that may be in it: a window
that is sent again after a crash has the same bytes. Each step is one transaction; memory has the index by trace.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.backlog import opened

CHECKPOINTS = 2  # that the id of a settled note outlives
COLUMNS = "verdict, tenant, trace_id, span_id, kind, event, child, seq"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS note (seq INTEGER PRIMARY KEY AUTOINCREMENT, verdict TEXT UNIQUE, tenant TEXT, trace_id BLOB,
    span_id BLOB, kind INTEGER, event BLOB, child BLOB, before INTEGER, checkpoints INTEGER);
CREATE INDEX IF NOT EXISTS note_waiting ON note (before) WHERE event IS NOT NULL;
CREATE TABLE IF NOT EXISTS place (one INTEGER PRIMARY KEY CHECK (one = 1), sent INTEGER, until INTEGER, last INTEGER);
INSERT OR IGNORE INTO place VALUES (1, 1, 1, 0);
"""


@dataclass(frozen=True, slots=True)
class Note:
    """An event for one span. `kind` is the span's own: two spans of a call may share an id."""

    verdict: str
    tenant: str
    trace_id: bytes
    span_id: bytes
    kind: int
    event: bytes  # a Span.Event
    child: bytes  # an ExportTraceServiceRequest with a span that carries it, for when the span has gone
    seq: int = 0

    @property
    def size(self) -> int:
        return len(self.event) + len(self.child)


class Notes:
    """The notes in the file `path`. Every method may raise `sqlite3.Error`, and has then written nothing; not
    thread-safe. The constructor raises `OSError` when the file cannot be had at all; one that is damaged is moved
    aside, and all is forwarded that the journal still has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = opened(path, _SCHEMA, "FULL", self._read)  # few and small: a window is some thousand records

    def _read(self, db: sqlite3.Connection) -> None:
        self.sent, self.until, self.last = map(int, db.execute("SELECT sent, until, last FROM place").fetchone())
        waiting = "SELECT seq, trace_id, length(event) + length(child) FROM note WHERE event IS NOT NULL"
        self._waiting: dict[bytes, dict[int, int]] = {}  # trace id -> sequence number -> bytes
        self.size = 0
        self._number = 0
        for seq, trace_id, size in db.execute(waiting):
            self._remember(seq, trace_id, size)

    def __len__(self) -> int:
        return self._number

    def add(self, notes: Sequence[Note], before: int) -> int:
        """Keeps those whose verdict is not known; how many were. before: the journal's end by now."""
        insert = "INSERT OR IGNORE INTO note VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, 0)"
        added = []
        with self._db:
            self._db.execute("BEGIN")
            for note in notes:
                values = (note.verdict, note.tenant, note.trace_id, note.span_id, note.kind, note.event, note.child)
                done = self._db.execute(insert, (*values, before))
                if done.rowcount:
                    added.append((int(done.lastrowid or 0), note.trace_id, note.size))
        for seq, trace_id, size in added:
            self._remember(seq, trace_id, size)
        return len(notes) - len(added)

    def about(self, traces: Iterable[bytes]) -> list[Note]:
        """The waiting notes about any of the traces, as far as they may be in the present window."""
        known = self._waiting.keys() & traces if self._waiting else ()
        return self._notes(sorted(seq for trace in known for seq in self._waiting[trace] if seq <= self.last))

    def late(self, number_max: int) -> list[Note]:
        """The oldest waiting notes whose span had been sent before the present window."""
        found = self._db.execute(
            "SELECT seq FROM note WHERE event IS NOT NULL AND before <= ? AND seq <= ? ORDER BY seq LIMIT ?",
            (self.sent, self.last, number_max),
        )
        return self._notes([seq for (seq,) in found.fetchall()])

    def begin(self, until: int) -> None:
        """Writes down that what is before `until` is about to be sent, with the notes that there are. In memory it is
        so even when that cannot be written."""
        self.until = until
        [(newest,)] = self._db.execute("SELECT coalesce(max(seq), 0) FROM note").fetchall()
        self.last = int(newest)
        self._db.execute("UPDATE place SET until = ?, last = ?", (until, newest))

    def done(self, settled: Sequence[Note]) -> None:
        """The window has been sent, and `settled` with it. In memory it is so even when that cannot be written."""
        self.sent = self.until
        for note in settled:
            waiting = self._waiting.get(note.trace_id, {})
            if note.seq in waiting:
                self.size -= waiting.pop(note.seq)
                self._number -= 1
            if not waiting:
                self._waiting.pop(note.trace_id, None)
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("UPDATE place SET sent = ?, until = ?", (self.sent, self.until))
            clear = "UPDATE note SET event = NULL, child = NULL WHERE seq = ?"
            self._db.executemany(clear, [(note.seq,) for note in settled])

    def move_to(self, position: int) -> None:
        """Goes on from `position`: there is nothing behind it in the journal."""
        self.sent = self.until = position
        self._db.execute("UPDATE place SET sent = ?, until = ?", (position, position))

    def sync(self) -> None:
        """Makes what is kept safe against a power cut too."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def checkpointed(self) -> None:
        """Forgets the ids that nobody will give again."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM note WHERE event IS NULL AND checkpoints >= ?", (CHECKPOINTS,))
            self._db.execute("UPDATE note SET checkpoints = checkpoints + 1 WHERE event IS NULL")

    def close(self) -> None:
        self._db.close()

    def _notes(self, seqs: list[int]) -> list[Note]:
        select = f"SELECT {COLUMNS} FROM note WHERE seq = ? AND event IS NOT NULL"
        rows = (self._db.execute(select, (seq,)).fetchone() for seq in seqs)
        return [Note(*row) for row in rows if row is not None]

    def _remember(self, seq: int, trace_id: bytes, size: int) -> None:
        self._waiting.setdefault(trace_id, {})[seq] = size
        self.size += size
        self._number += 1
