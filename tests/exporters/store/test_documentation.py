"""docs/store.md says what the store does: its commands, queries and settings are tried on both databases."""

from __future__ import annotations

import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collector_processor.cli import app
from collector_processor.config import StoreConfig
from collector_processor.config_file import loads
from tests.exporters.store.kept import Place, incident, verdict

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "store.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


COMMANDS = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, tmp_path: Path) -> None:
    shown = incident(1)
    shown["incident"]["incident_id"] = "0e7e29" + "0" * 10
    with ExitStack() as stack:
        Place(tmp_path, None, stack).sink().write([shown, verdict(1)])
    program, *words = shlex.split(command)
    assert program == "spanchain"
    result = CliRunner().invoke(app, [*words, "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("query", blocks("sql"))
def test_every_query_answers(place: Place, query: str) -> None:
    place.sink().write([verdict(1), verdict(2), verdict(3, "b"), incident(1, changed_s=61, resolved=True), incident(2)])
    found = place.rows(query)
    assert found[0][:2] in {("default", "gateway pay"), ("default", "slow_operation")}
    assert found[0][-1] in {2, 60}


def test_the_configuration_is_valid() -> None:
    [block] = blocks("yaml")
    config = loads(block, environment={"SPANCHAIN_STORE_PASSWORD": "p"})
    assert config.exporters.store.url is not None


def test_the_defaults_are_the_shipped_ones() -> None:
    config = StoreConfig()
    assert config.enabled
    assert f"`normal_share` ({config.normal_share:.0%}".replace("%", " %") in TEXT
    assert f"`age_max_s` ({config.age_max_s / 86_400:.0f} days)" in TEXT
    assert config.incidents_age_max_s == 365 * 86_400
    assert f"`verdicts_max` ({config.verdicts_max:,})" in TEXT
    assert f"`incidents_max` ({config.incidents_max:,})" in TEXT
    assert f"`bytes_max` ({config.bytes_max >> 30} GiB)" in TEXT
