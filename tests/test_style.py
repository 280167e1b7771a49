"""What no linter holds: short functions, files that open by saying what they are for, nothing left half done."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for package in ("collector_processor", "detectors", "exporters") for path in (ROOT / package).rglob("*.py")
]
LINES_MAX = 70
# One message of the wire format, or one pass over the columns: the parts would hand twenty arrays to each other.
LONGER = {
    "collector_processor/kernels/decode.py": {"read_span", "read_log", "scan"},
    "collector_processor/kernels/emit.py": {"emit"},
}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|raise NotImplementedError)\b")


def long_functions(source: str) -> list[str]:
    """`name: lines` of each function with more than LINES_MAX lines of code: a wrapped statement counts as one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = {inner.lineno for inner in ast.walk(node) if isinstance(inner, ast.stmt)}
            if len(lines) > LINES_MAX:
                found.append(f"{node.name}: {len(lines)}")
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_are_short_and_the_file_says_what_it_is_for(path: Path) -> None:
    source = path.read_text()
    assert {each.partition(":")[0] for each in long_functions(source)} == LONGER.get(relative(path), set())
    tree = ast.parse(source)
    assert not tree.body or ast.get_docstring(tree)
    assert not UNFINISHED.search(source)


def test_a_long_function_is_seen() -> None:
    assert long_functions("def f():\n" + "    x = 1\n" * LINES_MAX) == ["f: 71"]
    assert long_functions("def f():\n" + "    x = (\n1)\n" * (LINES_MAX - 1)) == []


def test_no_path_of_one_machine_is_in_the_repository() -> None:
    places = [f"{ROOT.parent}/", f"{Path.home()}/"]
    options = [option for place in places for option in ("-e", place)]
    found = subprocess.run(["git", "grep", "-nIF", *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""
