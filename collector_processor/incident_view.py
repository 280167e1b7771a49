"""`spanchain incidents`: what the store holds about incidents, as tables and pages for a terminal.

How it works. `exporters/store/reader.py` reads; this file only lays out. What came in with the data (names, templates)
is shown as plain text without control characters, never as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from collector_processor.decide.explain import clean, seconds
from collector_processor.rows import sentences

NS = 1_000_000_000
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
STYLES = {"critical": "bold red", "warning": "yellow", "info": "cyan"}
PARTS = (
    ("trigger", "What happened"),
    ("context", "Context"),
    ("affected", "Affected"),
    ("actions", "What to do"),
)
ID_SHOWN = 8  # characters of an id in the list: enough to name it by
EXAMPLES_MAX = 3  # chains that a page shows
RECORDS_MAX = 40  # records of each


def since_ns(text: str, now_ns: int) -> int:
    """`90m`, `2h`, `7d` before `now_ns`, or a date and time (UTC unless it says otherwise), in nanoseconds.

    Raises:
        ValueError: it is neither.
    """
    if found := re.fullmatch(r"(\d{1,6})([smhdw])", text.strip()):
        return now_ns - int(found[1]) * UNITS_S[found[2]] * NS
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is neither a time span such as 2h or 7d nor a date such as 2026-03-01") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * NS


def listing(incidents: Sequence[dict[str, Any]]) -> Table:
    """One line an incident; with its tenant where there are several."""
    table = Table(box=None, pad_edge=False)
    tenants = len({each["tenant"] for each in incidents}) > 1
    for name in ("incident", "opened (UTC)", "lasted", "severity", "what", "where", "chains", *["tenant"] * tenants):
        numeric, folds = name in {"lasted", "chains"}, name in {"what", "where"}
        table.add_column(name, justify="right" if numeric else "left", no_wrap=not folds)
    for each in incidents:
        table.add_row(
            each["incident_id"][:ID_SHOWN],
            moment(each["opened_unix_nano"])[: -len(":00")],
            lasted(each),
            Text(each["severity"], STYLES.get(each["severity"], "")),
            Text(clean(each["kind"].replace("_", " "))),
            Text(where(each["subject"])),
            f"{each['chains']:,}",
            *[Text(clean(each["tenant"]))] * tenants,
        )
    return table


def page(incident: dict[str, Any], evidence: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
    """All about one incident: the explanation in its four parts, the suspects, and chains that show it."""
    title = f"{incident['severity']}: {incident['kind'].replace('_', ' ')} at {where(incident['subject'])}"
    yield Text(title, STYLES.get(incident["severity"], "bold"))
    state = "open" if incident["resolved_unix_nano"] is None else f"resolved after {lasted(incident)}"
    facts = f"incident {incident['incident_id']}, tenant {clean(incident['tenant'])}, {incident['category']}"
    noticed = seconds((incident["detected_unix_nano"] - incident["opened_unix_nano"]) / NS)
    yield Text(f"{facts}; began {moment(incident['opened_unix_nano'])} UTC, noticed after {noticed}")
    yield Text(f"{state}; {incident['chains']:,} chains")
    for name, heading in PARTS:
        yield Text(f"\n{heading}", "bold")
        yield Text(lines(incident["explanation"].get(name)))
    if incident["suspects"]:
        yield Text("\nSuspects", "bold")
        for each in incident["suspects"]:
            yield Text(f"{each['score']:5.0%}  {where(each)}")
    yield Text(f"\nEvidence: {len(evidence)} chain{'' if len(evidence) == 1 else 's'}", "bold")
    for verdict in evidence[:EXAMPLES_MAX]:
        yield from _example(verdict)
    if len(evidence) > EXAMPLES_MAX:
        yield Text(f"\n{len(evidence) - EXAMPLES_MAX} more with --json")


def _example(verdict: dict[str, Any]) -> Iterator[RenderableType]:
    yield Text(f"\ntrace {verdict['trace_id']}, score {verdict['score']:.3f}, {clean(verdict['flow'])}")
    yield Text(lines(verdict["explanation"]["trigger"]))
    if verdict["records"] is None:
        return
    records = verdict["records"]["records"]
    table = Table(box=None, pad_edge=False)
    for name in ("at", "took", "of its own"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what")
    depth: list[int] = []
    for each in records[:RECORDS_MAX]:
        depth.append(0 if each["parent"] is None else depth[each["parent"]] + 1)
        table.add_row(seconds_of(each["at_ns"]), *_times(each), _what(each, depth[-1]))
    yield table
    left = len(records) - RECORDS_MAX + verdict["records"]["left_out"]
    if left > 0:
        yield Text(f"and {left:,} further records")


def _times(record: dict[str, Any]) -> tuple[str, str]:
    if record["kind"] == "log":
        return "", ""
    return seconds_of(record["duration_ns"]), seconds_of(record["self_ns"])


def _what(record: dict[str, Any], depth: int) -> Text:
    name = clean(record.get("operation") or record.get("template") or "")
    failed = record.get("status") == "error" or record.get("severity_number", 0) >= 17
    text = f"{'  ' * min(depth, 20)}{clean(record['service'])}: {name}"
    return Text(f"{text}  error" if failed else text, "red" if failed else "dim" if record["kind"] == "log" else "")


def where(subject: dict[str, Any]) -> str:
    """`risk: check on risk-1`."""
    text = clean(subject.get("service") or "?")
    if subject.get("operation"):
        text += f": {clean(subject['operation'])}"
    return f"{text} on {clean(subject['instance'])}" if subject.get("instance") else text


def lasted(incident: dict[str, Any]) -> str:
    """How long a resolved incident took; `open`."""
    if incident["resolved_unix_nano"] is None:
        return "open"
    return seconds((incident["resolved_unix_nano"] - incident["opened_unix_nano"]) / NS)


def lines(part: Any) -> str:
    """One part of an explanation, a sentence a line."""
    kept: Iterable[str] = (clean(line, 1000) for line in sentences(part).splitlines())
    return "\n".join(line for line in kept if line)


def seconds_of(duration_ns: int) -> str:
    return seconds(duration_ns / NS)


def moment(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // NS, UTC).strftime("%Y-%m-%d %H:%M:%S")
