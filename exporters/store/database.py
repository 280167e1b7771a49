"""The connection to the store: a SQLite file in the data folder, or PostgreSQL by URL. It tells nothing that is secret.

How it works. SQLite runs with its write-ahead log, so people read while the service writes, and with a sync at each
commit, for what was committed leaves the queue. Transactions that write begin with `BEGIN IMMEDIATE`: two writers wait
for each other at the start and never meet in the middle. A file that is damaged is moved aside, not trusted, as in
`exporters/backlog.py`. PostgreSQL is connected to when there is something to write, with bounds on every wait.
What went wrong is told by `failure`: neither the data of the statement nor the password is in it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import structlog
from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from collector_processor.config import StoreConfig
from exporters.backlog import move_aside
from exporters.store.schema import SchemaError, migrate

FILE = "spanchain.db"
BUSY_S = 5.0  # that a statement waits for another writer of the SQLite file, before it is tried again later
CONNECT_S = 5
STATEMENT_MS = 30_000
WAL_BYTES_MAX = 1 << 26  # to which SQLite cuts its log after a burst

SQLITE_REASONS = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_FULL: "disk",
    sqlite3.SQLITE_IOERR: "disk",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
}
SQLSTATE_REASONS = {"55P03": "locked", "53100": "disk"}  # lock_not_available, disk_full

log = structlog.get_logger(__name__)


class Database:
    """One store. `read_only` never changes anything: for people who look while the service writes."""

    def __init__(self, config: StoreConfig, data: Path, *, read_only: bool = False) -> None:
        """`data` is the folder of the SQLite file. Nothing is opened yet.

        Raises:
            OSError: the URL is no URL.
        """
        self.path = None if config.url is not None else data / FILE
        self._read_only = read_only
        self._url = self._read_url(config)
        self._secrets = _secrets(config, self._url)
        self._migrated = False
        self._closed = False
        if self.path is not None:
            self._engine = create_engine(
                "sqlite+pysqlite://", creator=self._connect_file, poolclass=QueuePool, pool_size=2, hide_parameters=True
            )
            event.listen(self._engine, "begin", self._begin)
        else:
            arguments: dict[str, object] = {
                "connect_timeout": CONNECT_S,
                "application_name": "spanchain",
                "options": f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS}",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": STATEMENT_MS,
            }
            arguments |= dict(self._url.query)  # counts more; and apart from the URL, for SQLAlchemy would show it
            self._engine = create_engine(
                self._url.set(query={}), connect_args=arguments, pool_size=2, max_overflow=0, hide_parameters=True
            )

    @staticmethod
    def _read_url(config: StoreConfig) -> URL:
        if config.url is None:
            return URL.create("sqlite")
        try:
            url = make_url(config.url.get_secret_value())
        except (ArgumentError, ValueError):
            raise OSError("exporters.store.url is no URL: postgresql://user@host/database") from None
        password = url.password if config.password is None else config.password.get_secret_value()
        return url.set(drivername="postgresql+psycopg", password=password or None)  # else ~/.pgpass may know it

    def __str__(self) -> str:
        """Where the store is, without what is secret."""
        if self.path is not None:
            return str(self.path)
        host = f"{self._url.host or ''}{f':{self._url.port}' if self._url.port else ''}"
        return f"postgresql://{f'{self._url.username}@' if self._url.username else ''}{host}/{self._url.database or ''}"

    def open(self) -> None:
        """Makes the SQLite file; one that is locked now, or PostgreSQL, is met when there is something to write.

        Raises:
            OSError: the file cannot be had.
        """
        if self.path is None or self._read_only:
            return
        try:
            self._make_file(self.path)
        except DBAPIError as error:
            if reason(error) == "locked":
                return
            if reason(error) != "damaged":
                raise OSError(f"{self.path}: {self.failure(error)}") from None
            self._engine.dispose()
            log.warning("the store is damaged and moved aside", path=f"{self.path}.damaged", error=self.failure(error))
            move_aside(self.path)
            self._make_file(self.path)

    def _make_file(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with contextlib.suppress(SchemaError), self.transaction():
            pass

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that is committed when the block ends and undone when it raises; at the newest schema.

        Raises:
            DBAPIError: the database does not do it.
            SchemaError: it is newer than this program.
        """
        try:
            with self._engine.connect() as connection, connection.begin():
                try:
                    if not (self._migrated or self._read_only):
                        migrate(connection)
                    yield connection
                finally:
                    if self._closed and not connection.invalidated:
                        connection.detach()  # who closed could not wait for this; the pool is gone
            self._migrated = True
        except DBAPIError:
            self._migrated = False  # it may be another database when it is back
            raise

    def failure(self, error: Exception) -> str:
        """What went wrong in one line: the driver's own words, without the statement, its data and the password."""
        cause = getattr(error, "orig", None) or error
        lines = str(cause).strip().splitlines() or [""]
        said = f"{type(cause).__name__}: {lines[0]}"
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said

    def shrink(self) -> None:
        """Gives pages that nothing needs any more back to the file system; PostgreSQL does so by itself."""
        if self.path is None:
            return
        connection = self._engine.raw_connection()
        try:
            file = connection.driver_connection
            assert isinstance(file, sqlite3.Connection)
            file.executescript("PRAGMA incremental_vacuum(2000)")  # `execute` would give back one page only
        finally:
            connection.close()

    def close(self) -> None:
        """Safe twice, and while a transaction hangs: its connection is closed when it ends."""
        self._closed = True
        self._engine.dispose()

    def _connect_file(self) -> sqlite3.Connection:
        assert self.path is not None
        mode = "ro" if self._read_only else "rwc"
        address = f"file:{quote(str(self.path.absolute()))}?mode={mode}"
        # The pool lends a connection to one thread at a time.
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            if not self._read_only:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before there is a table
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
                connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if self._read_only else "BEGIN IMMEDIATE")


def reason(error: DBAPIError) -> str:
    """A label value for what went wrong: locked, disk, damaged, or database; `Database.failure` has the words."""
    cause = error.orig
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without what SQLite adds in the higher bits
    return SQLITE_REASONS.get(code) or SQLSTATE_REASONS.get(getattr(cause, "sqlstate", None) or "", "database")


def _secrets(config: StoreConfig, url: URL) -> tuple[str, ...]:
    """Texts that must not be shown: the password, as it is and as it stands in the URL, and those of the query."""
    found = {url.password, *(str(value) for name, value in url.query.items() if "password" in name)}
    if config.url is not None:
        found.add(config.url.get_secret_value())
    found |= {quote(secret, safe="") for secret in found if secret}
    return tuple(sorted((secret for secret in found if secret), key=len, reverse=True))
