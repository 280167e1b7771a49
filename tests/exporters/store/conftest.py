"""The store on both databases: a test that asks for `place` runs on SQLite, and on a real PostgreSQL where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.exporters.store.kept import Place


@pytest.fixture(params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.e2e)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "SQLite":
            yield Place(tmp_path, None, stack)
            return
        server = request.getfixturevalue("postgres")
        name = stack.enter_context(server.database())
        yield Place(tmp_path, server.url(name), stack)
