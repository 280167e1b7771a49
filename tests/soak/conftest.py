"""What the long tests share: whether they are to be long."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def soaking() -> bool:
    """Whether this is `make soak`: each test says what its short and its long form are."""
    return bool(os.environ.get("SPANCHAIN_SOAK"))
