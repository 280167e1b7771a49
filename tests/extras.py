"""Packages of the extras that not every installation has: what needs them skips without, but fails in CI."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def training(package: str) -> ModuleType:
    """The module `package` of the extra `train`. CI has installed it (`make train-extra`), so there it must be."""
    if os.environ.get("CI"):
        return importlib.import_module(package)
    reason = "needs the extra `train`: make train-extra"
    module: ModuleType = pytest.importorskip(package, reason=reason)
    return module
