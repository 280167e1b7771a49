"""How the real components are got: what is asked for is what the manifest says, and what is missing is said plainly."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.e2e import components


def test_go_mod_asks_for_every_module_of_the_manifest(tmp_path: Path) -> None:
    components.write_go_mod(tmp_path)
    text = (tmp_path / "go.mod").read_text()
    manifest = yaml.safe_load(components.MANIFEST.read_text())
    parts = ("receivers", "processors", "exporters", "extensions", "providers")
    modules = [entry["gomod"] for part in parts for entry in manifest[part]]
    assert len(modules) > 10
    assert [module for module in modules if f"\t{module}\n" not in text] == []
    assert f"v{manifest['dist']['version']}" == components.COLLECTOR_VERSION


def test_another_manifest_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = components.cache_dir()
    changed = tmp_path / "manifest.yaml"
    changed.write_text(components.MANIFEST.read_text() + "# changed\n")
    monkeypatch.setattr(components, "MANIFEST", changed)
    assert before.parent == components.cache_dir().parent == tmp_path / "spanchain" / "components"
    assert components.cache_dir() != before


def test_what_is_missing_comes_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(components, "POSTGRESQL", tmp_path)
    for name in components.NAMES:
        assert components.find(name) is None
        assert "make components" in components.advice(name)
    assert "apt-get install prometheus-alertmanager" in components.advice("amtool")


def test_the_newest_postgresql_is_found_outside_of_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(components, "POSTGRESQL", tmp_path)
    for version in ("9.6", "15", "17"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        (folder / "initdb").touch()
    assert components.find("initdb") == tmp_path / "17" / "bin" / "initdb"


def test_without_root_nothing_is_installed_but_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(components.ComponentError, match="apt-get install --no-install-recommends prometheus zstd"):
        components.install_packages(["prometheus", "zstd"])


def test_a_command_that_fails_tells_its_last_words() -> None:
    with pytest.raises(components.ComponentError, match="what went wrong"):
        components.run("sh", "-c", "echo what went wrong >&2; exit 3")
