"""Items keep their order; on disk they survive, what is known is not taken twice, and damage is not the end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import exporters.backlog
from exporters.backlog import DiskBacklog, Item, MemoryBacklog


def item(number: int, size: int = 3, key: str | None = None) -> Item:
    return Item(b"x" * size, size, f"k{number}" if key is None else key)


def keys(items: list[Item]) -> list[str]:
    return [each.key for each in items]


@pytest.fixture(params=["memory", "disk"])
def backlog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryBacklog | DiskBacklog]:
    if request.param == "memory":
        yield MemoryBacklog()
    else:
        with closing(DiskBacklog(tmp_path / "b.queue")) as made:
            yield made


def test_oldest_first_bounded_by_items_and_bytes(backlog: MemoryBacklog | DiskBacklog) -> None:
    backlog.append([item(number) for number in range(10)])
    backlog.append([item(10, size=100)])
    assert (len(backlog), backlog.size) == (11, 130)
    assert keys(backlog.oldest(3, 1000)) == ["k0", "k1", "k2"]
    assert keys(backlog.oldest(100, 8)) == ["k0", "k1"]
    assert keys(backlog.oldest(100, 1)) == ["k0"], "one that is too large by itself still comes"
    backlog.drop_oldest(9)
    assert (len(backlog), backlog.size) == (2, 103)
    assert keys(backlog.oldest(100, 102)) == ["k9"]
    backlog.drop_oldest(2)
    assert (len(backlog), backlog.size, backlog.oldest(1, 1)) == (0, 0, [])


def test_what_waits_on_disk_survives_and_keeps_its_order(tmp_path: Path) -> None:
    first = DiskBacklog(tmp_path / "b.queue")
    first.append([item(1), item(2), item(3)])
    first.drop_oldest(1)
    # No close: a killed process does not either.
    second = DiskBacklog(tmp_path / "b.queue")
    assert (len(second), second.size) == (2, 6)
    assert keys(second.oldest(10, 100)) == ["k2", "k3"]
    first.close()
    second.close()


def test_an_item_given_again_is_known_whether_it_waits_or_was_delivered(tmp_path: Path) -> None:
    backlog = DiskBacklog(tmp_path / "b.queue")
    backlog.append([item(1), item(2)])
    backlog.drop_oldest(1)
    backlog.append([item(1), item(2), item(3)])
    assert keys(backlog.oldest(10, 100)) == ["k2", "k3"]
    backlog.append([item(0, key=""), item(0, key="")])
    assert len(backlog) == 4, "without a key nobody asks"
    backlog.drop_oldest(4)
    assert backlog._count_delivered() == 3, "and nothing is remembered"
    backlog.close()


def test_delivered_keys_outlive_the_checkpoints_that_may_be_restored(tmp_path: Path) -> None:
    backlog = DiskBacklog(tmp_path / "b.queue")
    backlog.append([item(1)])
    backlog.drop_oldest(1)
    for _ in range(2):
        backlog.checkpointed()
        backlog.append([item(1)])
        assert len(backlog) == 0
    backlog.checkpointed()
    backlog.append([item(1)])
    assert len(backlog) == 1
    backlog.close()


def test_nothing_is_forgotten_while_the_journal_is_being_replayed(tmp_path: Path) -> None:
    before = DiskBacklog(tmp_path / "b.queue")
    before.append([item(1), item(2)])
    before.drop_oldest(2)
    before.close()
    after = DiskBacklog(tmp_path / "b.queue")
    for _ in range(5):
        after.checkpointed()
    after.append([item(1), item(2)])
    assert len(after) == 0
    after.append([item(3)])
    for _ in range(5):
        after.checkpointed()
    assert after._count_delivered() == 0
    after.close()


def test_keys_are_bounded_without_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters.backlog, "DELIVERED_MAX", 100)
    backlog = DiskBacklog(tmp_path / "b.queue")
    for start in range(0, 1000, 50):
        backlog.append([item(number) for number in range(start, start + 50)])
        backlog.drop_oldest(50)
        assert backlog._count_delivered() <= 110
    backlog.append([item(999)])
    assert len(backlog) == 0, "the youngest are the ones that are kept"
    backlog.close()


@pytest.mark.parametrize("damage", [lambda b: b"not a database" * 100, lambda b: b[: len(b) // 2], lambda b: b[:100]])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "b.queue"
    backlog = DiskBacklog(path)
    backlog.append([item(number, size=2000) for number in range(50)])
    backlog.sync()
    backlog.close()
    path.write_bytes(damage(path.read_bytes()))
    again = DiskBacklog(path)
    again.append([item(1)])
    assert keys(again.oldest(10, 100)) == ["k1"]
    assert path.with_name("b.queue.damaged").exists()
    again.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        DiskBacklog(tmp_path / "file" / "b.queue")
    (tmp_path / "folder.queue").mkdir()
    with pytest.raises(OSError, match="unable to open"):
        DiskBacklog(tmp_path / "folder.queue")


def test_a_failed_step_changes_nothing(tmp_path: Path) -> None:
    backlog = DiskBacklog(tmp_path / "b.queue")
    backlog.append([item(1)])
    backlog._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.Error):
        backlog.append([item(number, size=100_000) for number in range(2, 50)])
    assert (len(backlog), backlog.size) == (1, 3)
    backlog._db.execute("PRAGMA max_page_count = 1000000")
    backlog.append([item(2)])
    assert keys(backlog.oldest(10, 100)) == ["k1", "k2"]
    backlog.close()
