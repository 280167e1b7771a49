"""Fixtures of the tests of ingest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.collector_processor.ingest.serving import Authority, Served, serving


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def served() -> Iterator[Served]:
    """Receivers with the settings they ship with."""
    with serving() as running:
        yield running
