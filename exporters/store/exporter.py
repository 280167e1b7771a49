"""The store: unusual verdicts with their chains, a share of the normal ones, and incidents, kept in SQL.

How it works. The engine's thread makes entries of what is kept; a queue on disk holds them until the database has taken
them, so that a database that is slow, locked or away costs the others nothing and a restart loses nothing. The queue's
thread writes a batch in one transaction. A row that the database refuses for what is in it is left out and counted, the
others of its batch are kept. A second thread deletes what is too old or too much (`retention.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import structlog
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from collector_processor.config import StoreConfig
from collector_processor.model import I64, Incident, VerdictBatch
from collector_processor.rows import Rows
from exporters.allowance import Allowance, most_severe
from exporters.backlog import Item
from exporters.protocol import Meter
from exporters.queue import RetryLater, WorkerQueue
from exporters.store.database import Database, reason
from exporters.store.entries import Entry, incident_entry, records_of, sampled, verdict_entry, write
from exporters.store.retention import Retention
from exporters.store.schema import SchemaError

log = structlog.get_logger(__name__)


class StoreExporter:
    """Writes to the database that `config` names, SQLite in `data` by default. `clock_ns` is the wall clock."""

    name = "store"

    def __init__(
        self,
        config: StoreConfig,
        data: Path,
        queues: Path,
        rows: Rows,
        meter: Meter,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Raises `OSError` when the URL cannot be used."""
        self._config = config
        self._rows = rows
        self._allowance = Allowance(config.verdicts_per_s_max)
        self._database = Database(config, data)
        self._stopped = threading.Event()
        self._retention = Retention(config, self._database, meter, self._stopped, clock_ns)
        self._queue = WorkerQueue(self.name, config.queue, meter, self._deliver, path=queues / "store.queue")
        self._cleaner: threading.Thread | None = None
        self._told = ""  # the last failure, so that each is said once

    def start(self) -> None:
        """Raises `OSError` when the file cannot be had or is newer than this program; a PostgreSQL that is down is no
        error."""
        if self._cleaner is not None or self._stopped.is_set():
            return
        try:
            self._database.open()
        except SchemaError as error:
            raise OSError(str(error)) from error
        self._queue.start()
        self._cleaner = threading.Thread(target=self._retention.run, args=(self._tell,), name="store-retention")
        self._cleaner.daemon = True
        self._cleaner.start()

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        entries = [incident_entry(self._rows.incident(incident), incident) for incident in incidents]
        if len(verdicts):
            entries += self._unusual(verdicts)
            normal = sampled(verdicts, self._config.normal_share)
            if normal.size:
                entries += self._normal(verdicts, normal)
        if entries:
            self._queue.put([_item(entry) for entry in entries])

    def _unusual(self, verdicts: VerdictBatch) -> list[Entry]:
        chosen, left = most_severe(verdicts, self._allowance)
        if left:
            self._queue.drop("rate", left)
            rows = dict(zip(chosen.tolist(), self._rows.some(verdicts, chosen), strict=True))
        else:
            rows = self._rows.unusual(verdicts)
        chains, most = verdicts.chains, self._config.records_max
        return [
            verdict_entry(row, int(chains.closed_ns[chain]), records_of(chains, chain, most) if most else None)
            for chain, row in rows.items()
        ]

    def _normal(self, verdicts: VerdictBatch, chosen: I64) -> list[Entry]:
        closed = verdicts.chains.closed_ns[chosen].tolist()
        rows = self._rows.some(verdicts, chosen)
        return [verdict_entry(row, closed_ns, None) for closed_ns, row in zip(closed, rows, strict=True)]

    def flush(self, deadline_s: float) -> bool:
        return self._queue.flush(deadline_s)

    def checkpointed(self) -> None:
        self._queue.checkpointed()

    def shutdown(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        self._queue.shutdown(deadline_s)
        self._stopped.set()
        if self._cleaner is not None:
            self._cleaner.join(max(end - time.monotonic(), 0.1))
        self._database.close()

    def _deliver(self, items: list[Item]) -> int:
        entries = [orjson.loads(item.payload) for item in items]
        try:
            return self._write(entries)
        except DBAPIError as error:
            self._tell(error)
            raise RetryLater(reason(error)) from None
        except SchemaError as error:
            self._tell(error)
            raise RetryLater("schema") from None

    def _write(self, entries: list[Entry]) -> int:
        """Writes all in one transaction; when a row cannot be kept, each in its own. How many could not be kept."""
        try:
            with self._database.transaction() as connection:
                write(connection, entries)
        except (DataError, IntegrityError) as error:
            if len(entries) == 1:
                self._tell(error)
                return 1
            return sum(self._write([entry]) for entry in entries)
        self._told = ""
        return 0

    def _tell(self, error: Exception) -> None:
        """One line for each new failure, however often it is met."""
        said = self._database.failure(error)
        if said != self._told:
            log.warning("the store does not do what it should", store=str(self._database), error=said)
        self._told = said


def _item(entry: Entry) -> Item:
    payload = orjson.dumps(entry, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
    return Item(payload, len(payload))
