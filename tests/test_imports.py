"""Imports go one way, so that each room can be read, tested and replaced by itself.

How it works. Every source file is parsed, never imported; each import of ours is held against the table below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("collector_processor", "detectors", "exporters")
BASE = {
    *("collector_processor.model", "collector_processor.config", "collector_processor.kernels"),
    *("collector_processor.redact", "collector_processor.varint"),
}

# What a room may import besides its own folder and BASE. A room that is not here composes others and is free, but for
# the layers in LAYERS that stand above it.
ROOMS: dict[str, set[str]] = {
    "collector_processor.model": set(),
    "collector_processor.config": set(),
    "collector_processor.config_file": set(),
    "collector_processor.kernels": set(),
    "collector_processor.redact": set(),
    "collector_processor.varint": set(),
    "collector_processor.rows": set(),
    "collector_processor.decode": set(),
    "collector_processor.join": set(),
    "collector_processor.decide": set(),
    "collector_processor.journal": set(),
    "collector_processor.ingest": set(),
    "detectors": set(),
    "exporters": {"collector_processor.rows"},
}
NOTHING_OF_OURS = {"collector_processor.model", "collector_processor.config", "collector_processor.kernels"}

# From the bottom to the top: a module imports none that stands after it.
LAYERS = (
    *("collector_processor.engine", "collector_processor.runtime"),
    *("collector_processor.process", "collector_processor.cli"),
)


def modules() -> dict[str, Path]:
    """Dotted name: file, for every module of the distribution."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str) -> Iterator[str]:
    """The dotted names of ours that `source` imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            # `from package import module` names the module; `from module import name` the module it stands in.
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in PACKAGES)


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def violations(module: str, source: str) -> list[str]:
    """The imports of `source`, as the module named so, that the rules forbid."""
    room = next((room for room in ROOMS if inside(module, room)), None)
    found = []
    for imported in imports(source):
        if room is not None:
            own = ".".join(module.split(".")[:2])  # a detector or an exporter is a folder of its own
            allowed = {own, *ROOMS[room]} | (set() if room in NOTHING_OF_OURS else BASE)
            if room in {"detectors", "exporters"}:
                allowed |= registry_allows(module, room)
            if not any(inside(imported, name) for name in allowed):
                found.append(imported)
        if any(inside(imported, above) for above in LAYERS[layer(module) + 1 :]):
            found.append(imported)
    return found


def registry_allows(module: str, room: str) -> set[str]:
    """The registry knows every folder; all know the protocol and what the folders share at their side."""
    if module == f"{room}.registry":
        return {room}
    return {name for name in MODULES if name.startswith(f"{room}.") and name.count(".") == 1 and is_file(name)}


def is_file(name: str) -> bool:
    return MODULES[name].name != "__init__.py" and not name.endswith(".registry")


def layer(module: str) -> int:
    """Index of the layer that `module` is in; below all layers -1, above all their number."""
    for index, name in enumerate(LAYERS):
        if inside(module, name):
            return index
    below = any(inside(module, room) for room in ROOMS)
    return -1 if below else len(LAYERS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module: str) -> None:
    assert violations(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_room_of_the_table_exists(room: str) -> None:
    assert room in MODULES


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("collector_processor.model", "from collector_processor.config import Config"),
        ("collector_processor.kernels.wire", "import collector_processor.model"),
        ("collector_processor.decode.decoder", "from collector_processor.join import table"),
        ("collector_processor.decide.fuse", "from collector_processor.engine import Engine"),
        ("detectors.online.detector", "from detectors.context import rules"),
        ("detectors.online.detector", "from detectors.registry import DETECTORS"),
        ("detectors.online.detector", "def f():\n    from exporters.file import exporter"),
        ("collector_processor.engine", "from collector_processor.runtime import Runtime"),
        ("collector_processor.runtime", "from collector_processor.cli import main"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, line: str) -> None:
    assert violations(module, line) != []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("collector_processor.decode.decoder", "from collector_processor.decode.templates import mask"),
        ("collector_processor.join.join", "from collector_processor.kernels import wire"),
        ("detectors.online.detector", "from detectors.protocol import Detector"),
        ("collector_processor.runtime", "from collector_processor.engine import Engine"),
        ("collector_processor.cli", "from collector_processor.runtime import Runtime"),
    ],
)
def test_a_permitted_import_is_not(module: str, line: str) -> None:
    assert violations(module, line) == []


def test_the_packages_open_empty() -> None:
    assert MODULES["collector_processor"].read_text() == ""
