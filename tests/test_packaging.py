"""What a fresh clone relies on: the lock is whole and names no index, targets and commands are what the README says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("collector_processor", "detectors", "exporters")
LOCKS = {
    name: (ROOT / name).read_text()
    for name in ("requirements.lock", "requirements-bench.lock", "requirements-train.lock")
}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def canonical(requirement: str) -> str:
    """The normalised name of the distribution that a requirement asks for."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def locked() -> dict[str, str]:
    """Distribution: the text of its entry."""
    return {name: entry for lock in LOCKS.values() for name, entry in entries(lock).items()}


def entries(lock: str) -> dict[str, str]:
    """The same of one lock."""
    return {canonical(entry): entry for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]}


def test_every_entry_of_the_lock_has_hashes() -> None:
    every = locked()
    assert len(every) > 50
    assert [name for name, entry in every.items() if "--hash=sha256:" not in entry] == []


def test_the_extra_for_training_changes_nothing_that_is_installed_already() -> None:
    base, extra = entries(LOCKS["requirements.lock"]), entries(LOCKS["requirements-train.lock"])
    assert "torch" in extra
    shared = base.keys() & extra.keys()
    assert [name for name in sorted(shared) if base[name].split(" ")[0] != extra[name].split(" ")[0]] == []


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)
def test_the_lock_names_no_index(lock: str) -> None:
    assert "://" not in lock
    assert not re.search(r"^-", lock, re.MULTILINE)


def test_the_lock_holds_what_the_project_asks_for() -> None:
    extra = project()["project"]["optional-dependencies"]["train"]
    asked = [*project()["project"]["dependencies"], *extra, *project()["dependency-groups"]["dev"]]
    assert {canonical(requirement) for requirement in asked} <= set(locked())


def test_every_dependency_is_accounted_for() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    extras = [each for extra in project()["project"]["optional-dependencies"].values() for each in extra]
    asked = [*project()["project"]["dependencies"], *extras, *project()["dependency-groups"]["dev"]]
    silent = [name for name in map(canonical, asked) if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", page)]
    assert silent == []


def imported(folder: Path) -> set[str]:
    """The distributions that the sources under `folder` import, standard library and our own left out."""
    ours = {*PACKAGES, "dashboards", "tests", *sys.stdlib_module_names}
    owners = packages_distributions()
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                parts = name.split(".")
                if parts[0] in ours or (folder / f"{parts[0]}.py").exists() or len(owners.get(parts[0], [])) > 3:
                    continue  # a namespace that many share (opentelemetry, google): their parts import each other
                found |= {canonical(owner) for owner in owners.get(parts[0], [f"{parts[0]} (not installed)"])}
    return found


@pytest.mark.slow
def test_what_is_imported_is_declared() -> None:
    run = {canonical(each) for each in project()["project"]["dependencies"]}
    extras = {canonical(each) for extra in project()["project"]["optional-dependencies"].values() for each in extra}
    dev = {canonical(each) for group in project()["dependency-groups"].values() for each in group}
    for package in PACKAGES:
        assert imported(ROOT / package) - run - extras == set()
    for folder in ("tests", "dashboards"):
        assert imported(ROOT / folder) - run - extras - dev == set()


def test_lower_bounds_only() -> None:
    assert [
        each for each in project()["project"]["dependencies"] if not re.fullmatch(r"[\w.\[\]-]+>=[\d.]+", each)
    ] == []


def test_the_readme_names_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "install"} <= used <= targets
    assert {"install", "demo", "test", "check", "bench", "evaluate", "soak"} <= targets


def test_links_in_the_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_what_lies_beside_it(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("spanchain-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= held
    assert {name.partition("/")[0] for name in held} == set(PACKAGES)
    assert (
        "Root-Is-Purelib: true"
        in zipfile.ZipFile(wheel).read(f"spanchain-{project()['project']['version']}.dist-info/WHEEL").decode()
    )


@pytest.mark.parametrize("path", [".ci/run"])
def test_scripts_are_executable(path: str) -> None:
    assert (ROOT / path).stat().st_mode & 0o111
