"""Explanations: every kind has its sentence and actions, and no name from outside can do more than be read."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.decide import explain
from collector_processor.model import Findings, Kind, Symbols, no_findings

EVIDENCE: dict[str, Any] = {
    "after": "risk /check",
    "step": "ledger /book",
    "within_s": 1.2,
    "share": 0.97,
    "history": 1250,
    "path": "a > b > c",
}


def symbols() -> Symbols:
    names = Symbols()
    names.flows.add(1, "gateway POST /pay")
    service = names.services.add(2, "ledger")
    names.services.add(3, "order")
    names.events.add(4, "/book", service=service, is_log=0)
    names.events.add(5, "booked <*> for <*>", service=service, is_log=1)
    names.instances.add(6, "ledger-7f9", service=service)
    return names


def finding(kind: Kind, *, event: int = 1, expected: float = 0.34, actual: float = 2.1) -> Findings:
    found = no_findings(1)
    ids = {"chain": 0, "kind": kind, "flow": 1, "service": 1, "event": event, "caller": 2, "instance": 1}
    for name, value in (ids | {"expected": expected, "actual": actual, "p": 1e-4}).items():
        found[name] = value
    return found


def told(kind: Kind, evidence: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    names, found = symbols(), finding(kind, **parts)
    affected = explain.affected_by(names, 1, found)
    return explain.explain(names, found, [EVIDENCE if evidence is None else evidence], affected)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            Kind.INTERRUPTED_SEQUENCE,
            (
                "Gateway POST /pay broke off after risk /check: ledger /book was expected next within 1.2 s and did not"
                " come (97 % of such chains take that step)."
            ),
        ),
        (Kind.NEW_SEQUENCE, "Gateway POST /pay took a way that was never seen in 1,250 chains: a > b > c."),
        (Kind.SLOW_OPERATION, "Ledger /book itself took 2.1 s, where 340 ms is usual."),
        (Kind.SLOW_CALL, "The call from order to ledger /book spent 2.1 s on the way, where 340 ms is usual."),
        (Kind.UNSEEN_CALL, "Order called ledger /book, which it had never done before."),
        (Kind.ERROR, "Ledger /book reported 2.1 errors."),
    ],
)
def test_the_trigger_says_what_was_expected_and_what_was_seen(kind: Kind, words: str) -> None:
    assert told(kind)["trigger"] == words


def test_a_log_line_is_the_subject_of_log_findings() -> None:
    line = 'Ledger wrote "booked <*> for <*>", seen here never before in 1,250 cases.'
    assert told(Kind.UNUSUAL_LOG, {"history": 1250}, event=2)["trigger"] == line
    missing = 'Ledger /book did not write the log line "booked <*> for <*>" (99.2 % of its calls write it).'
    evidence = {"template": "booked <*> for <*>", "share": 0.992}
    assert told(Kind.MISSING_LOG, evidence)["trigger"] == missing


def test_ranges_from_evidence_are_shown_as_they_are() -> None:
    evidence = {"expected": "0 to 5", "actual": 34, "within_s": 300.0, "path": "a > b"}
    words = "Gateway POST /pay took the path a > b 34 times within 5 min, where 0 to 5 is usual."
    assert told(Kind.DISTRIBUTION_SURGE, evidence)["trigger"] == words


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("evidence", [{}, EVIDENCE], ids=["bare", "told"])
def test_every_kind_has_a_whole_explanation(kind: Kind, evidence: dict[str, Any]) -> None:
    out = told(kind, evidence)
    assert out["trigger"].endswith(".")
    assert not out["trigger"].endswith("..")
    assert out["trigger"][0].isupper()
    assert out["actions"]
    assert not any("{" in action or "None" in action for action in [*out["actions"], out["trigger"]])
    assert out["affected"]["flows"] == ["gateway POST /pay"]
    assert out["affected"]["services"] == ["ledger"]
    assert out["affected"]["instances"] == ["ledger-7f9"]
    json.dumps(out, allow_nan=False)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_finding_without_any_name_still_has_a_sentence(kind: Kind) -> None:
    found = no_findings(1)
    found["kind"] = kind
    out = explain.explain(symbols(), found, [{}], explain.affected_of([], [], [], 3))
    assert "None" not in out["trigger"]
    assert out["affected"]["chains"] == 3


def test_the_rule_speaks_for_itself() -> None:
    evidence = {"text": "Debit and credit differ", "rule": "balance", "actions": ["Stop the settlement"]}
    out = told(Kind.RULE_VIOLATION, evidence)
    assert out["trigger"] == "Debit and credit differ."
    assert out["actions"] == ["Stop the settlement"]


def test_further_findings_are_context_said_once_and_counted() -> None:
    names = symbols()
    kinds = [
        Kind.ERROR,
        Kind.ERROR,
        Kind.SLOW_CALL,
        Kind.SLOW_CALL,
        Kind.UNSEEN_CALL,
        Kind.NEW_SEQUENCE,
        Kind.MISSING_LOG,
    ]
    found = np.concatenate([finding(kind) for kind in kinds])
    affected = explain.affected_by(names, 1, found)
    out = explain.explain(names, found, [{}] * 7, affected, ["It was Tue 14:05"], lead="34 chains: ")
    assert out["trigger"].startswith("34 chains: Ledger")
    assert out["context"].count("The call from") == 1
    assert "And 1 more findings of the same chain." in out["context"]
    assert out["context"].endswith("It was Tue 14:05.")


@given(st.text(max_size=300))
def test_nothing_that_commands_a_terminal_or_hides_survives(text: str) -> None:
    out = explain.clean(text)
    assert len(out) <= explain.NAME_MAX
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in out)
    assert explain.clean(out) == out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
        ("pay\u202etxt.exe", "paytxt.exe"),
        ("two\nlines\tand  more", "two lines and more"),
        ("zero\u200bwidth", "zerowidth"),
        ("\ud800lone", "lone"),
        ("x" * 500, "x" * 119 + "…"),
        ("Übergröße 支付", "Übergröße 支付"),
    ],
)
def test_names_are_shown_as_they_read(text: str, shown: str) -> None:
    assert explain.clean(text) == shown


def test_evidence_becomes_plain_json() -> None:
    messy = {"a\x1b": np.float64(1.5), "b": [np.int32(3), float("nan")], "c": {"d": {"e": {"f": {"g": object}}}}}
    out = explain.cleaned(messy)
    assert out["a"] == 1.5
    assert out["b"] == [3, None]
    json.dumps(out, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0003, "0.3 ms"), (0.34, "340 ms"), (0.9996, "1 s"), (1.25, "1.25 s"), (150, "2 min"), (9000, "2.5 h")],
)
def test_durations_as_people_say_them(value: float, shown: str) -> None:
    assert explain.seconds(value) == shown


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.3, "about 30 in 100"), (0.002, "fewer than 1 in 100"), (3e-7, "fewer than 1 in 1,000,000")],
)
def test_odds_in_words(p: float, shown: str) -> None:
    assert explain.one_in(p) == shown
