"""What a tired person reads at night: trigger, context, affected objects, actions, from findings and their evidence.

How it works. Every kind of finding has one sentence that says what was expected and what was seen, and a few actions. A
detector's `evidence` fills in what only it knows (the step that did not come, the share of chains that take it); a
sentence stands without it too. Names come from outside, so whatever a terminal or a page could obey instead of show is
taken out. Everything here works on columns, names and captured evidence, never on a detector's state, so it may run
later, in an exporter's thread, and still say what was true when the chain was judged.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from collector_processor.model import NONE, Findings, Kind, Symbols

PLAIN = frozenset((bool, int, type(None)))  # types of what is JSON as it is
NAME_MAX = 120  # characters of a name that are shown
PATH_MAX = 240
CONTEXT_MAX = 3  # further findings that are spelled out
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?", re.DOTALL)
_HIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
}  # control, format (bidi, zero width), surrogates, unassigned, breaks


def clean(text: str, limit: int = NAME_MAX) -> str:
    """`text` on one line without control, ANSI, bidi or invisible characters, at most `limit` characters."""
    plain = text.isascii() and text.isprintable()
    if plain and len(text) <= limit and "  " not in text and not text.startswith(" ") and not text.endswith(" "):
        return text
    if not plain:
        text = _ANSI.sub("", text)
        text = "".join(" " if c in "\t\n\r\v\f" else c for c in text if c in "\t\n\r\v\f" or not _hidden(c))
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


_known = lru_cache(4096)(clean)  # names and keys of evidence: few different ones, again and again


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN


def cleaned(value: Any, depth: int = 4) -> Any:
    """JSON-able `value` with every string cleaned; numpy scalars become numbers, what is nested deeper becomes text."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean(value, PATH_MAX)
    if kind is dict and depth:
        return {_known(str(k)): v if type(v) in PLAIN else cleaned(v, depth - 1) for k, v in value.items()}
    if isinstance(value, np.generic):
        return cleaned(value.item(), depth)
    if isinstance(value, int | float):
        return value if isinstance(value, int) or np.isfinite(value) else None
    if depth and isinstance(value, Mapping):
        return cleaned(dict(value), depth)
    if depth and isinstance(value, Iterable):
        return [cleaned(v, depth - 1) for v in value]
    return clean(str(value), PATH_MAX)


def seconds(value: float) -> str:
    """A duration as people say it: `340 ms`, `1.2 s`, `3 min`."""
    if value < 0.0995:
        return f"{value * 1e3:.2g} ms"
    if value < 0.9995:
        return f"{value * 1e3:.0f} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def share(value: float) -> str:
    """A share of 0-1 in per cent; near the ends with the digits that matter."""
    if 0 < value < 0.01 or 0.99 < value < 1:
        return f"{value * 100:.2g} %" if value < 0.01 else f"{value * 100:.1f} %"
    return f"{value * 100:.0f} %"


def count(value: float) -> str:
    """A number of things: `1,250`, `0.4`."""
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.2g}"


def one_in(p: float) -> str:
    """A p-value in words."""
    if p >= 0.01:
        return f"about {p * 100:.0f} in 100"
    rounded = 10 ** int(np.log10(1.0 / p))
    return f"fewer than 1 in {rounded:,}" if rounded <= 1_000_000_000 else "fewer than 1 in a billion"


