"""Rules: each form of condition against chains that keep it and chains that break it; bad rules name their place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.model import Kind, Level, Outcome, Symbols
from detectors.context import rulebook
from detectors.context.rules import P_CERTAIN, P_OTHER, Rules, RulesError
from detectors.protocol import check_findings
from tests.builders import Node, chains, log, span
from tests.examples import examples

ATTRIBUTES = ("amount", "debit", "credit")
AMOUNT, DEBIT, CREDIT = range(3)
HEAD = "name: r, category: compliance, severity: critical, text: '{actual} for {expected:.2f}'"


def made(tmp_path: Path, body: str, symbols: Symbols | None = None) -> Rules:
    """Rules of one rule, whose further keys are `body` in YAML's flow style."""
    path = tmp_path / "rules.yaml"
    path.write_text(f"rules:\n  - {{{HEAD}, {body}}}\n")
    return Rules([str(path)], ATTRIBUTES, symbols or Symbols())


def broken(tmp_path: Path, body: str, *roots: Node) -> list[int]:
    """The numbers of the chains among `roots` that break the rule, each judged alone and all together."""
    symbols = Symbols()
    rules = made(tmp_path, body, symbols)
    batch = chains(symbols, roots)
    together = sorted((batch.trace_lo[rules.score(batch)["chain"]] - 1).tolist())
    alone = [n for n in range(len(roots)) if rules.score(batch.take(np.flatnonzero(batch.trace_lo == n + 1))).size]
    assert together == alone
    return alone


def pay(*inside: Node) -> Node:
    return span("gateway:pay", 1000, *inside)


RISK = span("risk:check", 20, log("payment <*> approved"))
DEBITED = span("account:debit", 30, log("account <*> debited with <*>"), cells={AMOUNT: 5.0, DEBIT: 5.0})
CREDITED = span("account:credit", 30, cells={AMOUNT: 5.0, CREDIT: 5.0})
WRONG_DEBIT = span("account:debit", 30, cells={AMOUNT: 5.0, DEBIT: 5.1})
WRONG_CREDIT = span("ledger:post", 30, cells={CREDIT: 4.0})

