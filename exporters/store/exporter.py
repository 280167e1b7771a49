"""The store: unusual verdicts with their chains, a share of the normal ones, and incidents, kept in SQL.

How it works. The engine's thread makes entries of what is kept; a queue on disk holds them until the database has taken
them, so that a database that is slow, locked or away costs the others nothing and a restart loses nothing. The queue's
thread writes them (`sink.py`); a second one deletes what is too old or too much (`retention.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import structlog

from collector_processor.config import StoreConfig
from collector_processor.model import I64, Incident, VerdictBatch
from collector_processor.rows import Rows
from exporters.allowance import Allowance, most_severe
from exporters.backlog import Item
from exporters.protocol import Meter
from exporters.queue import RetryLater, WorkerQueue
from exporters.store.entries import Entry, incident_entry, records_of, sampled, verdict_entry

if TYPE_CHECKING:
    from exporters.store.sink import Sink

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
        self._config = config
        self._rows = rows
        self._allowance = Allowance(config.verdicts_per_s_max)
        self._data = data
        self._meter = meter
        self._clock_ns = clock_ns
        self._stopped = threading.Event()
        self._opening = threading.Lock()
        self._sink: Sink | None = None
        self._queue = WorkerQueue(self.name, config.queue, meter, self._deliver, path=queues / "store.queue")
        self._cleaner: threading.Thread | None = None

    def start(self) -> None:
        """Raises `OSError` when the folder cannot be had or the driver is missing; a database may be down."""
        if self._cleaner is not None or self._stopped.is_set():
            return
        if self._config.url is not None and importlib.util.find_spec("psycopg") is None:
            raise OSError("exporters.store.url needs the extra postgres: pip install 'spanchain[postgres]'")
        self._queue.start()
        self._cleaner = threading.Thread(target=self._clean, name="store-retention", daemon=True)
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
        if self._sink is not None:
            self._sink.close()

    def _deliver(self, items: list[Item]) -> int:
        return self._opened().write([orjson.loads(item.payload) for item in items])

    def _clean(self) -> None:
        while not self._stopped.wait(self._config.retention_interval_s):
            with contextlib.suppress(RetryLater):
                self._opened().trim()

    def _opened(self) -> Sink:
        """The database; opened by the first who needs it, once it can be had."""
        with self._opening:
            if self._sink is None:
                from exporters.store.sink import Sink

                try:
                    self._sink = Sink(self._config, self._data, self._meter, self._stopped, self._clock_ns)
                except OSError as error:
                    log.warning("the store cannot be opened", error=str(error))
                    raise RetryLater("open") from None
            return self._sink


def _item(entry: Entry) -> Item:
    payload = orjson.dumps(entry, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
    return Item(payload, len(payload))