@dataclass(slots=True)
class Said:
    """One finding with its names and evidence."""

    kind: Kind
    flow: str | None
    service: str | None
    operation: str | None
    template: str | None  # instead of the operation, when the subject is a log line
    caller: str | None
    instance: str | None
    expected: float
    actual: float
    evidence: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The subject in words."""
        return " ".join(filter(None, (self.service, self.operation))) or self.flow or "the system"

    @property
    def of_flow(self) -> str:
        return self.flow or "this flow"

    def text(self, key: str) -> str | None:
        """The evidence under `key` as clean text."""
        value = self.evidence.get(key)
        return None if value is None else clean(str(value), PATH_MAX)

    def number(self, key: str) -> float | None:
        value = self.evidence.get(key)
        return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def said(symbols: Symbols, finding: np.void, evidence: Mapping[str, Any]) -> Said:
    """`finding` with its names looked up."""
    _, _, kind, _, flow, service, event, caller, instance, _, expected, actual, _ = finding.item()
    text = _name(symbols.events.text, event)
    is_log = event >= 0 and bool(symbols.events.column("is_log")[event])
    return Said(
        Kind(kind),
        _name(symbols.flows.text, flow),
        _name(symbols.services.text, service),
        None if is_log else text,
        text if is_log else None,
        _name(symbols.services.text, caller),
        _name(symbols.instances.text, instance),
        expected,
        actual,
        evidence,
    )


def _name(names: Sequence[str], index: int) -> str | None:
    return _known(names[index]) if index != NONE else None


def subject_of(one: Said) -> dict[str, str | None]:
    """The `subject` of a finding in verdicts.jsonl."""
    subject = {"service": one.service, "operation": one.operation, "instance": one.instance}
    for name in ("template", "caller", "flow"):
        value = getattr(one, name)
        if value is not None:
            subject[name] = value
    return subject


def _usual(one: Said, unit: Callable[[float], str], much: str = "") -> str:
    """`2.1 s, where 340 ms is usual`, from evidence (a number, or text such as a range), else the finding's numbers."""
    known = one.evidence.get("expected")
    expected, actual = one.number("expected"), one.number("actual")
    usual = clean(known) if isinstance(known, str) else unit(one.expected if expected is None else expected)
    return f"{unit(one.actual if actual is None else actual)}{much}, where {usual} is usual"


def _interrupted(one: Said) -> str:
    after, step, within = one.text("after"), one.text("step"), one.number("within_s")
    often = one.number("share")
    out = f"{one.of_flow} broke off" + (f" after {after}" if after else "")
    if step:
        limit = f" within {seconds(within)}" if within else ""
        out += f": {step} was expected next{limit} and did not come"
    return out + (f" ({share(often)} of such chains take that step)" if often else "")


def _new_sequence(one: Said) -> str:
    path, history = one.text("path"), one.number("history")
    known = f" in {count(history)} chains" if history else " before"
    return f"{one.of_flow} took a way that was never seen{known}" + (f": {path}" if path else "")


def _distribution(one: Said) -> str:
    path, within = one.text("path"), one.number("within_s")
    what = f"{one.of_flow} took the path {path}" if path else f"{one.of_flow} came"
    return f"{what} {_usual(one, count, ' times' + (f' within {seconds(within)}' if within else ''))}"


def _error(one: Said) -> str:
    actual = one.number("actual")
    actual = one.actual if actual is None else actual
    if 0 < actual < 1:
        return f"{one.where} fails in {_usual(one, share, ' of cases')}"
    errors = "an error" if actual <= 1 else f"{count(actual)} errors"
    said_by = one.template or one.text("template")
    return f'{one.where} reported {errors}: "{said_by}"' if said_by else f"{one.where} reported {errors}"


def _missing_log(one: Said) -> str:
    template, often = one.template or one.text("template"), one.number("share")
    line = f'the log line "{template}"' if template else "a log line that always comes"
    return f"{one.where} did not write {line}" + (f" ({share(often)} of its calls write it)" if often else "")


def _unusual_log(one: Said) -> str:
    template, often, history = one.template or one.text("template"), one.number("share"), one.number("history")
    rare = (
        f"in {share(often)} of cases" if often else "never before" + (f" in {count(history)} cases" if history else "")
    )
    line = f'wrote "{template}"' if template else "wrote log lines in an order or choice"
    return f"{one.where} {line}, seen here {rare}"


def _unusual_calls(one: Said) -> str:
    often, path = one.number("share"), one.text("path") or one.text("step")
    rare = f" (seen in {share(often)} of cases)" if often else ""
    return f"{one.where} made other calls than usual{rare}" + (f": {path}" if path else "")


