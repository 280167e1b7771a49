"""A start loads nothing that is not used. How long it takes is measured by `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


LOADED_AHEAD = """
import sys
from collector_processor.config import Config
from collector_processor.runtime import preload
preload(Config.model_validate({"detectors": {"online": {"enabled": %s}}}))
print("river" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("enabled", [True, False])
def test_what_is_needed_minutes_later_is_loaded_ahead(enabled: bool) -> None:
    """By a thread of the service that serves already; else the end of the first slice would wait for it."""
    command = [sys.executable, "-c", LOADED_AHEAD % enabled]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(enabled), done.stderr


COMPILED = """
from importlib.machinery import SourceFileLoader
compiled, compile_source = [], SourceFileLoader.source_to_code
def counted(loader, data, path, **kwargs):
    compiled.append(path)
    return compile_source(loader, data, path, **kwargs)
SourceFileLoader.source_to_code = counted
import collector_processor.cli, collector_processor.runtime
print(len(compiled))
"""
KEEP = "from collector_processor.warmup import keep_bytecode; keep_bytecode()"


@pytest.mark.slow
def test_a_start_compiles_no_module_that_the_warm_up_has_seen(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(tmp_path)}

    def said(code: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environment).stdout

    assert int(said(COMPILED)) > 500, "an environment in which nothing is kept"
    said(KEEP)
    assert int(said(COMPILED)) < 10, "but those that fail, for want of a package that nobody needs"
