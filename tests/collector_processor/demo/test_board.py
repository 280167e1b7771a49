"""Who is given the credit for what."""

from __future__ import annotations

import pytest

from collector_processor.demo.board import Board, suspects
from collector_processor.simulator.faults import RECIPES, SECOND_NS, fault


@pytest.fixture
def one(start_ns) -> Board:
    """One fault of account, from second 10 to 20."""
    recipe = next(recipe for recipe in RECIPES if recipe.service == "account")
    return Board([fault(recipe, 1, start_ns + 10 * SECOND_NS, 10.0)], grace_s=5.0)


def at(start_ns: int, seconds: float) -> int:
    return start_ns + int(seconds * SECOND_NS)


def test_named_first_at_once(one, incident, start_ns):
    one.tell([incident("a", 13, "account", "order")], at(start_ns, 13.5))
    (entry,) = one.entries
    assert entry.named_first is True
    assert entry.after_s() == pytest.approx(3.5)
    assert entry.best.incident_id == "a"
    assert not one.false


def test_found_among_the_first_three_is_not_named(one, incident, start_ns):
    one.tell([incident("a", 13, "order", "gateway", "account")], at(start_ns, 13))
    (entry,) = one.entries
    assert entry.found_ns == at(start_ns, 13)
    assert entry.named_ns is None
    assert entry.named_first is False


def test_fourth_suspect_is_not_found(one, incident, start_ns):
    one.tell([incident("a", 13, "order", "gateway", "risk", "account")], at(start_ns, 13))
    (entry,) = one.entries
    assert entry.found_ns is None
    assert entry.best.incident_id == "a"  # still the thing that was said at that time


def test_an_update_may_name_it_later(one, incident, start_ns):
    one.tell([incident("a", 12, "order")], at(start_ns, 12))
    one.tell([incident("a", 12, "account", "order", state="updated")], at(start_ns, 17))
    (entry,) = one.entries
    assert (entry.named_first, entry.after_s()) == (False, 7.0)
    assert len(entry.incidents) == 1


def test_a_second_incident_that_names_it_is_the_one_shown(one, incident, start_ns):
    one.tell([incident("a", 12, "order"), incident("b", 14, "account")], at(start_ns, 14))
    assert one.entries[0].best.incident_id == "b"
    one.tell([incident("c", 15, "account")], at(start_ns, 15))
    assert one.entries[0].best.incident_id == "b"
    assert len(one.entries[0].incidents) == 3


@pytest.mark.parametrize(("at_s", "false"), [(9.9, True), (10.0, False), (25.0, False), (25.1, True)])
def test_false_is_what_comes_outside_the_window_and_its_grace(one, incident, start_ns, at_s, false):
    one.tell([incident("a", at_s, "account")], at(start_ns, at_s))
    assert ("a" in one.false) == false
    assert bool(one.entries[0].incidents) != false


def test_an_incident_belongs_to_the_fault_of_its_first_moment(board, incident, start_ns):
    first, second = board.entries[:2]
    late = (second.fault.start_ns - start_ns) / SECOND_NS + 1
    early = (first.fault.start_ns - start_ns) / SECOND_NS + 1
    board.tell([incident("a", early, first.fault.service)], at(start_ns, early))
    board.tell([incident("a", early, first.fault.service, severity="critical", state="updated")], at(start_ns, late))
    assert first.incidents == {"a"}
    assert not second.incidents


def test_an_old_incident_that_blames_the_new_culprit_counts_for_both(board, incident, start_ns):
    first, second = board.entries[:2]
    late = (second.fault.start_ns - start_ns) / SECOND_NS + 1
    early = (first.fault.start_ns - start_ns) / SECOND_NS + 1
    board.tell([incident("a", early, first.fault.service, text="old")], at(start_ns, early))
    board.tell([incident("a", early, second.fault.service, text="new", state="updated")], at(start_ns, late))
    assert second.after_s() == 1.0
    assert second.best.explanation["trigger"] == "new"
    assert first.best.explanation["trigger"] == "old"  # what was said then stays


def test_states_are_the_worst_that_is_open(one, incident, start_ns):
    one.tell([incident("a", 12, "account", "order", severity="warning")], at(start_ns, 12))
    one.tell([incident("b", 13, "account", severity="critical")], at(start_ns, 13))
    one.tell([incident("c", 90, "order", severity="info")], at(start_ns, 90))
    assert one.states() == {"account": "critical", "order": "info"}
    one.tell([incident("b", 13, "account", severity="critical", resolved_unix_nano=5)], at(start_ns, 95))
    assert one.states() == {"account": "warning", "order": "info"}
    one.tell([incident("c", 90, "order", severity="info", resolved_unix_nano=5)], at(start_ns, 96))
    assert one.states() == {"account": "warning", "order": "suspected"}


def test_begun_faults_only(board):
    first = board.entries[0].fault.start_ns
    assert board.begun(first - 1) == []
    assert board.begun(first) == board.entries[:1]


def test_suspects_fall_back_to_the_subject(incident):
    assert suspects(incident("a", 1, "risk", "order", "risk")) == ["risk", "order"]
    assert suspects(incident("a", 1, "risk", suspects=[])) == ["risk"]