def _content(one: Said) -> str:
    stands_out = one.template or one.text("template") or one.text("step")
    out = f"{one.of_flow}: the steps and log lines of this chain are unlike every known normal one"
    if stands_out:
        return f'{out}; "{stands_out}" stands out most'
    return f"{out}; {one.where} stands out most" if one.service else out


def _unlikely(one: Said) -> str:
    step, after, often = one.text("step"), one.text("after"), one.number("share")
    at = f" at {one.where}" if one.service else ""
    out = f"{one.of_flow}: the order of events is improbable{at}"
    if step:
        out += f'; after "{after}" came' if after else "; expected was"
        out += f' "{step}"'
    return out + (f" ({share(often)} of cases)" if often is not None else "")


def _rule(one: Said) -> str:
    return f"rule {one.text('rule') or 'without a name'} does not hold at {one.where}"


SENTENCES: dict[Kind, Callable[[Said], str]] = {
    Kind.NEW_SEQUENCE: _new_sequence,
    Kind.INTERRUPTED_SEQUENCE: _interrupted,
    Kind.DISTRIBUTION_SURGE: _distribution,
    Kind.DISTRIBUTION_DROP: _distribution,
    Kind.UNUSUAL_CONTENT: _content,
    Kind.UNLIKELY_SEQUENCE: _unlikely,
    Kind.RULE_VIOLATION: _rule,
    Kind.UNSEEN_CALL: lambda one: (
        f"{one.caller} called {one.where}, which it had never done before"
        if one.caller
        else f"{one.where} was called by a service that had never done so before"
    ),
    Kind.MISSING_LOG: _missing_log,
    Kind.SLOW_OPERATION: lambda one: f"{one.where} itself took {_usual(one, seconds)}",
    Kind.SLOW_CALL: lambda one: (
        f"the call from {one.caller or 'its callers'} to {one.where} spent {_usual(one, seconds, ' on the way')}"
    ),
    Kind.ERROR: _error,
    Kind.UNUSUAL_LOG: _unusual_log,
    Kind.UNUSUAL_CALLS: _unusual_calls,
    Kind.MISSING_CALL: lambda one: f"{one.where} left out a call that it usually makes",
    Kind.RATE_SURGE: _distribution,
    Kind.RATE_DROP: _distribution,
    Kind.DRIFT: lambda one: f"what is normal for {one.where} has crept away from what it was",
}

ACTIONS: dict[Kind, tuple[str, ...]] = {
    Kind.NEW_SEQUENCE: (
        "Was {flow} released or configured anew? If so, mark the path as normal.",
        "If not, open an example trace and compare it with the usual path.",
    ),
    Kind.INTERRUPTED_SEQUENCE: (
        "Look for the transaction in {service}: is it stuck, lost or waiting for an answer?",
        "Check whether what was begun (reservation, debit) has to be finished or taken back.",
    ),
    Kind.DISTRIBUTION_SURGE: (
        "Find out what leads chains of {flow} onto this path: a fallback, a retry, a campaign, a release.",
    ),
    Kind.DISTRIBUTION_DROP: ("Check that the callers and the branch of {flow} that leads to this path still work.",),
    Kind.UNUSUAL_CONTENT: ("Open the trace and start at what stands out; mark it as normal if it is meant to be so.",),
    Kind.UNLIKELY_SEQUENCE: ("Open the trace and compare the order of events around {service} with a normal one.",),
    Kind.RULE_VIOLATION: ("Check the transaction against the rule before it is settled.",),
    Kind.UNSEEN_CALL: (
        "Check whether {caller} is meant to call {service}: a release, a new route, or something that should not be.",
    ),
    Kind.MISSING_LOG: (
        "Check whether {service} left the step out or swallowed an exception.",
        "Compare with the latest release of {service}.",
    ),
    Kind.SLOW_OPERATION: (
        "Check processor, memory, garbage collection and locks of {place}.",
        "Compare with the latest release and the load of {service}.",
    ),
    Kind.SLOW_CALL: (
        "Check the network, the load balancer and the connection pools in front of {service}.",
        "Check whether {service} is restarting, throttled or out of worker threads.",
    ),
    Kind.ERROR: (
        "Open an example trace and read the first error of {service}.",
        "Check what {service} depends on; roll back its latest release if the errors began with it.",
    ),
    Kind.UNUSUAL_LOG: ("Read this log line of {service} in an example trace, and what came just before it.",),
    Kind.UNUSUAL_CALLS: ("Compare the calls of {service} in an example trace with a normal one; look for retries.",),
    Kind.MISSING_CALL: (
        "Check whether {service} left the step out, swallowed an exception, or was given what it could not use.",
        "Compare with the latest release of {service}.",
    ),
    Kind.RATE_SURGE: ("Check the callers of {where} for retries or a batch, and whether its capacity suffices.",),
    Kind.DRIFT: (
        "Compare {service} with its state back then: releases, data volume, leaks, neighbours on the same machine.",
        "If it is meant to be so, nothing has to be done: it becomes the new reference after a day.",
    ),
    Kind.RATE_DROP: ("Check what stands before {where}: callers, gateway, queue, and the telemetry itself.",),
}


