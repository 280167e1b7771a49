"""Writes entries to the database, so that neither repeats nor old news do harm, and one bad row costs only itself.

How it works. A verdict's id is a hash of its content, so one that is there already is left alone. An incident's row is
replaced by a later state only: after a crash older states are given again, and a resolved incident stays resolved. A
batch is one transaction. When the database refuses a row for what is in it, each entry gets a transaction of its own.
This file brings SQLAlchemy, which takes a third of a second to load: it is imported when there is something to write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, and_, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from collector_processor.config import StoreConfig
from collector_processor.model import Severity
from exporters.protocol import Meter
from exporters.queue import RetryLater
from exporters.store.database import Database, reason
from exporters.store.entries import Entry
from exporters.store.retention import Retention
from exporters.store.schema import INCIDENTS, VERDICTS, SchemaError

ROW_BYTES = 128  # what a row counts beside its texts: its columns and their place in the indices

log = structlog.get_logger(__name__)


class Sink:
    """The database that `config` names, SQLite in `data` by default. Raises `OSError` when it cannot be had."""

    def __init__(
        self, config: StoreConfig, data: Path, meter: Meter, stopped: threading.Event, clock_ns: Callable[[], int]
    ) -> None:
        self.database = Database(config, data)
        self._retention = Retention(config, self.database, meter, stopped, clock_ns)
        self._told = ""  # the last failure, so that each is said once
        self.database.open()

    def write(self, entries: Sequence[Entry]) -> int:
        """Keeps what is new of `entries`; how many the database refused for what is in them.

        Raises:
            RetryLater: it cannot take them now.
        """
        try:
            return self._write(entries)
        except DBAPIError as error:
            self._tell(error)
            raise RetryLater(reason(error)) from None
        except SchemaError as error:
            self._tell(error)
            raise RetryLater("schema") from None

    def trim(self) -> None:
        """Deletes what is too old or too much; what cannot be deleted now is left to the next time."""
        try:
            self._retention.trim()
        except (DBAPIError, SchemaError) as error:
            self._tell(error)

    def close(self) -> None:
        self.database.close()

    def _write(self, entries: Sequence[Entry]) -> int:
        try:
            with self.database.transaction() as connection:
                write(connection, entries)
        except (DataError, IntegrityError, OverflowError) as error:  # the last is Python's own, for SQLite
            if len(entries) == 1:
                self._tell(error)
                return 1
            return sum(self._write([entry]) for entry in entries)
        self._told = ""
        return 0

    def _tell(self, error: Exception) -> None:
        """One line for each new failure, however often it is met."""
        said = self.database.failure(error)
        if said != self._told:
            log.warning("the store does not do what it should", store=str(self.database), error=said)
        self._told = said


def write(connection: Connection, entries: Iterable[Entry]) -> None:
    """Writes what is new of `entries`."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    verdicts, incidents = [], []
    for entry in entries:
        if "verdict" in entry:
            verdicts.append(_verdict_columns(entry))
        else:
            incidents.append(_incident_columns(entry))
    if verdicts:
        connection.execute(insert(VERDICTS).on_conflict_do_nothing(), verdicts)
    if incidents:
        statement = insert(INCIDENTS)
        new = statement.excluded
        columns = {each.name: new[each.name] for each in INCIDENTS.columns if not each.primary_key}
        later = or_(
            new.changed_unix_nano > INCIDENTS.c.changed_unix_nano,
            # Told and resolved at the same moment: the end counts.
            and_(
                new.changed_unix_nano == INCIDENTS.c.changed_unix_nano,
                INCIDENTS.c.resolved_unix_nano.is_(None),
                new.resolved_unix_nano.is_not(None),
            ),
        )
        connection.execute(
            statement.on_conflict_do_update(index_elements=["tenant", "incident_id"], set_=columns, where=later),
            incidents,
        )


def _verdict_columns(entry: Entry) -> dict[str, Any]:
    row, records = entry["verdict"], entry["records"]
    content = orjson.dumps(row).decode()
    chain = orjson.dumps(records).decode() if records is not None else None
    return {
        "tenant": _text(row["tenant"]),
        "verdict_id": row["verdict_id"],
        "trace_id": row["trace_id"],
        "flow": _text(row["flow"]),
        "start_unix_nano": row["start_unix_nano"],
        "closed_unix_nano": entry["closed"],
        "score": row["score"],
        "severity": Severity[row["severity"].upper()].value,
        "content": content,
        "records": chain,
        "bytes": len(content) + len(chain or "") + ROW_BYTES,
    }


def _incident_columns(entry: Entry) -> dict[str, Any]:
    row = entry["incident"]
    content = orjson.dumps(row).decode()
    return {
        "tenant": _text(row["tenant"]),
        "incident_id": row["incident_id"],
        "kind": row["kind"],
        "severity": Severity[row["severity"].upper()].value,
        "opened_unix_nano": row["opened_unix_nano"],
        "changed_unix_nano": max(entry["changed"], row["resolved_unix_nano"] or 0),
        "resolved_unix_nano": row["resolved_unix_nano"],
        "chains": row["chains"],
        "content": content,
        "bytes": len(content) + ROW_BYTES,
    }


def _text(value: str) -> str:
    """PostgreSQL's texts hold no NUL."""
    return value.replace("\0", "�")
