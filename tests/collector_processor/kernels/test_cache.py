"""A compiled kernel is used again only while everything that was compiled into it is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numba
import pytest

from collector_processor.kernels import cache, decode, wire

KERNELS = Path(cache.__file__).parent


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="numba is switched off: there is no cache to look at")
def test_numba_asks_for_our_stamp() -> None:
    [impl] = [kernel._cache._impl for kernel in (decode.scan,)]
    assert impl.locator.get_source_stamp() == cache.stamp(Path(decode.__file__))
    assert cache.stamp(Path(decode.__file__)) != cache.stamp(Path(wire.__file__))


@pytest.mark.parametrize(
    ("changed", "again"),
    [("wire.py", {"wire.py", "decode.py", "join.py"}), ("decode.py", {"decode.py", "join.py"}), ("zstd.py", set())],
)
def test_a_change_concerns_those_who_import_it_near_and_far(tmp_path: Path, changed: str, again: set[str]) -> None:
    shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    files = [tmp_path / "kernels" / name for name in ("wire.py", "decode.py", "join.py", "calibrate.py")]
    before = {file.name: cache.stamp(file) for file in files}
    with (tmp_path / "kernels" / changed).open("a") as file:
        file.write("\n# changed\n")
    cache.stamp.cache_clear()
    after = {file.name: cache.stamp(file) for file in files}
    assert {name for name in before if before[name] != after[name]} == again