FORMS: list[tuple[str, list[Node], list[int]]] = [
    ("require: [{present: risk check}]", [pay(RISK), pay(DEBITED)], [1]),
    ("require: [{absent: risk *}]", [pay(RISK), pay(DEBITED)], [0]),
    ("forbid: [{present: risk *}]", [pay(RISK), pay(DEBITED)], [0]),
    ("require: [{present: {log: '* debited *'}}]", [pay(RISK), pay(DEBITED)], [0]),
    ("require: [{present: {service: risk, log: '*debited*'}}]", [pay(DEBITED)], [0]),
    ("require: [{present: {operation: [check, debit]}}]", [pay(RISK), pay(DEBITED), pay(CREDITED)], [2]),
    ("require: [{count: {step: account debit, min: 1, max: 2}}]", [pay(*[DEBITED] * n) for n in range(4)], [0, 3]),
    (
        "require: [{order: {first: risk check, then: account debit}}]",
        [pay(RISK, DEBITED), pay(DEBITED, RISK), pay(DEBITED), pay(RISK)],
        [1],
    ),
    (
        "require: [{follows: {step: account debit, by: account credit, within_s: 0.5}}]",
        [
            pay(span("account:debit", 9, at_ms=0), span("account:credit", 9, at_ms=400)),
            pay(span("account:debit", 9, at_ms=0), span("account:credit", 9, at_ms=600)),
            pay(span("account:credit", 9, at_ms=0), span("account:debit", 9, at_ms=600)),
            pay(DEBITED),
            pay(CREDITED),
        ],
        [1, 2, 3],
    ),
    (
        "require: [{duration: {step: account debit, max_s: 0.05}}]",
        [pay(DEBITED), pay(span("account:debit", 60)), pay()],
        [1],
    ),
    ("require: [{duration: {max_s: 0.5}}]", [pay(), span("gateway:pay", 400)], [0]),
    ("require: [{duration: {min_s: 0.5}}]", [pay(), span("gateway:pay", 400)], [1]),
    ("forbid: [{call: {from: gateway, to: acc*}}]", [pay(RISK), pay(DEBITED), span("account:debit", 9)], [1]),
    ("forbid: [{call: {from: ['*', '!gateway'], to: account}}]", [pay(DEBITED), span("risk:x", 99, DEBITED)], [1]),
    (
        "require: [{compare: {left: debit, right: credit, tolerance: 0.001}}]",
        [pay(DEBITED, CREDITED), pay(WRONG_DEBIT, CREDITED), pay(DEBITED), pay(CREDITED), pay()],
        [1],
    ),
    (
        "require: [{compare: {left: {attribute: debit, take: count}, is: '<=', right: 1}}]",
        [pay(DEBITED), pay(DEBITED, DEBITED)],
        [1],
    ),
    (
        "require: [{compare: {left: {attribute: debit, take: sum}, is: '<', right: 9.5}}]",
        [pay(DEBITED), pay(DEBITED, DEBITED)],
        [1],
    ),
    (
        "require: [{compare: {left: {attribute: debit, take: max}, is: '>', right: 5}}]",
        [pay(DEBITED, WRONG_DEBIT), pay(DEBITED)],
        [1],
    ),
    (
        "require: [{compare: {left: {attribute: debit, take: min}, is: '!=', right: 5}}]",
        [pay(DEBITED, WRONG_DEBIT), pay(WRONG_DEBIT)],
        [0],
    ),
    (
        "require: [{compare: {left: {attribute: debit, take: last}, is: '>=', right: 5.05}}]",
        [pay(DEBITED, WRONG_DEBIT), pay(WRONG_DEBIT, DEBITED)],
        [1],
    ),
    (
        "require: [{compare: {left: {attribute: credit, step: ledger *}, right: 5}}]",
        [pay(CREDITED), pay(WRONG_CREDIT)],
        [1],
    ),
    ("when: [{present: risk *}], require: [{present: account *}]", [pay(RISK), pay(RISK, DEBITED), pay()], [0]),
    (
        "when: [{compare: {left: debit, right: 5}}], require: [{present: risk *}]",
        [pay(DEBITED), pay(WRONG_DEBIT), pay()],
        [0],
    ),
    ("applies_to: {services: risk}, require: [{present: account *}]", [pay(RISK), pay(CREDITED), pay()], [0]),
    ("applies_to: {flows: 'gateway *'}, require: [{present: risk *}]", [pay(), span("account:x", 9)], [0]),
    ("applies_to: {tenants: other}, require: [{present: risk *}]", [pay()], []),
    (
        "require: [{present: {operation: check, kind: server}}]",
        [pay(RISK), pay(span("risk:check", 9, kind="client"))],
        [1],
    ),
    ("forbid: [{present: {service: risk, status: error}}]", [pay(RISK), pay(span("risk:check", 9, status=2))], [1]),
    ("require: [{absent: {log: '*', status: error}}]", [pay(log("a")), pay(log("a", severity=17))], [1]),
    ("expression: \"spans.exists(s, s.service == 'risk')\"", [pay(RISK), pay(DEBITED)], [1]),
    ("expression: \"logs.all(l, !l.template.contains('debited'))\"", [pay(RISK), pay(DEBITED)], [1]),
    ("expression: 'duration_s < 0.5 && outcome == \"complete\"'", [pay(), span("gateway:pay", 400)], [0]),
    (
        "expression: \"spans.filter(s, 'debit' in s.attributes).all(s, s.attributes.debit == s.attributes.amount)\"",
        [pay(DEBITED), pay(WRONG_DEBIT), pay()],
        [1],
    ),
    ('expression: "spans.all(s, s.parent < 0 || spans[s.parent].start_s <= s.start_s)"', [pay(RISK, DEBITED)], []),
    ("when: [{present: risk *}], expression: \"spans.exists(s, s.service == 'account')\"", [pay(RISK), pay()], [0]),
    ('expression: "spans[7].duration_s > 0.0"', [pay()], []),
]


