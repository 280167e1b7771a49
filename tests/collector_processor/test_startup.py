"""A start loads nothing that is not used. How long it takes is measured by `make bench`."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNUSED = ("holidays", "scipy.linalg", "torch", "river", "matplotlib", "opentelemetry.sdk", "sqlalchemy")
LOADED = f"""
import sys
from collector_processor.config import Config
from collector_processor.engine import Engine
import collector_processor.runtime
Engine(Config())
print([name for name in {UNUSED} if name in sys.modules])
"""


@pytest.mark.slow
def test_a_start_loads_nothing_that_the_config_does_not_ask_for() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
