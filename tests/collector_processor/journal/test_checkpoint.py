"""Checkpoints: any state comes back as it was, and no damage is ever fatal or taken for a state."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collector_processor.journal import checkpoint
from collector_processor.journal.checkpoint import Counters, read_checkpoint, write_checkpoint
from collector_processor.model import FINDING, Symbols
from tests.examples import examples

SMALL = {"version": 1, "names": ["a", "b"], "array": np.arange(5, dtype=np.int64), "none": None, "n": -7}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, other) and (
            one == other or math.isnan(one) == math.isnan(other) is True
        )
    return bool(one == other)


def scalars() -> st.SearchStrategy[Any]:
    text = st.text(st.characters(), max_size=20)
    return st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, st.binary(max_size=20))


def arrays() -> st.SearchStrategy[Any]:
    kinds = ["?", "i1", "<i4", "<i8", "<u8", "<f4", "<f8", "S5", "<U3", "<M8[ns]"]
    dtypes = st.one_of(
        st.sampled_from(kinds).map(np.dtype), st.just(FINDING), st.just(np.dtype([("a", "<f4", (2, 3))]))
    )
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return dtypes.flatmap(lambda dtype: shapes.map(lambda shape: np.zeros(shape, dtype)))


def states() -> st.SearchStrategy[dict[str, Any]]:
    keys = st.one_of(st.text(max_size=5), st.integers(), st.tuples(st.integers(), st.text(max_size=3)))
    values = st.recursive(
        st.one_of(scalars(), arrays()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )
    return st.dictionaries(st.text(max_size=5), values, max_size=5)


@pytest.mark.slow
@examples(200)
@given(states(), st.integers(0, 2**64 - 1))
def test_any_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any], position: int) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, position, state)
    found = read_checkpoint(folder)
    assert found is not None
    assert found[0] == position
    assert same(state, found[1])


def test_arrays_come_back_writable_aligned_and_independent(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path, 1, {"x": b"123", "a": np.arange(9.0), "t": np.arange(12, dtype=np.int32).reshape(3, 4).T}
    )
    for _ in range(2):
        found = read_checkpoint(tmp_path)
        assert found is not None
        array = found[1]["a"]
        assert array.flags.aligned
        assert array.ctypes.data % 64 == 0
        assert array[3] == 3
        array[3] = 99
        assert found[1]["t"].tolist() == np.arange(12).reshape(3, 4).T.tolist()


def test_numpy_scalars_come_back_as_pythons(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, {"i": np.int32(5), "f": np.float64(2.5), "b": np.True_})
    assert read_checkpoint(tmp_path) == (1, {"i": 5, "f": 2.5, "b": True})


def test_the_symbols_of_an_engine_come_back(tmp_path: Path) -> None:
    symbols = Symbols()
    symbols.services.add(5, "gateway", tenant=0)
    write_checkpoint(tmp_path, 1, symbols.snapshot())
    found = read_checkpoint(tmp_path)
    assert found is not None
    again = Symbols()
    again.restore(found[1])
    assert again.services.text == ["other", "gateway"]
    assert again.services.get(5) == 1


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), 1 + 2j, bytearray(b"x"), range(3)])
def test_anything_else_is_a_type_error_and_leaves_the_last_one(tmp_path: Path, value: Any) -> None:
    write_checkpoint(tmp_path, 1, SMALL)
    counters = Counters()
    with pytest.raises(TypeError):
        write_checkpoint(tmp_path, 2, {"value": value}, counters)
    assert counters.failures == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin"]
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 1


def test_a_state_without_an_end_is_refused(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["self"] = state
    with pytest.raises(TypeError, match="deep"):
        write_checkpoint(tmp_path, 1, state)


def test_two_generations_are_kept_and_the_journal_is_needed_from_the_older(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) is None
    assert read_checkpoint(tmp_path / "missing") is None
    assert [write_checkpoint(tmp_path, position, SMALL) for position in (10, 20, 30, 30)] == [10, 10, 20, 30]
    assert len(list(tmp_path.iterdir())) == 2
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 30


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, 5, {**SMALL, "more": {("x", 1): [np.ones(3), 2.5]}})
    [one], [other] = (list((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The newest of two checkpoints, at positions 1 and 2."""
    write_checkpoint(tmp_path, 1, {"older": True})
    write_checkpoint(tmp_path, 2, SMALL)
    return max(tmp_path.iterdir())


def position_read(folder: Path, corrupt: int) -> int | None:
    counters = Counters()
    found = read_checkpoint(folder, counters)
    assert counters.corrupt == corrupt
    if found is None:
        return None
    assert same(found[1], SMALL if found[0] == 2 else {"older": True})
    return found[0]