@pytest.mark.parametrize(("body", "roots", "expected"), FORMS, ids=[body for body, _, _ in FORMS])
def test_each_form_finds_the_chains_that_break_it(
    tmp_path: Path, body: str, roots: list[Node], expected: list[int]
) -> None:
    assert broken(tmp_path, body, *roots) == expected


def test_what_is_no_number_is_compared_by_its_hash(tmp_path: Path) -> None:
    symbols = Symbols()
    batch = chains(symbols, [pay(DEBITED, CREDITED), pay(DEBITED, CREDITED)])
    batch.cell_number[:] = np.nan
    key = batch.cell_key
    batch.cell_hash[:] = np.where(
        key == DEBIT, 7, np.where(key == CREDIT, np.where(batch.cell_record < batch.offsets[1], 7, 8), 1)
    )
    for relation, expected in (("==", 1), ("!=", 0)):
        rules = made(tmp_path, f"require: [{{compare: {{left: debit, is: '{relation}', right: credit}}}}]", symbols)
        assert rules.score(batch)["chain"].tolist() == [expected]
    assert not made(tmp_path, "require: [{compare: {left: debit, is: '<', right: credit}}]", symbols).score(batch).size


def test_by_default_only_complete_chains_are_judged(tmp_path: Path) -> None:
    symbols = Symbols()
    batch = chains(symbols, [pay(), pay(), pay()])
    batch.outcome[:] = [Outcome.COMPLETE, Outcome.TIMEOUT, Outcome.EVICTED]
    assert made(tmp_path, "require: [{present: risk *}]", symbols).score(batch)["chain"].tolist() == [0]
    body = "applies_to: {outcomes: [timeout, evicted]}, require: [{present: risk *}]"
    assert made(tmp_path, body, symbols).score(batch)["chain"].tolist() == [1, 2]


def subject(rules: Rules, finding: Any) -> tuple[str | None, str | None, int]:
    names = rules.symbols
    service, event = int(finding["service"]), int(finding["event"])
    return (
        names.services.text[service] if service >= 0 else None,
        names.events.text[event] if event >= 0 else None,
        int(finding["level"]),
    )


@pytest.mark.parametrize(
    ("body", "root", "expected"),
    [
        (
            "require: [{compare: {left: debit, right: credit, reference: amount}}]",
            pay(WRONG_DEBIT, CREDITED),
            ("account", "debit", Level.OPERATION),
        ),
        (
            "require: [{compare: {left: debit, right: credit, reference: amount}}]",
            pay(DEBITED, WRONG_CREDIT),
            ("ledger", "post", Level.OPERATION),
        ),
        (
            "blame: gateway *, require: [{compare: {left: debit, right: credit}}]",
            pay(WRONG_DEBIT, CREDITED),
            ("gateway", "pay", Level.OPERATION),
        ),
        (
            "forbid: [{present: {log: '*debited*'}}]",
            pay(DEBITED),
            ("account", "account <*> debited with <*>", Level.TEMPLATE),
        ),
        ("require: [{present: {service: risk, operation: other}}]", pay(RISK), ("risk", None, Level.SERVICE)),
        ("require: [{present: ledger post}]", pay(RISK), (None, None, Level.FLOW)),
        ("require: [{follows: {step: gateway pay, by: risk other}}]", pay(RISK), ("risk", None, Level.SERVICE)),
        ("forbid: [{call: {from: gateway, to: risk}}]", pay(RISK), ("risk", "check", Level.OPERATION)),
        ("expression: 'false'", pay(RISK), ("gateway", "pay", Level.OPERATION)),
    ],
)
def test_the_subject_is_what_broke_the_rule(tmp_path: Path, body: str, root: Node, expected: Any) -> None:
    symbols = Symbols()
    rules = made(tmp_path, body, symbols)
    findings = rules.score(chains(symbols, [root]))
    assert len(findings) == 1
    assert subject(rules, findings[0]) == expected


