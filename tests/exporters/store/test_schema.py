"""The steps make the tables that the queries are written for, once each, whoever starts at the same time."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from exporters.queue import RetryLater
from exporters.store.database import reason
from exporters.store.schema import METADATA, MIGRATIONS, SchemaError, migrate, version_of
from tests.exporters.store.kept import Place, verdict

VERSION_1 = Path(__file__).with_name("version1.sql")


def test_the_tables_are_what_the_steps_make(place: Place) -> None:
    with place.database().transaction() as connection:
        found = inspect(connection)
        assert set(found.get_table_names()) == set(METADATA.tables)
        for name, table in METADATA.tables.items():
            made = {column["name"]: column["nullable"] for column in found.get_columns(name)}
            wanted = {column.name: column.nullable for column in table.columns}
            if name == "schema_versions":  # SQLite says of its integer keys that they may be null
                assert set(made) == set(wanted)
            else:
                assert made == wanted
            assert found.get_pk_constraint(name)["constrained_columns"] == [key.name for key in table.primary_key]
        indices = {index["name"] for name in METADATA.tables for index in found.get_indexes(name)}
        assert indices == {"verdicts_by_age", "verdicts_by_trace", "incidents_by_age", "incidents_by_opening"}


def test_a_second_start_changes_nothing(place: Place) -> None:
    before = place.rows("SELECT * FROM schema_versions")
    assert [version for version, _ in before] == list(range(1, len(MIGRATIONS) + 1))
    with place.database().transaction() as connection:
        assert migrate(connection) == 0
    assert place.rows("SELECT * FROM schema_versions") == before


def test_many_that_start_at_once_make_each_step_once(place: Place) -> None:
    barrier = Barrier(6)

    def start(_: int) -> None:
        database = place.database()
        barrier.wait()
        while True:
            try:
                with database.transaction():
                    return
            except DBAPIError as error:  # SQLite does not wait for ever; the queue would come again
                if reason(error) != "locked":
                    raise

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(start, range(6)))
    assert len(place.rows("SELECT * FROM schema_versions")) == len(MIGRATIONS)


def test_from_version_1_up_step_by_step(place: Place) -> None:
    place.sink().write([verdict(1)])
    later = (*MIGRATIONS, ("ALTER TABLE verdicts ADD COLUMN note TEXT",), ("UPDATE verdicts SET note = 'kept'",))
    with place.database()._engine.begin() as connection:
        assert migrate(connection, later) == 2
        assert version_of(connection) == len(later)
        assert connection.exec_driver_sql("SELECT verdict_id, note FROM verdicts").all() == [(f"{1:016x}", "kept")]


def test_a_step_that_fails_leaves_the_version_before(place: Place) -> None:
    place.rows("SELECT 1")
    broken = (*MIGRATIONS, ("ALTER TABLE verdicts ADD COLUMN note TEXT",), ("ALTER TABLE verdicts ADD nonsense (",))
    database = place.database()
    with pytest.raises(DBAPIError), database._engine.begin() as connection:
        migrate(connection, broken)
    with database.transaction() as connection:
        assert version_of(connection) == len(MIGRATIONS)
        assert "note" not in {column["name"] for column in inspect(connection).get_columns("verdicts")}


def test_a_store_newer_than_the_program_is_left_alone(place: Place) -> None:
    sink = place.sink()
    place.rows("SELECT 1")
    with place.database().transaction() as connection:
        connection.exec_driver_sql("INSERT INTO schema_versions VALUES (99, 0)")
    with pytest.raises(SchemaError, match="use a newer spanchain"), place.database().transaction():
        pass
    fresh = place.sink()
    with pytest.raises(RetryLater, match="schema"):
        fresh.write([verdict(1)])
    sink.close()


def test_a_file_of_version_1_is_read_and_written(tmp_path: Path) -> None:
    """What the first release wrote. A later step keeps this test; it never changes the file."""
    with closing(sqlite3.connect(tmp_path / "spanchain.db")) as file:
        file.executescript(VERSION_1.read_text())
    with ExitStack() as stack:
        place = Place(tmp_path, None, stack)
        place.sink().write([verdict(2, closed_s=20)])
        [old] = place.reader().incidents(tenant="default")
        assert old["incident_id"] == f"{1:016x}"
        assert [each["trace_id"] for each in place.reader().evidence(old["example_trace_ids"], tenant="default")] == [
            f"{1:032x}"
        ]
        assert len(place.rows("SELECT * FROM verdicts")) == 2
        assert [version for (version,) in place.rows("SELECT version FROM schema_versions ORDER BY version")] == list(
            range(1, len(MIGRATIONS) + 1)
        )
