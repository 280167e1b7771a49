"""What a finding about an operation's log lines and calls says, in one sentence.

How it works. A finding has a kind and a place; `Said` is the log line or call in question and how often it was seen.
Texts come from the symbols, so a sentence quotes the masked template or the name of the operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collector_processor.model import NONE, Kind, Level, Symbols

CALLS = (Kind.UNUSUAL_CALLS, Kind.MISSING_CALL, Kind.UNSEEN_CALL)


@dataclass(frozen=True, slots=True)
class Said:
    """event: the template or operation in question, NONE when none is known; `fewer`: it is written, but less often.
    unusual, count: of the spans in the last `window_s` seconds, those that are unusual by themselves, and all."""

    event: int
    fewer: bool
    unusual: int
    count: int
    window_s: float


def sentence(symbols: Symbols, finding: np.void, said: Said) -> str:
    """The sentence for one row of Findings."""
    services, events = symbols.services, symbols.events
    where, kind = services.text[int(finding["service"])], Kind(int(finding["kind"]))
    some = f"{said.unusual} of {said.count}" if said.unusual else f"{said.count} looked at"
    share = f"({some} in {said.window_s:.0f} s)"
    what = f'"{events.text[said.event]}"' if said.event != NONE else None
    if int(finding["level"]) == Level.EDGE:
        caller = services.text[int(finding["caller"])]
        if kind == Kind.ERROR:
            return f"Errors of {caller} complain about {where}: {what or 'they name it'} {share}"
        return f"Calls from {caller} to {where} get no answer: {what or 'a call'} never arrives {share}"
    at = f"Operation {events.text[int(finding['event'])]} of {where}"
    if kind in CALLS:
        remote = said.event != NONE and events.column("service")[said.event] != finding["service"]
        called = f"{services.text[int(events.column('service')[said.event])]} {what}" if remote else what
        if kind == Kind.UNSEEN_CALL:
            return f"{at} calls {called or 'what it never called'}, which it never did, or not so often {share}"
        return f"{at} leaves out {called} {share}" if called else f"{at} makes other calls than usual {share}"
    if kind == Kind.ERROR:
        return f"{at} reports {what} {share}" if what else f"{at} fails {share}"
    if kind == Kind.MISSING_LOG:
        return f"{at} no longer writes {what or 'a line that it usually writes'} {share}"
    if not said.unusual:
        return f"{at} fails, or writes lines that are rare by themselves, more often than usual {share}"
    if said.fewer and what:
        return f"{at} writes {what} fewer times than usual {share}"
    return f"{at} writes {what or 'log lines in an unusual choice'} {share}"
