"""Deletes what is too old or too much, the oldest first, a few rows at a time so that no writer waits for long.

How it works. One `Retention` looks at the store each `retention_interval_s`: first what has reached its age, then what
is over the number of rows, then, while the bytes of all are over their bound, verdicts, and incidents only when no
verdict is left. Age counts from when the chain was closed or the incident changed last, by spanchain's clock: those of
the senders may be wrong by years. Each batch is a transaction of its own; several services may do this to one database
at once, for deleting a row that is gone is nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from sqlalchemy import Column, Connection, Table, bindparam, func, select

from collector_processor.config import StoreConfig
from exporters.protocol import Meter
from exporters.store.database import Database
from exporters.store.schema import INCIDENTS, VERDICTS

BATCH = 500  # rows of one transaction
PAUSE_S = 0.02  # between two of them: others have their turn

_AGE: dict[str, Column[int]] = {"verdicts": VERDICTS.c.closed_unix_nano, "incidents": INCIDENTS.c.changed_unix_nano}


class Retention:
    """Keeps `database` within the bounds of `config`. `clock_ns` is the wall clock; `stopped` ends a pass early."""

    def __init__(
        self,
        config: StoreConfig,
        database: Database,
        meter: Meter,
        stopped: threading.Event,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._database = database
        self._meter = meter
        self._stopped = stopped
        self._clock_ns = clock_ns

    def trim(self) -> int:
        """One pass; how many rows were deleted.

        Raises:
            DBAPIError, SchemaError: the database does not do it; what was deleted until then stays so.
        """
        config, now_ns = self._config, self._clock_ns()
        deleted = sum(self._expire(VERDICTS, now_ns - int(config.age_max_s * 1e9)))
        deleted += sum(self._expire(INCIDENTS, now_ns - int(config.incidents_age_max_s * 1e9)))
        with self._database.transaction() as connection:
            held = stored(connection)
        rows = {name: count for name, (count, _) in held.items()}
        size = sum(each for _, each in held.values())
        for table, most in ((VERDICTS, config.verdicts_max), (INCIDENTS, config.incidents_max)):
            while rows[table.name] > most and not self._stopped.is_set():
                gone, freed = self._delete(table, "rows", rows_max=rows[table.name] - most)
                rows[table.name], size, deleted = rows[table.name] - gone, size - freed, deleted + gone
                if not gone:
                    break
        for table in (VERDICTS, INCIDENTS):
            while size > config.bytes_max and not self._stopped.is_set():
                gone, freed = self._delete(table, "bytes", bytes_min=size - config.bytes_max)
                rows[table.name], size, deleted = rows[table.name] - gone, size - freed, deleted + gone
                if not gone:
                    break
        for name, count in rows.items():
            self._meter.set("store_rows", count, table=name)
        self._meter.set("store_bytes", size)
        if deleted:
            self._database.shrink()
        return deleted

    def _expire(self, table: Table, before_ns: int) -> Iterator[int]:
        while not self._stopped.is_set():
            gone, _ = self._delete(table, "age", before_ns=before_ns)
            yield gone
            if gone < BATCH:
                return

    def _delete(
        self,
        table: Table,
        reason: str,
        *,
        before_ns: int | None = None,
        rows_max: int = BATCH,
        bytes_min: int | None = None,
    ) -> tuple[int, int]:
        """Deletes one batch of the oldest rows: at most `rows_max`, of before `before_ns`, or just over `bytes_min`
        bytes; how many rows and bytes that were."""
        keys = list(table.primary_key.columns)
        query = select(*keys, table.c.bytes).order_by(_AGE[table.name], *keys)
        if before_ns is not None:
            query = query.where(_AGE[table.name] < before_ns)
        with self._database.transaction() as connection:
            found = connection.execute(query.limit(min(rows_max, BATCH))).all()
            if bytes_min is not None:
                found = found[: _reaching([int(row[-1]) for row in found], bytes_min)]
            if found:
                this = table.delete().where(*(key == bindparam(f"key_{key.name}") for key in keys))
                connection.execute(
                    this,
                    [{f"key_{key.name}": value for key, value in zip(keys, row, strict=False)} for row in found],
                )
        if found:
            self._meter.count("store_deleted_total", len(found), table=table.name, reason=reason)
            self._stopped.wait(PAUSE_S)
        return len(found), sum(int(row[-1]) for row in found)


def stored(connection: Connection) -> dict[str, tuple[int, int]]:
    """Table -> rows and bytes."""
    out = {}
    for table in (VERDICTS, INCIDENTS):
        query = func.count(), func.coalesce(func.sum(table.c.bytes), 0)
        rows, size = connection.execute(table.select().with_only_columns(*query)).one()
        out[table.name] = (int(rows), int(size))
    return out


def _reaching(sizes: list[int], wanted: int) -> int:
    """How many of `sizes`, from the front, it takes to have `wanted` in all; all when they are not enough."""
    total = 0
    for number, size in enumerate(sizes, start=1):
        total += size
        if total >= wanted:
            return number
    return len(sizes)
