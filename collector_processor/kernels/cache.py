"""When a compiled kernel on disk may still be used: while its file and all kernel files that it imports are the same.

How it works. numba stamps what it keeps on disk with a hash of the function's own file. A kernel has other kernels
compiled into it, so that it would go on with the old code of another file after that has changed. Here the stamp covers
the files that are imported too, and theirs. numba is told by its setting CACHE_LOCATOR_CLASSES; where the cache lies
stays its own affair (NUMBA_CACHE_DIR, else beside the sources, else the user's cache).
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from numba.core import caching, config

IMPORTED = re.compile(r"^from collector_processor\.kernels\.(\w+) import", re.MULTILINE)


@cache
def stamp(path: Path) -> bytes:
    """SHA-256 over the file and all that it imports from its own folder, where nobody imports in a circle."""
    content = path.read_bytes()
    names = sorted(set(IMPORTED.findall(content.decode())))
    return hashlib.sha256(content + b"".join(stamp(path.with_name(f"{name}.py")) for name in names)).digest()


class _Stamped:
    """The stamp for kernels, numba's own for all other files."""

    _py_file: str

    def get_source_stamp(self) -> object:
        path = Path(self._py_file)
        return stamp(path) if path.parent == Path(__file__).parent else super().get_source_stamp()  # type: ignore[misc]


class UserProvided(_Stamped, caching.UserProvidedCacheLocator):  # type: ignore[misc]  # numba has no types
    """In NUMBA_CACHE_DIR."""


class InTree(_Stamped, caching.InTreeCacheLocator):  # type: ignore[misc]  # numba has no types
    """Beside the sources."""


class UserWide(_Stamped, caching.UserWideCacheLocator):  # type: ignore[misc]  # numba has no types
    """In the user's cache, where the sources cannot be written to."""


def use() -> None:
    """Tells numba; before the first kernel is made."""
    config.CACHE_LOCATOR_CLASSES = ",".join(f"{__name__}.{each.__name__}" for each in (UserProvided, InTree, UserWide))