def test_a_finding_says_what_the_rule_says(tmp_path: Path) -> None:
    symbols = Symbols()
    rules = made(tmp_path, "actions: [look], require: [{compare: {left: debit, right: credit}}]", symbols)
    findings = check_findings(rules.score(chains(symbols, [pay(WRONG_DEBIT, CREDITED)])))
    assert findings["kind"][0] == Kind.RULE_VIOLATION
    assert findings["p"][0] == P_CERTAIN
    evidence = rules.evidence(findings[0])
    assert evidence == {
        "rule": "r",
        "text": "5.1 for 5.00",
        "category": "compliance",
        "severity": "critical",
        "certain": True,
        "actions": ["look"],
        "expected": 5.0,
        "actual": 5.1,
    }
    other = made(tmp_path, "certain: false, require: [{present: ledger *}]", symbols)
    assert other.score(chains(symbols, [pay()]))["p"][0] == P_OTHER
    assert other.version() != rules.version()


def test_an_expression_over_names_is_evaluated_once_a_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = Symbols()
    by_names = made(tmp_path, "expression: \"spans.exists(s, s.service == 'risk')\"", symbols)
    by_times = made(tmp_path, "expression: duration_s < 99.0", symbols)
    batch = chains(symbols, [pay(RISK)] * 50 + [pay(DEBITED)] * 50)
    calls = []
    monkeypatch.setattr("detectors.context.rules.context", counted(calls))
    assert by_names.score(batch).size == 50
    assert len(calls) == 2
    assert by_times.score(batch).size == 0
    assert len(calls) == 102


def counted(calls: list[int]) -> Any:
    from detectors.context.rules import context

    def wrapped(batch: Any, chain: int, attributes: Any) -> Any:
        calls.append(chain)
        return context(batch, chain, attributes)

    return wrapped


def test_an_expression_that_fails_is_counted_and_violates_nothing(tmp_path: Path) -> None:
    symbols = Symbols()
    rules = made(tmp_path, 'expression: "spans[9].duration_s > 0.0"', symbols)
    assert rules.describe_state() is None
    assert not rules.score(chains(symbols, [pay(), pay()])).size
    assert rules.describe_state() == "rule r could not be evaluated 2 times"


def test_names_that_come_later_and_names_that_were_replaced_are_matched(tmp_path: Path) -> None:
    symbols = Symbols()
    rules = made(tmp_path, "require: [{absent: risk *}], forbid: [{call: {from: a, to: b}}]", symbols)
    assert not rules.score(chains(symbols, [pay()])).size
    assert rules.score(chains(symbols, [pay(RISK)])).size == 1
    assert rules.score(chains(symbols, [span("a:x", 9, span("b:y", 5))])).size == 1
    fresh = Symbols()
    chains(fresh, [span("risk:check", 9, *[span(f"s{n}:x", 1) for n in range(30)])])
    symbols.restore(fresh.snapshot())
    assert rules.score(chains(symbols, [pay(), pay(RISK)])).size == 1


