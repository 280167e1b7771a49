"""A real PostgreSQL for one test run: a data folder of its own, one port on the loopback interface, password required.

How it works. PostgreSQL refuses to run as root, so root gives the folder to the user `postgres`, whom the Debian
package brings, and becomes that user for each command. Nothing is synced to disk: the folder is gone after the run. A
test gets a database of its own, which can be taken away, brought back, and kept locked.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from tests.e2e.processes import free_ports

USER = "postgres"
PASSWORD = "p@ss/w:rd%41 " + secrets.token_hex(4)  # with all that has to be written differently in a URL
SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "unix_socket_directories=",
)


class Postgres:
    """A server; entering the context starts it."""

    def __init__(self, postgres: Path, initdb: Path) -> None:
        self._postgres, self._initdb = postgres, initdb
        self._process: subprocess.Popen[bytes] | None = None
        [self.port] = free_ports(1)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="spanchain-postgres-"))
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self.folder, password):
                shutil.chown(path, USER, USER)
        self._run(
            *(self._initdb, "--pgdata", self.folder / "data", "--username", USER, "--auth=scram-sha-256"),
            *("--pwfile", password, "--no-sync", "--locale=C", "--encoding=UTF8"),
        )
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Runs the server until it answers."""
        settings = [f"-c{setting}" for setting in (*SETTINGS, f"port={self.port}", "listen_addresses=127.0.0.1")]
        command = self._as_user(self._postgres, "-D", self.folder / "data", *settings)
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()[-2000:]
                assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
                time.sleep(0.1)
            else:
                return

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ends the server: SIGINT in order, SIGQUIT at once, as in a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
        self._process = None

    def log(self) -> str:
        """What the server has written."""
        return (self.folder / "server.log").read_text()

    def connect(self, database: str) -> psycopg.Connection[Any]:
        """A connection of the administrator's, each statement in a transaction of its own."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        )

    def url(self, database: str, *, password: str | None = PASSWORD) -> str:
        """As it stands in a configuration."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{USER}{secret}@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The name of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        self._administrate("CREATE DATABASE {}", name)
        yield name
        self._administrate("DROP DATABASE {} WITH (FORCE)", name)

    def _administrate(self, statement: LiteralString, database: str) -> None:
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(database)))

    def allow(self, database: str, *, connections: bool) -> None:
        """Takes the database away from everybody, or gives it back."""
        with self.connect("postgres") as connection:
            statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            allowed = sql.Literal(connections)
            connection.execute(statement.format(sql.Identifier(database), allowed))
            if not connections:
                everybody = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                connection.execute(everybody, (database,))

    def _as_user(self, *command: str | Path) -> list[str]:
        text = [str(part) for part in command]
        if os.geteuid() != 0:
            return text
        # It ends with the tests also when they are killed.
        return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--pdeathsig=INT", *text]

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            self._as_user(*command),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
