"""The connection: nothing secret is told, a damaged file does not stop the service, and people read while it writes."""

from __future__ import annotations

import logging
import signal
import stat
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr, ValidationError

from collector_processor import doctor
from collector_processor.config import Config, StoreConfig
from collector_processor.config_file import ConfigError, loads
from exporters.queue import RetryLater
from exporters.store.database import Database
from exporters.store.reader import Reader, StoreError
from tests.e2e.postgres import Postgres
from tests.exporters.store.kept import Place, verdict

SECRET = "hunter2/of:the@bank%"
QUOTED = "hunter2%2Fof%3Athe%40bank%25"
NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(
    "settings",
    [
        {"url": f"postgresql://me:{QUOTED}@{NOBODY}/db"},
        {"url": f"postgresql://me@{NOBODY}/db", "password": SECRET},
        {"url": f"postgresql://me@{NOBODY}/db?password={QUOTED}"},
        {"url": f"postgresql://me:{QUOTED}@{NOBODY}/db?sslmode=nonsense"},
    ],
)
def test_the_password_is_shown_nowhere(
    settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = {"enabled": True, **settings}
    config = Config.model_validate({"exporters": {"store": store}})
    database = Database(config.exporters.store, tmp_path)
    shown = [str(config), repr(config), config.model_dump_json(), str(database), repr(database), repr(database._engine)]
    with pytest.raises(Exception) as raised, database.transaction():
        pass
    shown += [database.failure(raised.value), str(raised.value)]
    with pytest.raises(StoreError) as told:
        Reader(config.exporters.store, tmp_path).incidents(tenant=None)
    shown += [str(told.value), *(finding.detail for finding in doctor._store(config, tmp_path))]
    shown += [*capsys.readouterr(), caplog.text]
    for text in shown:
        assert "hunter2" not in text
    assert str(database) == f"postgresql://me@{NOBODY}/db"


@pytest.mark.parametrize(
    "url", [f"mysql://me:{QUOTED}@db/x", f"postgresql://me:{QUOTED}@db:port/x", f"postgresql://me:{SECRET}"]
)
def test_a_wrong_url_is_refused_without_showing_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        loads(f"exporters:\n  store:\n    url: '{url}'\n")
    assert "exporters.store" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_password_without_a_url_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="password needs url"):
        StoreConfig(password=SecretStr("x"))


@pytest.mark.e2e
def test_a_wrong_password_is_told_but_not_shown(postgres: Postgres, tmp_path: Path) -> None:
    config = StoreConfig(url=SecretStr(postgres.url("postgres", password=None)), password=SecretStr(SECRET))
    database = Database(config, tmp_path)
    with pytest.raises(Exception, match="password authentication failed") as raised, database.transaction():
        pass
    assert "hunter2" not in database.failure(raised.value) + str(raised.value)


@pytest.mark.e2e
def test_the_data_of_a_statement_is_not_in_an_error(place: Place) -> None:
    entry = verdict(1)
    entry["verdict"]["score"] = None
    entry["verdict"]["flow"] = "card 4111 1111 1111 1111"
    with structlog.testing.capture_logs() as logs:
        assert place.sink().write([entry]) == 1
    assert logs
    assert "4111" not in str(logs)


def test_the_file_is_for_its_owner_and_has_a_write_ahead_log(tmp_path: Path) -> None:
    database = Database(StoreConfig(), tmp_path)
    database.open()
    assert stat.S_IMODE((tmp_path / "spanchain.db").stat().st_mode) == 0o600
    with database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    database.close()
    database.close()


def test_people_read_while_the_service_writes(place: Place) -> None:
    sink, reader = place.sink(), place.reader()
    sink.write([verdict(1)])
    with sink.database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM verdicts")
        assert len(reader.evidence([f"{1:032x}"], tenant="default")) == 1, "as it was before the transaction"
    assert reader.evidence([f"{1:032x}"], tenant="default") == []


@pytest.mark.parametrize("damage", [b"this is no database, but a text" * 200, b"SQLite format 3\0" + b"x" * 8000])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "spanchain.db").write_bytes(damage)
    database = Database(StoreConfig(), tmp_path)
    database.open()
    with database.transaction() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM verdicts").scalar() == 0
    assert (tmp_path / "spanchain.db.damaged").read_bytes() == damage
    database.close()


def test_a_folder_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Database(StoreConfig(), tmp_path / "file").open()


@pytest.mark.e2e
@pytest.mark.slow
def test_a_crash_of_postgresql_is_waited_out(postgres: Postgres, tmp_path: Path) -> None:
    with postgres.database() as name, ExitStack() as stack:
        place = Place(tmp_path, postgres.url(name), stack)
        sink = place.sink()
        assert sink.write([verdict(1)]) == 0
        postgres.stop(signal.SIGQUIT)
        try:
            with pytest.raises(RetryLater, match="database"):
                sink.write([verdict(1), verdict(2)])
        finally:
            postgres.start()
        assert sink.write([verdict(1), verdict(2)]) == 0
        assert len(place.rows("SELECT * FROM verdicts")) == 2


def test_only_reading_creates_nothing(tmp_path: Path) -> None:
    with closing(Reader(StoreConfig(), tmp_path)) as reader:
        assert reader.incidents(tenant=None) == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "spanchain.db").touch()
    with closing(Reader(StoreConfig(), tmp_path)) as reader:
        assert reader.incidents(tenant=None) == []
    assert (tmp_path / "spanchain.db").stat().st_size == 0


def test_a_file_that_is_no_database_is_told_by_the_reader(tmp_path: Path) -> None:
    (tmp_path / "spanchain.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"spanchain\.db"):
        Reader(StoreConfig(), tmp_path).incidents(tenant=None)
