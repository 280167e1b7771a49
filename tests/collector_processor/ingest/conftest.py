"""Fixtures of the tests of ingest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.collector_processor.ingest.serving import Authority, Served, serving


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        advice = "no openssl to make certificates with (Debian: apt-get install openssl)"
        if os.environ.get("CI"):
            pytest.fail(advice)
        pytest.skip(advice)
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def receivers() -> Iterator[Served]:
    with serving() as running:
        yield running


@pytest.fixture
def served(receivers: Served) -> Served:
    """Receivers with the settings they ship with, which have taken and counted nothing yet."""
    receivers.forget()
    return receivers
