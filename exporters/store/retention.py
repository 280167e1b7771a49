"""Deletes what is too old or too much, the oldest first, a few rows at a time so that no writer waits for long.

How it works. One `Retention` looks at the store each `retention_interval_s`: first what has reached its age, then what
is over the number of rows, then, when the bytes of all are over their bound, verdicts, and incidents only when no
verdict is left. Age counts from when the chain was closed or the incident changed last, by spanchain's clock: those of
the senders may be wrong by years. Each time the newest row that has to go is found first, and then it and all that is
older is deleted: so several services may do this to one database, and what one has deleted the other does not again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy import Column, ColumnElement, Connection, Table, func, literal, select, text, tuple_

from collector_processor.config import StoreConfig
from exporters.protocol import Meter
from exporters.store.database import Database
from exporters.store.schema import INCIDENTS, LOCK, VERDICTS

BATCH = 500  # rows of one transaction
PAUSE_S = 0.02  # between two of them: others have their turn

_AGE: dict[str, Column[int]] = {"verdicts": VERDICTS.c.closed_unix_nano, "incidents": INCIDENTS.c.changed_unix_nano}

Condition = ColumnElement[bool]


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
        deleted = 0
        for table, age_s in ((VERDICTS, config.age_max_s), (INCIDENTS, config.incidents_age_max_s)):
            deleted += self._delete(table, "age", _AGE[table.name] < now_ns - int(age_s * 1e9))
        for table, most in ((VERDICTS, config.verdicts_max), (INCIDENTS, config.incidents_max)):
            with self._database.transaction() as connection:
                last = _after(connection, table, most)
            deleted += 0 if last is None else self._delete(table, "rows", last)
        deleted += self._trim_bytes()
        with self._database.transaction() as connection:
            held = stored(connection)
        for name, (count, _) in held.items():
            self._meter.set("store_rows", count, table=name)
        self._meter.set("store_bytes", sum(size for _, size in held.values()))
        if deleted:
            self._database.shrink()
        return deleted

    def _trim_bytes(self) -> int:
        """What incidents leave of the bound is for verdicts."""
        most = self._config.bytes_max
        with self._database.transaction() as connection:
            held = {name: size for name, (_, size) in stored(connection).items()}
            if sum(held.values()) <= most:
                return 0
            verdicts = _beyond(connection, VERDICTS, most - held["incidents"])
            incidents = _beyond(connection, INCIDENTS, most) if held["incidents"] > most else None
        deleted = 0 if verdicts is None else self._delete(VERDICTS, "bytes", verdicts)
        return deleted + (0 if incidents is None else self._delete(INCIDENTS, "bytes", incidents))

    def _delete(self, table: Table, reason: str, which: Condition) -> int:
        """Deletes the rows `which`, batch by batch; how many that were."""
        keys = list(table.primary_key.columns)
        oldest = select(*keys).where(which).order_by(*_order(table)).limit(BATCH)
        statement = table.delete().where(tuple_(*keys).in_(oldest))
        deleted = 0
        while not self._stopped.is_set():
            with self._database.transaction() as connection:
                if connection.dialect.name == "postgresql":  # else two would wait for each other's rows
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK + 1})
                gone = connection.execute(statement).rowcount
            if gone:
                self._meter.count("store_deleted_total", gone, table=table.name, reason=reason)
                deleted += gone
            if gone < BATCH:
                break
            self._stopped.wait(PAUSE_S)
        return deleted


def _order(table: Table) -> list[Column[int]]:
    """The oldest first; the keys decide between rows of one moment."""
    return [_AGE[table.name], *table.primary_key.columns]


def _after(connection: Connection, table: Table, rows: int) -> Condition | None:
    """All but the newest `rows` rows; None when there are no more."""
    order = _order(table)
    first = connection.execute(select(*order).order_by(*(each.desc() for each in order)).offset(rows).limit(1)).first()
    return None if first is None else tuple_(*order) <= tuple_(*(literal(value) for value in first))


def _beyond(connection: Connection, table: Table, size: int) -> Condition | None:
    """All but the newest rows that have at most `size` bytes together; None when all have."""
    order = _order(table)
    newest = [each.desc() for each in order]
    total = func.sum(table.c.bytes).over(order_by=newest, rows=(None, 0)).label("total")
    running = select(*order, total).subquery()
    columns = [running.c[each.name] for each in order]
    over = select(*columns).where(running.c.total > size).order_by(*(each.desc() for each in columns)).limit(1)
    first = connection.execute(over).first()
    return None if first is None else tuple_(*order) <= tuple_(*(literal(value) for value in first))


def stored(connection: Connection) -> dict[str, tuple[int, int]]:
    """Table -> rows and bytes."""
    out = {}
    for table in (VERDICTS, INCIDENTS):
        query = select(func.count(), func.coalesce(func.sum(table.c.bytes), 0)).select_from(table)
        rows, size = connection.execute(query).one()
        out[table.name] = (int(rows), int(size))
    return out