def test_every_single_byte_truncation_falls_back_to_the_older_one(tmp_path: Path, newest: Path) -> None:
    whole = newest.read_bytes()
    assert position_read(tmp_path, 0) == 2
    for size in range(len(whole)):
        newest.write_bytes(whole[:size])
        assert position_read(tmp_path, 1) == 1
    newest.write_bytes(whole + b"\0")
    assert position_read(tmp_path, 1) == 1


@pytest.mark.slow
def test_every_flipped_bit_falls_back_to_the_older_one(tmp_path: Path, newest: Path) -> None:
    whole = newest.read_bytes()
    flips = 0
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            newest.write_bytes(damaged)
            assert position_read(tmp_path, 1) == 1
            flips += 1
    assert flips > 2000


@pytest.mark.slow
def test_random_damage_is_never_taken_for_a_state(tmp_path: Path, newest: Path) -> None:
    whole = newest.read_bytes()
    rng = random.Random(2)
    for _ in range(10_000):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.randrange(30)] = rng.choice((b"", rng.randbytes(5), bytes(9)))
        if damaged != whole:
            newest.write_bytes(damaged)
            assert position_read(tmp_path, 1) == 1


def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(tmp_path: Path, newest: Path) -> None:
    """Damage, a restart, a new checkpoint, damage to that: the first whole one is still there, and its journal."""
    newest.write_bytes(newest.read_bytes()[:-1])
    assert position_read(tmp_path, 1) == 1
    assert write_checkpoint(tmp_path, 3, SMALL) == 1
    latest = max(tmp_path.glob("checkpoint-*.bin"))
    latest.write_bytes(latest.read_bytes()[:-1])
    assert position_read(tmp_path, 1) == 1
    assert (tmp_path / "checkpoint.damaged").exists()


def test_damage_to_both_gives_none(tmp_path: Path, newest: Path) -> None:
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert position_read(tmp_path, 2) is None
    assert write_checkpoint(tmp_path, 9, SMALL) <= 9
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 9


def test_a_body_that_is_wrong_behind_a_right_checksum_is_not_fatal(
    tmp_path: Path, newest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every structure check by itself: the checksums are made to hold."""
    whole = newest.read_bytes()
    size = len(whole) - checkpoint.BODY_AT - 4
    monkeypatch.setattr(checkpoint.zlib, "crc32", lambda *_: 0)
    rng = random.Random(4)
    for _ in range(400):
        body = bytearray(whole[checkpoint.BODY_AT : -4])
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(size)] = rng.randrange(256)
        head = checkpoint.HEADER.pack(checkpoint.MAGIC, checkpoint.VERSION, 2, size)
        newest.write_bytes(head + bytes(4) + bytes(body) + bytes(4))
        with contextlib.suppress(checkpoint.CorruptError):
            checkpoint._read(newest)


def test_another_version_is_not_read_as_this_one(tmp_path: Path, newest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "VERSION", 2)
        write_checkpoint(tmp_path, 3, SMALL)
    counters = Counters()
    found = read_checkpoint(tmp_path, counters)
    assert found is not None
    assert (found[0], counters.corrupt) == (2, 1)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_last_one(
    tmp_path: Path, newest: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    counters = Counters()
    with monkeypatch.context() as patched:
        patched.setattr(os, failing, fail)
        with pytest.raises(OSError, match="No space"):
            write_checkpoint(tmp_path, 3, SMALL, counters)
    assert (counters.written, counters.failures) == (0, 1)
    assert position_read(tmp_path, 0) == 2
    assert not list(tmp_path.glob("*.tmp"))
    write_checkpoint(tmp_path, 3, SMALL, counters)
    assert counters.written == 1


def test_the_name_appears_only_when_the_content_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        assert source.read_bytes()[:8] == checkpoint.MAGIC
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_checkpoint(tmp_path, 1, SMALL)
    assert done == ["file", "rename", "folder"]


def test_an_unfinished_file_of_a_crash_is_not_a_generation(tmp_path: Path, newest: Path) -> None:
    (tmp_path / "checkpoint-000000000003.tmp").write_bytes(newest.read_bytes()[:50])
    assert position_read(tmp_path, 0) == 2
    write_checkpoint(tmp_path, 3, SMALL)
    assert not list(tmp_path.glob("*.tmp"))


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 1, SMALL)
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


@pytest.mark.slow
def test_a_large_state_of_arrays_costs_its_bytes(tmp_path: Path) -> None:
    """256 MiB: CPU within a few times that of copying and summing them, and no copy of it in memory while writing."""
    import resource

    state = {"arrays": [np.full(1 << 22, number, np.int64) for number in range(8)]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    write_checkpoint(tmp_path, 1, state)
    written = time.process_time()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    found = read_checkpoint(tmp_path)
    read = time.process_time()
    assert found is not None
    assert [int(array[-1]) for array in found[1]["arrays"]] == list(range(8))
    assert written - began < 3
    assert read - written < 3
