"""The tables of the store and the numbered steps that make them, the same on SQLite and on PostgreSQL.

How it works. `MIGRATIONS[n]` leads from version n to version n + 1; a step is never changed once it was released, a new
one is added. `migrate` runs the missing steps and notes each in `schema_versions`, all in one transaction that keeps
others out: two processes that start at once make every step once, and a step that fails leaves the version before. The
`Table` objects say what the newest version looks like, for queries; a test holds the two together.

Every row belongs to a tenant, and the tenant is the first part of every key. `content` is the line of `verdicts.jsonl`
or `incidents.jsonl`; what is searched for stands in columns beside it. `bytes` is what the row counts for `bytes_max`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, Connection, Double, Integer, MetaData, Table, Text, inspect, text

LOCK = 0x7370616E6368  # PostgreSQL's advisory lock while steps run: "spanch"

METADATA = MetaData()

VERDICTS = Table(
    "verdicts",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("verdict_id", Text, primary_key=True),
    Column("trace_id", Text, nullable=False),
    Column("flow", Text, nullable=False),
    Column("start_unix_nano", BigInteger, nullable=False),  # of the chain, by the clocks of those who sent it
    Column("closed_unix_nano", BigInteger, nullable=False),  # by spanchain's clock: what age counts from
    Column("score", Double, nullable=False),
    Column("severity", Integer, nullable=False),  # 0 none, 1 info, 2 warning, 3 critical
    Column("content", Text, nullable=False),  # the line of verdicts.jsonl
    Column("records", Text),  # of an unusual chain: see `entries.records_of`
    Column("bytes", BigInteger, nullable=False),
)

INCIDENTS = Table(
    "incidents",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("incident_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("opened_unix_nano", BigInteger, nullable=False),
    Column("changed_unix_nano", BigInteger, nullable=False),  # by spanchain's clock: the later of two states is kept
    Column("resolved_unix_nano", BigInteger),
    Column("chains", BigInteger, nullable=False),
    Column("content", Text, nullable=False),  # the line of incidents.jsonl
    Column("bytes", BigInteger, nullable=False),
)

VERSIONS = Table(
    "schema_versions",
    METADATA,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_unix_nano", BigInteger, nullable=False),
)

Migration = tuple[str, ...]
"""Statements that both databases understand."""

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE verdicts (
            tenant TEXT NOT NULL, verdict_id TEXT NOT NULL, trace_id TEXT NOT NULL, flow TEXT NOT NULL,
            start_unix_nano BIGINT NOT NULL, closed_unix_nano BIGINT NOT NULL, score DOUBLE PRECISION NOT NULL,
            severity INTEGER NOT NULL, content TEXT NOT NULL, records TEXT, bytes BIGINT NOT NULL,
            PRIMARY KEY (tenant, verdict_id))""",
        "CREATE INDEX verdicts_by_age ON verdicts (closed_unix_nano, bytes)",
        "CREATE INDEX verdicts_by_trace ON verdicts (tenant, trace_id)",
        """CREATE TABLE incidents (
            tenant TEXT NOT NULL, incident_id TEXT NOT NULL, kind TEXT NOT NULL, severity INTEGER NOT NULL,
            opened_unix_nano BIGINT NOT NULL, changed_unix_nano BIGINT NOT NULL, resolved_unix_nano BIGINT,
            chains BIGINT NOT NULL, content TEXT NOT NULL, bytes BIGINT NOT NULL,
            PRIMARY KEY (tenant, incident_id))""",
        "CREATE INDEX incidents_by_age ON incidents (changed_unix_nano, bytes)",
        "CREATE INDEX incidents_by_opening ON incidents (tenant, opened_unix_nano)",
    ),
)


class SchemaError(Exception):
    """The database is of a version that this program does not know; the message says what to do."""


def version_of(connection: Connection) -> int:
    """The version of the database: 0 when it has no tables of ours."""
    if not inspect(connection).has_table(VERSIONS.name):
        return 0
    return int(connection.execute(text("SELECT coalesce(max(version), 0) FROM schema_versions")).scalar_one())


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Runs the missing steps in the transaction of `connection`, which on SQLite is one that writes; how many.

    Raises:
        SchemaError: the database is newer than this program.
    """
    if version_of(connection) == len(migrations):
        return 0
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    found = version_of(connection)  # again: somebody else may have had the lock before
    if found > len(migrations):
        raise SchemaError(
            f"the store has schema version {found}, this program knows {len(migrations)}: use a newer spanchain"
        )
    if found == 0:
        connection.execute(
            text(
                "CREATE TABLE IF NOT EXISTS schema_versions"
                " (version INTEGER PRIMARY KEY, applied_unix_nano BIGINT NOT NULL)"
            )
        )
    for number, statements in enumerate(migrations[found:], start=found + 1):
        for statement in statements:
            connection.execute(text(statement))
        connection.execute(VERSIONS.insert(), {"version": number, "applied_unix_nano": time.time_ns()})
    return len(migrations) - found
