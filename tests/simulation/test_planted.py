"""The simulation is held to bugs that are known: it has to find every one of them, and nothing where there is none."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from tests.simulation.planted import BUGS, ROOT, Bug, planted


def test_there_are_enough_and_each_says_what_it_is() -> None:
    assert len(BUGS) >= 20
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_still_has_its_place_in_the_code(bug: Bug) -> None:
    """Whoever changes such a place finds another for the bug, or says why it can no longer be made."""
    ast.parse(planted(bug))
    assert bug.old != bug.new


@pytest.mark.slow
def test_the_simulation_finds_every_bug_and_none_where_there_is_none() -> None:
    # In a process of its own: it forks, which one with threads should not.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "tests.simulation.planted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
