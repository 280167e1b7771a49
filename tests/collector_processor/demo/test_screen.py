"""What a person sees."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console

from collector_processor.demo.run import save_picture
from collector_processor.demo.screen import SERVICES, Scene, draw, plain, sentence, sparkline, summary
from collector_processor.demo.watcher import Unusual
from collector_processor.simulator.faults import RECIPES, SECOND_NS


def text(renderable, width=130) -> str:
    console = Console(width=width, file=StringIO(), force_terminal=True, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def scene(board, start_ns) -> Scene:
    return Scene(
        board=board,
        started_ns=start_ns,
        now_ns=start_ns + 10 * SECOND_NS,
        ends_ns=start_ns + 120 * SECOND_NS,
        business=datetime(2025, 12, 24, 9, 12, tzinfo=UTC),
        urls=(("metrics", "http://127.0.0.1:9464/metrics"),),
        records_rate=[100.0, 3210.0],
        chains_rate=[5.0, 150.0],
        chains=2000,
        unusual=3,
        open_chains=321,
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (132, 50), (200, 60)])
def test_fits_the_terminal(scene, incident, start_ns, width, height):
    scene.now_ns = start_ns + 119 * SECOND_NS
    for number, entry in enumerate(scene.board.entries):
        at_s = (entry.fault.start_ns - start_ns) / SECOND_NS + 3
        scene.board.tell([incident(str(number), at_s, entry.fault.service, text="long words " * 30)], scene.now_ns)
    scene.last = tuple(Unusual(start_ns, "ab" * 16, "gateway POST /api", "error", "info", 0.7) for _ in range(8))
    lines = text(draw(scene, width, height), width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert len(lines) <= height + 1  # `Live` cuts what is too long


def test_what_is_broken_fits_its_column():
    assert max(len(recipe.title) for recipe in RECIPES) <= 36


def test_before_the_first_fault_all_is_well(scene):
    shown = text(draw(scene))
    assert "0:10 of 2:00" in shown
    for part in ("3,210", "150", "321", "0.15%", "Wed 09:12", "http://127.0.0.1:9464/metrics", "nothing yet"):
        assert part in shown
    assert all(service in shown for service in SERVICES)
    assert "all services run as usual" in shown


def test_a_fault_that_is_named_has_its_tick_and_words(scene, incident, start_ns):
    scene.now_ns = start_ns + 45 * SECOND_NS
    assert "…" in text(draw(scene))
    found = incident("a", 44, "account", severity="critical", text="debits fail")
    scene.board.tell([found], start_ns + 44 * SECOND_NS)
    shown = text(draw(scene))
    assert "✔ 4 s" in shown
    assert "debits fail" in shown
    assert "account throws while it debits" in shown
    assert "look at account" in shown


def test_a_missed_fault_has_its_cross_and_a_false_incident_its_row(scene, incident, start_ns):
    scene.board.tell([incident("a", 5, "ledger", text="rare words")], start_ns + 5 * SECOND_NS)
    scene.now_ns = start_ns + 59 * SECOND_NS
    shown = text(draw(scene))
    assert "✘" in shown
    assert "false" in shown
    assert "rare words" in shown


def test_last_unusual_chains_newest_first(scene, start_ns):
    scene.last = (
        Unusual(start_ns, "ab" * 16, "gateway POST /api/payments", "error", "critical", 0.93),
        Unusual(start_ns + SECOND_NS, "cd" * 16, "gateway POST /api/login", "slow_call", "info", 0.41),
    )
    shown = text(draw(scene))
    assert shown.index("slow call") < shown.index("0.93")


@pytest.mark.parametrize(
    ("values", "bars"), [([], ""), ([0.0, 0.0], "▁▁"), ([1.0, 2.0, 4.0, 8.0], "▁▂▄█"), ([9.0, 8.0, 8.0, 0.0], "██▁")]
)
def test_sparkline(values, bars):
    assert sparkline(values, 3 if values[:1] == [9.0] else 8) == bars


def test_sentence_is_the_trigger_or_the_kind(incident):
    assert sentence(incident("a", 1, "risk", text="it is slow")) == "it is slow"
    assert sentence(incident("a", 1, "risk", explanation={})) == "slow call"


def test_plain_line_tells_truth_and_suspects(board, incident):
    entry = board.entries[0]
    line = plain(entry, incident("a", 44, "account", "order", text="debits fail"))
    assert "debits fail | suspects: account, order | injected: account throws while it debits" in line
    assert "nothing was injected" in plain(None, incident("a", 1, "risk"))


def test_summary_counts(board, incident, start_ns):
    board.tell([incident("a", 44, "account")], start_ns + 44 * SECOND_NS)
    board.tell([incident("b", 58, "order", "risk")], start_ns + 58 * SECOND_NS)
    board.tell([incident("c", 2, "order")], start_ns + 2 * SECOND_NS)
    table, line = summary(board, start_ns + 73 * SECOND_NS)
    assert line == "3 faults injected, 2 found, 1 named with the broken service first, 1 false incidents"
    narrow, _ = summary(board, start_ns + 73 * SECOND_NS, 80)
    assert max(len(line) for line in text(narrow, 80).splitlines()) <= 80
    assert "4.0 s" in text(narrow, 80)
    shown = text(table, 160)
    assert "the network of risk is slow" in shown
    assert "4.0 s" in shown
    assert "order skips the risk check" in shown


def test_picture_needs_nothing_from_elsewhere(scene, tmp_path):
    save_picture(scene, tmp_path / "demo.svg")
    svg = (tmp_path / "demo.svg").read_text()
    assert svg.startswith("<svg")
    assert "gateway" in svg
    assert "@font-face" not in svg
    assert not re.search(r"""url\(["']?http""", svg)
