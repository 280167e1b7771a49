"""What README and pages tell a person to type works: commands are run on a small recording, settings are loaded.

Pages of one room (`docs/store.md`, `docs/receivers.md`) have their tests there.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from collector_processor.cli import app
from collector_processor.config_file import loads
from collector_processor.simulator.faults import schedule
from collector_processor.simulator.recording import OPENING, record
from collector_processor.simulator.traffic import SECOND_NS
from tests.extras import training

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/demo.md", "docs/inline.md", "docs/models.md", "docs/replay.md")
COMMAND = re.compile(r"^(?:\.venv/bin/)?(spanchain|python -m|make) (.*?)(?:\s+#.*)?$", re.MULTILINE)
ENDLESS = {"serve", "send"}  # they run until they are told to stop; other tests start them


def fences(page: str, *languages: str) -> list[str]:
    text = (ROOT / page).read_text()
    return [body for language, body in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if language in languages]


def commands(page: str) -> list[tuple[str, list[str]]]:
    """(program, its arguments) in the order of the page."""
    found = [match for fence in fences(page, "sh", "") for match in COMMAND.findall(fence)]
    return [(program, shlex.split(arguments)) for program, arguments in found]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, (arguments, result.output)
    return result.output


def test_no_page_has_lost_its_commands() -> None:
    assert [len(commands(page)) for page in PAGES] == [6, 3, 0, 6, 2]


def test_every_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [words[0] for page in PAGES for program, words in commands(page) if program == "make"]
    assert named
    assert set(named) <= targets


@pytest.mark.slow
def test_the_readme_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "recorded", hours=0.02, seed=3, compress=False)
    (tmp_path / "recorded-traces.jsonl").write_bytes((tmp_path / "recorded" / "traces.binpb").read_bytes())
    monkeypatch.chdir(tmp_path)
    typed = [words for program, words in commands("README.md") if program == "spanchain"]
    assert [words[0] for words in typed] == ["serve", "incidents", "replay"]
    assert "Every record is accounted for" in run(*typed[2])
    (tmp_path / "spanchain-data").mkdir()
    assert "no incident" in run(*typed[1])


@pytest.mark.slow
def test_the_page_of_the_demo_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for program, words in commands("docs/demo.md"):
        if ENDLESS & set(words):
            continue
        shorter = ["0.02" if before == "--hours" else word for before, word in zip(["", *words], words, strict=False)]
        if program == "spanchain":
            run(*shorter)
        else:
            subprocess.run([sys.executable, "-m", *shorter], check=True, env={"PYTHONPATH": str(ROOT)})
    assert (tmp_path / "day" / "labels.jsonl").exists()


@pytest.mark.slow
def test_the_page_of_recordings_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, hours=0.02, seed=3, compress=False)
    for signal in ("traces", "logs"):
        (tmp_path / f"{signal}.binpb").rename(tmp_path / f"recorded-{signal}.jsonl")
    start_ns = int(OPENING.timestamp()) * SECOND_NS
    fault = {"fault_id": "a", "start_unix_nano": start_ns, "end_unix_nano": start_ns + SECOND_NS, "service": "order"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(fault))
    monkeypatch.chdir(tmp_path)
    for _, words in commands("docs/replay.md"):
        run(*words)
    assert (tmp_path / "found" / "summary.json").exists()


@pytest.mark.slow
def test_the_page_of_models_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training("torch")
    start_ns = int(OPENING.timestamp()) * SECOND_NS
    end_ns = start_ns + 900 * SECOND_NS
    faults = schedule(3, start_ns, end_ns, warmup_s=300.0, every_s=300.0, duration_s=60.0)
    record(tmp_path / "recording", hours=0.25, seed=3, faults=faults)
    monkeypatch.chdir(tmp_path)
    for _, words in commands("docs/models.md"):
        given = ["2" if before == "--trials" else word for before, word in zip(["", *words], words, strict=False)]
        if words[0] == "train":
            given += ["--steps", "30"]
        if "promote" in words:
            [version] = [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()]
            given = [version if word == "VERSION" else word for word in given] + ["--force"]
        run(*given)
    assert (tmp_path / "spanchain-tuned.yaml").exists()


@pytest.mark.parametrize("page", ["docs/inline.md", "docs/models.md"])
def test_settings_on_a_page_are_valid(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fenced = fences(page, "yaml")
    assert fenced
    for settings in fenced:
        without_files = re.sub(r"\$\{file:[^}]*\}", "secret", settings)
        assert loads(without_files).model_fields_set


def test_the_exporter_in_the_readme_is_that_of_the_collector_configuration() -> None:
    [shown] = map(yaml.safe_load, fences("README.md", "yaml"))
    defaults = re.sub(r"\$\{env:\w+:-(.*?)\}", r"\1", (ROOT / "otel-collector.yaml").read_text())
    whole = yaml.safe_load(defaults)
    for name, exporter in shown["exporters"].items():
        assert whole["exporters"][name] | exporter == whole["exporters"][name]
