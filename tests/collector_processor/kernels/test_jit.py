"""Functions that were compiled for kernels alone are called by kernels alone: from Python the call ends the process.

How it works. Every source file is parsed, never imported: the names of such functions may be used inside of compiled
functions only, wherever they were imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "collector_processor" / "kernels"
ALONE = {"helper", "allocating_helper", "inlined"}
COMPILED = ALONE | {"kernel", "allocating_kernel", "summing_kernel", "expanded", "njit"}
SOURCES = [
    path
    for folder in ("collector_processor", "detectors", "exporters", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def kind(node: ast.AST) -> str | None:
    """How `node` is compiled, when it is a compiled function."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    decorators = [each.func if isinstance(each, ast.Call) else each for each in decorators]
    names = {decorator.id for decorator in decorators if isinstance(decorator, ast.Name)}
    return next(iter(names & COMPILED), None)


def functions(tree: ast.Module, kinds: set[str]) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and kind(node) in kinds}


FOR_KERNELS = {path.stem: functions(ast.parse(path.read_text()), ALONE) for path in KERNELS.glob("*.py")}


def plain(node: ast.AST) -> Iterator[ast.AST]:
    """All that stands outside of compiled functions."""
    for child in ast.iter_child_nodes(node):
        if kind(child) is None:
            yield child
            yield from plain(child)


def misused(source: str, module: str = "") -> list[str]:
    """Names of functions for kernels that `source`, the kernel file of that name if it is one, uses elsewhere."""
    if "collector_processor.kernels" not in source:
        return []
    tree = ast.parse(source)
    names = functions(tree, ALONE) if module in FOR_KERNELS else set()
    files: dict[str, set[str]] = {}  # what a kernel file is called here: its functions for kernels
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if node.module == "collector_processor.kernels":
                files[alias.asname or alias.name] = FOR_KERNELS.get(alias.name, set())
            elif (node.module or "").startswith("collector_processor.kernels."):
                file = (node.module or "").rpartition(".")[2]
                names |= {alias.asname or alias.name} if alias.name in FOR_KERNELS[file] else set()
    found = []
    for node in plain(tree):
        if isinstance(node, ast.Name) and node.id in names:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [node.attr] if node.attr in files.get(node.value.id, ()) else []
    return found


def test_what_is_compiled_for_kernels_is_called_by_kernels() -> None:
    found = {
        str(path.relative_to(ROOT)): misused(path.read_text(), path.stem if path.parent == KERNELS else "")
        for path in SOURCES
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_there_are_such_functions() -> None:
    assert "mix" in FOR_KERNELS["wire"]
    assert "free_chain" in FOR_KERNELS["join"]


@pytest.mark.parametrize(
    "source",
    [
        "from collector_processor.kernels.wire import mix\nmix(1, 2)",
        "from collector_processor.kernels.wire import mix as stir\ndef f():\n    return map(stir, [])",
        "from collector_processor.kernels import wire\nwire.mix(1, 2)",
        "from collector_processor.kernels import wire as kernel\nclass A:\n    def f(self):\n        kernel.mix(1, 2)",
    ],
)
def test_a_call_from_python_is_seen(source: str) -> None:
    assert misused(source) == ["mix" if "stir" not in source else "stir"]


def test_a_call_from_a_kernel_is_not() -> None:
    source = "from collector_processor.kernels.wire import mix\n@kernel\ndef f(a):\n    return mix(a, a)"
    assert misused(source) == []
