"""Reads the store: incidents, and the chains that show what they are about.

How it works. Every query is for one tenant, or for all when `tenant` is None, which is for those who run the service.
Nothing is changed or created: a store that nobody has written to yet has no incidents.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Table, select
from sqlalchemy.exc import DBAPIError

from collector_processor.config import StoreConfig
from exporters.store.database import Database
from exporters.store.schema import INCIDENTS, MIGRATIONS, VERDICTS, version_of

IDS_MAX = 10  # that are named when the beginning of an id fits several
EVIDENCE_MAX = 5  # chains that are shown for an incident
LOOKED_AT_MAX = 500  # unusual chains of its time, the most severe first


class StoreError(Exception):
    """The store cannot be read, or what was asked for is not there; the message says what to do."""


class Reader:
    """Reads the store that `config` names. Every method raises `StoreError`."""

    def __init__(self, config: StoreConfig, data: Path) -> None:
        """`data` is the folder of the SQLite file."""
        try:
            self._database = Database(config, data, read_only=True)
        except OSError as error:
            raise StoreError(str(error)) from error

    def __str__(self) -> str:
        """Where the store is, without what is secret."""
        return str(self._database)

    def close(self) -> None:
        self._database.close()

    def incidents(
        self, *, tenant: str | None, since_ns: int = 0, only_open: bool = False, limit: int = 50
    ) -> list[dict[str, Any]]:
        """The incidents that changed since `since_ns`, the last opened first, as lines of incidents.jsonl."""
        query = select(INCIDENTS.c.content).where(INCIDENTS.c.changed_unix_nano >= since_ns, *_of(tenant, INCIDENTS))
        if only_open:
            query = query.where(INCIDENTS.c.resolved_unix_nano.is_(None))
        query = query.order_by(INCIDENTS.c.opened_unix_nano.desc(), INCIDENTS.c.incident_id).limit(limit)
        with self._connection() as connection:
            return [] if connection is None else [orjson.loads(each) for each in connection.scalars(query)]

    def incident(self, beginning: str, *, tenant: str | None) -> dict[str, Any]:
        """The incident whose id begins so; `StoreError` when there is none, or more than one."""
        query = (
            select(INCIDENTS.c.content, INCIDENTS.c.incident_id)
            .where(INCIDENTS.c.incident_id.startswith(beginning, autoescape=True), *_of(tenant, INCIDENTS))
            .order_by(INCIDENTS.c.incident_id)
            .limit(IDS_MAX)
        )
        with self._connection() as connection:
            found = [] if connection is None else connection.execute(query).all()
        if len(found) != 1:
            several = f"several incidents begin so: {', '.join(each for _, each in found)}"
            raise StoreError(several if found else f"no incident begins with {beginning!r} in {self._database}")
        content: dict[str, Any] = orjson.loads(found[0][0])
        return content

    def evidence(self, trace_ids: Sequence[str], *, tenant: str) -> list[dict[str, Any]]:
        """The unusual verdicts on these traces: lines of verdicts.jsonl, with the chain's `records` where kept."""
        query = (
            select(VERDICTS.c.content, VERDICTS.c.records)
            .where(VERDICTS.c.tenant == tenant, VERDICTS.c.trace_id.in_(trace_ids), VERDICTS.c.severity > 0)
            .order_by(VERDICTS.c.closed_unix_nano, VERDICTS.c.verdict_id)
        )
        with self._connection() as connection:
            rows = [] if connection is None else connection.execute(query).all()
        return [orjson.loads(content) | {"records": orjson.loads(records or "null")} for content, records in rows]

    def evidence_of(self, incident: dict[str, Any]) -> list[dict[str, Any]]:
        """Chains that show an incident, as `evidence` has them: its examples where they are kept, then unusual ones of
        its time that have a finding about its service, of its kind first, up to EVIDENCE_MAX."""
        tenant = incident["tenant"]
        found = self.evidence(incident["example_trace_ids"], tenant=tenant)
        end_ns = incident["resolved_unix_nano"]
        query = (
            select(VERDICTS.c.content, VERDICTS.c.records)
            .where(VERDICTS.c.tenant == tenant, VERDICTS.c.severity > 0)
            .where(VERDICTS.c.closed_unix_nano >= incident["opened_unix_nano"])
            .order_by(VERDICTS.c.severity.desc(), VERDICTS.c.closed_unix_nano, VERDICTS.c.verdict_id)
            .limit(LOOKED_AT_MAX)
        )
        if end_ns is not None:
            query = query.where(VERDICTS.c.closed_unix_nano <= end_ns)
        with self._connection() as connection:
            rows = [] if connection is None else connection.execute(query).all()
        known, kind, service = {each["trace_id"] for each in found}, incident["kind"], incident["subject"]["service"]
        near: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for content, records in rows:
            verdict = orjson.loads(content)
            kinds = {one["kind"] for one in verdict["findings"] if one["subject"]["service"] == service}
            if kinds and verdict["trace_id"] not in known:
                near[kind in kinds].append(verdict | {"records": orjson.loads(records or "null")})
        return (found + near[True] + near[False])[:EVIDENCE_MAX]

    @contextmanager
    def _connection(self) -> Iterator[Connection | None]:
        """A connection; None when nobody has written yet."""
        path = self._database.path
        if path is not None and not path.exists():
            yield None
            return
        try:
            with self._database.transaction() as connection:
                version = version_of(connection)
                if version not in {0, len(MIGRATIONS)}:
                    raise StoreError(
                        f"{self._database} has schema version {version}, this program reads {len(MIGRATIONS)}: "
                        f"{'use a newer spanchain' if version > len(MIGRATIONS) else 'start the service once'}"
                    )
                yield connection if version else None
        except DBAPIError as error:
            raise StoreError(f"{self._database}: {self._database.failure(error)}") from None
        except sqlite3.Error as error:
            raise StoreError(f"{self._database}: {error}") from None


def _of(tenant: str | None, table: Table) -> list[ColumnElement[bool]]:
    return [] if tenant is None else [table.c.tenant == tenant]