@given(
    st.lists(st.sampled_from([RISK, DEBITED, CREDITED, WRONG_DEBIT, WRONG_CREDIT]), max_size=4).map(lambda x: pay(*x))
)
@examples(60)
def test_the_kernel_agrees_with_the_words(root: Node) -> None:
    """The conditions of a rule file decided a second time, in plain Python over the tree."""
    inside = list(root.children)
    names = [f"{node.service} {node.name}" for node in inside]
    debits = [node.cells[DEBIT] for node in inside if DEBIT in node.cells]
    credits_ = [node.cells[CREDIT] for node in inside if CREDIT in node.cells]
    expected = {
        "present": "risk check" not in names,
        "count": names.count("account debit") > 1,
        "order": "risk check" in names
        and "account debit" in names
        and names.index("account debit") < names.index("risk check"),
        "equal": bool(debits and credits_) and debits[0] != credits_[0],
        "sum": bool(debits) and sum(debits) > 7,
    }
    symbols = Symbols()
    rules = Rules([str(Path(__file__).parent / "rules-for-test.yaml")], ATTRIBUTES, symbols)
    findings = rules.score(chains(symbols, [root]))
    assert {rules.rules[int(f["detail"])].name for f in findings} == {name for name, bad in expected.items() if bad}


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", ":1: not YAML"),
        ("rules:\n  - name: a\n    name: b\n", ":3: name stands here twice"),
        ("rulez: []\n", ":1: rulez: unknown key; did you mean rules?"),
        ("rules:\n  - {name: a, category: system, severity: info, text: x}\n", ":2: rule a: a rule needs require"),
        (f"rules:\n  - {{{HEAD}, requires: []}}\n", ":2: rule r: requires: unknown key; did you mean require?"),
        (
            f"rules:\n  - {{{HEAD},\n     require: [{{presant: a}}]}}\n",
            ":3: rule r: require.0.presant: unknown key; did you mean present?",
        ),
        (
            f"rules:\n  - {{{HEAD},\n     require: [{{present: a, absent: b}}]}}\n",
            ":3: rule r: require.0: a condition is one of",
        ),
        (
            f"rules:\n  - {{{HEAD},\n     require: [{{count: {{step: a, max: -1}}}}]}}\n",
            ":3: rule r: require.0.count.max: ",
        ),
        (
            f"rules:\n  - {{{HEAD},\n     require: [{{compare: {{left: price, right: 1}}}}]}}\n",
            ":2: rule r: attribute price is not in join.attributes",
        ),
        (f"rules:\n  - {{{HEAD.replace('critical', 'dire')}, require: [{{present: a}}]}}\n", ":2: rule r: severity: "),
        (
            f"rules:\n  - {{{HEAD.replace('{actual}', '{total}')}, require: [{{present: a}}]}}\n",
            ":2: rule r: text knows {expected} and {actual}, not {total}",
        ),
        (f"rules:\n  - {{{HEAD.replace('.2f', 'zz')}, require: [{{present: a}}]}}\n", ":2: rule r: "),
        (f"rules:\n  - {{{HEAD}, expression: 'spans.exists('}}\n", ":2: rule r: expression: at 1:14"),
        (
            f"rules:\n  - {{{HEAD}, expression: 'spams.size() > 1'}}\n",
            ":2: rule r: expression: at 1:1: undeclared reference to 'spams'",
        ),
        (f"rules:\n  - {{{HEAD}, expression: 'duration_s + 1.0'}}\n", ":2: rule r: expression: it is DOUBLE"),
        (
            f"rules:\n  - {{{HEAD}, expression: 'spans.exists(s, s.servise == \"x\")'}}\n",
            ":2: rule r: expression: NOT_FOUND",
        ),
        (
            f"rules:\n  - {{{HEAD}, require: [{{present: a}}]}}\n  - {{{HEAD}, require: [{{present: a}}]}}\n",
            ":3: rule r: the name is taken",
        ),
        (
            f"rules:\n  - {{{HEAD}, require: [{{present: {{log: a, kind: server}}}}]}}\n",
            ":2: rule r: require.0.present: a step is a span",
        ),
        ("!!python/object:os.system {}", ":1: not YAML"),
    ],
)
def test_a_bad_rule_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RulesError) as caught:
        Rules([str(path)], ATTRIBUTES, Symbols())
    assert f"{path}{message}" in str(caught.value)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"nothing.yaml:1: cannot be read"):
        rulebook.load([str(tmp_path / "nothing.yaml")])
    (tmp_path / "huge.yaml").write_text("#" * (rulebook.FILE_BYTES_MAX + 1))
    with pytest.raises(RulesError, match="larger than"):
        rulebook.load([str(tmp_path / "huge.yaml")])


def test_without_files_there_are_no_rules() -> None:
    rules = Rules([], (), Symbols())
    assert not rules.score(chains(rules.symbols, [pay()])).size


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        (["*"], "anything\nat all", True),
        (["a*c"], "abc", True),
        (["a*c"], "abcd", False),
        (["a.c"], "abc", False),
        (["[x]"], "x", False),
        (["a", "b"], "b", True),
        (["*", "!b*"], "bc", False),
        (["*", "!b*"], "cb", True),
        (["!b"], "a", True),
        ([""], "", True),
    ],
)
def test_patterns(patterns: list[str], name: str, expected: bool) -> None:
    assert bool(rulebook.matcher(patterns).match(name)) == expected


@pytest.mark.slow
def test_the_kernel_holds_as_plain_python_too() -> None:
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is that run")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "each_form or subject",
    ]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