def sentence(one: Said) -> str:
    """What the finding says, one sentence without a full stop at its end. The detector's own text wins."""
    text = one.text("text") or SENTENCES[one.kind](one)
    return text[:1].upper() + text[1:].rstrip(".")


def actions(one: Said) -> list[str]:
    """What to do, most useful first; the rule's own actions win."""
    own = one.evidence.get("actions")
    if isinstance(own, Sequence) and not isinstance(own, str) and own:
        return [clean(str(action), PATH_MAX) for action in own]
    service = one.service or "the service"
    names = {
        "flow": one.of_flow,
        "service": service,
        "caller": one.caller or "the caller",
        "place": f"{service} on {one.instance}" if one.instance else service,
        "where": one.where,
    }
    return [action.format_map(names) for action in ACTIONS[one.kind]]


def explain(
    symbols: Symbols,
    findings: Iterable[np.void],
    evidence: Sequence[Mapping[str, Any]],
    affected: Mapping[str, Any],
    notes: Sequence[str] = (),
    lead: str = "",
) -> dict[str, Any]:
    """The explanation in four parts.

    `findings` strongest first with `evidence` row by row; `affected` as `affected_of` gives it; `notes` are further
    sentences of context; `lead` stands before the trigger's sentence (`34 chains in 2 min: `).
    """
    facts = [said(symbols, finding, found) for finding, found in zip(findings, evidence, strict=True)]
    if not facts:
        trigger = "No single step stands out; the chain as a whole is unusual"
        todo = ["Open the trace and compare it with a normal one of the same flow."]
    else:
        trigger, todo = sentence(facts[0]), actions(facts[0])
    sentences = dict.fromkeys(sentence(one) for one in facts[1:])
    sentences.pop(trigger, None)
    context = [*list(sentences)[:CONTEXT_MAX]]
    if len(sentences) > CONTEXT_MAX:
        context.append(f"And {len(sentences) - CONTEXT_MAX} more findings of the same chain")
    context += notes
    return {
        "trigger": f"{lead}{trigger}.",
        "context": " ".join(f"{text}." for text in context),
        "affected": dict(affected),
        "actions": todo,
    }


def affected_of(
    flows: Iterable[str], services: Iterable[str], instances: Iterable[str], chains: int, amount: float | None = None
) -> dict[str, Any]:
    """The objects that an explanation counts: clean, distinct names in the order given, and how much money."""
    out: dict[str, Any] = {
        name: list(dict.fromkeys(map(_known, texts)))
        for name, texts in (("flows", flows), ("services", services), ("instances", instances))
    }
    out["chains"] = chains
    out["amount"] = amount
    return out


def affected_by(
    symbols: Symbols, flow: int, findings: Findings, amount: float | None = None, chains: int = 1
) -> dict[str, Any]:
    """What the findings of one flow touch."""
    services = [symbols.services.text[i] for i in findings["service"].tolist() if i != NONE]
    instances = [symbols.instances.text[i] for i in findings["instance"].tolist() if i != NONE]
    return affected_of([symbols.flows.text[flow]], services, instances, chains, amount)
