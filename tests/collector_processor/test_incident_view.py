"""`spanchain incidents` as a person calls it, and what it makes of texts that come in with the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from collector_processor import cli
from collector_processor.cli import app
from collector_processor.incident_view import lasted, listing, page, since_ns
from tests.exporters.store.kept import NS, Place, incident, verdict

RUN = CliRunner()
NOW_NS = 1_800_000_000 * NS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW_NS - 90 * NS),
        ("2h", NOW_NS - 7200 * NS),
        (" 7d ", NOW_NS - 604_800 * NS),
        ("1970-01-02", 86_400 * NS),
        ("1970-01-01 01:00", 3600 * NS),
        ("1970-01-01T01:00:00+01:00", 0),
    ],
)
def test_since_is_a_span_or_a_moment(text: str, expected: int) -> None:
    assert since_ns(text, NOW_NS) == expected


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "yesterday", "2026-13-01"])
def test_since_says_what_it_takes(text: str) -> None:
    with pytest.raises(ValueError, match="2h or 7d"):
        since_ns(text, NOW_NS)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Three incidents of two tenants, one of them over, and the chain that shows the first."""
    monkeypatch.setattr(cli, "out", Console(width=160))  # whatever terminal the tests run in
    with ExitStack() as stack:
        place = Place(tmp_path, None, stack)
        place.sink().write(
            [
                incident(1, "retail", changed_s=30, chains=12),
                incident(2, "retail", changed_s=90, resolved=True),
                incident(3, "wholesale", changed_s=60),
                verdict(1, "retail", closed_s=20),
                verdict(1, "wholesale", closed_s=20),
            ]
        )
        yield place


def call(store: Place, *arguments: str, code: int = 0) -> str:
    """What `spanchain incidents` prints."""
    words = ["incidents", *arguments, "--data", str(store.folder)]
    if "show" not in arguments and "--since" not in arguments:
        words += ["--since", "1970-01-01"]
    result = RUN.invoke(app, words)
    assert result.exit_code == code, result.output
    return result.output


def test_the_list_has_the_newest_first(store: Place) -> None:
    lines = call(store).splitlines()
    assert {line.split()[0] for line in lines[1:]} == {f"{1:016x}"[:8]}
    assert [line.split()[-1] for line in lines[1:]] == ["wholesale", "retail", "retail"]
    assert "tenant" not in call(store, "--tenant", "retail")
    assert "slow operation" in lines[1]
    assert "risk: check" in lines[1]
    assert ["open" in line for line in lines[1:]] == [True, False, True]


def test_the_list_can_be_narrowed(store: Place) -> None:
    def numbers(*arguments: str) -> list[int]:
        return [int(each["incident_id"], 16) for each in json.loads(call(store, "--json", *arguments))]

    assert numbers() == [3, 2, 1]
    assert numbers("--tenant", "retail") == [2, 1]
    assert numbers("--open") == [3, 1]
    assert numbers("--limit", "1") == [3]
    assert numbers("--since", "1970-01-01 00:01:00") == [3, 2]
    assert "no incident has changed since" in call(store, "--since", "2h")


def test_one_incident_is_explained_in_four_parts_with_its_evidence(store: Place) -> None:
    text = call(store, "show", f"{1:016x}")
    for heading in ("What happened", "Context", "Affected", "What to do", "Suspects", "Evidence"):
        assert heading in text
    assert "check of risk took 2.5 s" in text
    assert "Compare with a normal trace." in text
    assert "Evidence: 1 chain\n" in text
    assert "gateway: pay" in text
    shown = json.loads(call(store, "show", f"{1:016x}", "--json"))
    assert shown["chains"] == 12
    assert [each["tenant"] for each in shown["evidence"]] == ["retail"]


def test_what_is_not_there_is_said(store: Place) -> None:
    assert "no incident begins with 'f'" in call(store, "show", "f", code=1)
    assert "several incidents begin so" in call(store, "show", "0", code=1)
    assert "no incident" in call(store, "show", f"{3:016x}", "--tenant", "retail", code=1)


def test_a_folder_without_a_store_has_no_incidents(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["incidents", "--data", str(tmp_path / "nowhere")])
    assert result.exit_code == 0
    assert "no incident" in result.output
    assert not (tmp_path / "nowhere").exists()
    assert RUN.invoke(app, ["incidents", "--since", "soon"]).exit_code == 2


HOSTILE = "\x1b[31m[bold]pay\u202e\r\n[/bold]"


def shown(*parts: Any) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        for part in parts:
            console.print(part, highlight=False)
    return captured.get()


def test_names_from_outside_are_shown_as_plain_text() -> None:
    row = incident(1)["incident"]
    row["subject"] = {"service": HOSTILE, "operation": HOSTILE, "instance": None}
    row["explanation"]["trigger"] = HOSTILE
    one = verdict(1)
    one["records"]["records"][0] |= {
        "service": HOSTILE,
        "operation": HOSTILE,
        "duration_ns": 5,
        "self_ns": 5,
        "status": "error",
    }
    text = shown(listing([row]), *page(row, [one["verdict"] | {"records": one["records"]}]))
    assert "[bold]pay" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_an_incident_lasts_from_its_opening_to_its_end() -> None:
    assert lasted(incident(10, changed_s=70, resolved=True)["incident"]) == "60 s"
    assert lasted(incident(10, changed_s=70)["incident"]) == "open"
