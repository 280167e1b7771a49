"""The demo's display: a pure function from what is known to something `rich` can draw.

How it works. `Scene` holds everything that is shown; `draw` makes a terminal screen of it, `plain` the lines that are
printed where no terminal is, `summary` the table at the end. Nothing here reads a clock or a socket, so the tests, the
terminal and the picture in the README show the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from collector_processor.demo.board import Board, Entry, suspects
from collector_processor.demo.watcher import Unusual
from collector_processor.model import Incident

COLOURS: Final = {
    "critical": "bold white on red",
    "warning": "bold black on yellow",
    "info": "bold black on cyan",
    "none": "green",
    "suspected": "yellow",
}
BARS: Final = "▁▂▃▄▅▆▇█"
SERVICES: Final = ("gateway", "order", "risk", "account", "clearing", "ledger", "notification", "settlement")
# {service} stands for its name in the colour of its state.
PICTURE: Final = """\
customers ──▶ {gateway} ──▶ {order} ─┬──▶ {risk}
                                 ├──▶ {account}
                                 ├──▶ {clearing} ──▶ card network
                                 └┄┄▶ {ledger} ┄┄▶ {notification}
schedule ┄┄▶ {settlement} ──▶ clearing, ledger"""
SIDE_BY_SIDE: Final = 116  # columns from which on the picture and the verdicts stand beside each other


Row = tuple[Text, Text, Text, Text, Text, Text]  # when, what was broken, mark, severity, what was said, suspect


@dataclass(slots=True)
class Scene:
    """All that is on the screen. Times are Unix time in nanoseconds, rates are per second."""

    board: Board
    started_ns: int
    now_ns: int
    ends_ns: int | None
    business: datetime
    urls: tuple[tuple[str, str], ...] = ()
    records_rate: list[float] = field(default_factory=list)
    chains_rate: list[float] = field(default_factory=list)
    chains: int = 0
    unusual: int = 0
    open_chains: int | None = None
    last: tuple[Unusual, ...] = ()


def clock(time_ns: int) -> str:
    """The time of day in this place."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).astimezone().strftime("%H:%M:%S")


def span(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def sparkline(values: list[float], width: int) -> str:
    """The last `width` values as bars, from zero to their maximum."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    if top <= 0.0:
        return BARS[0] * len(shown)
    return "".join(BARS[min(7, int(value / top * 7.999))] for value in shown)


def sentence(incident: Incident) -> str:
    """What an incident says happened, in words."""
    trigger = incident.explanation.get("trigger")
    if isinstance(trigger, dict):
        trigger = trigger.get("text") or trigger.get("summary")
    return str(trigger or incident.kind.replace("_", " "))


def draw(scene: Scene, width: int = 130, height: int = 40) -> RenderableType:
    """The whole screen for a terminal of that size; a small one gets less of everything."""
    wide = width >= SIDE_BY_SIDE
    rows = max(3, min(10, height - (21 if wide else 20)))
    if not wide:
        return Group(_header(scene, wide), _platform(scene), _table(scene, rows, wide), _links(scene))
    middle = Table.grid(expand=True)
    middle.add_column(ratio=1)
    middle.add_column(ratio=1)
    middle.add_row(_platform(scene), _verdicts(scene, 7))
    return Group(_header(scene, wide), middle, _table(scene, rows, wide), _links(scene))


def _header(scene: Scene, wide: bool) -> RenderableType:
    elapsed_s = (scene.now_ns - scene.started_ns) / 1e9
    total = f" of {span((scene.ends_ns - scene.started_ns) / 1e9)}" if scene.ends_ns else ""
    share = scene.unusual / scene.chains if scene.chains else 0.0
    numbers = Table.grid(expand=True, padding=(0, 2))
    numbers.add_row(
        _rate("records/s", scene.records_rate, 16 if wide else 0),
        _rate("chains/s", scene.chains_rate, 16 if wide else 0),
        Text.assemble(
            ("open chains ", "dim"), ("-" if scene.open_chains is None else f"{scene.open_chains:,}", "bold")
        ),
        Text.assemble(("unusual ", "dim"), (f"{share:.2%}", "bold"), (f" of {scene.chains:,}" if wide else "", "dim")),
        Text.assemble((scene.business.strftime("%a %H:%M"), "bold"), (" over there" if wide else "", "dim")),
    )
    title = Text.assemble(("spanchain", "bold magenta"), " watches a payment platform")
    return Panel(
        numbers, title=title, title_align="left", subtitle=f"{span(elapsed_s)}{total}", subtitle_align="right",
        box=box.ROUNDED, border_style="magenta",
    )  # fmt: skip


def _rate(name: str, values: list[float], bars: int) -> Text:
    newest = values[-1] if values else 0.0
    return Text.assemble(
        (f"{name} ", "dim"),
        (f"{newest:,.0f} ", "bold"),
        (sparkline(values, bars) if bars else "", "green"),
        no_wrap=True,
    )


def _platform(scene: Scene) -> RenderableType:
    states = scene.board.states()
    out = Text(no_wrap=True)
    for piece in PICTURE.replace("{", "\0{").replace("}", "}\0").split("\0"):
        name = piece.strip("{}")
        if piece.startswith("{"):
            out.append(name, style=COLOURS[states.get(name, "none")])
        else:
            out.append(piece, style="dim")
    worst = [(name, states[name]) for name in SERVICES if states.get(name) in {"warning", "critical"}]
    note = Text("all services run as usual", style="green")
    if worst:
        note = Text("look at " + ", ".join(name for name, _ in worst), style="bold red")
    title = "the platform, as spanchain sees it"
    return Panel(Group(out, Text(), note), title=title, title_align="left", box=box.ROUNDED)


def _verdicts(scene: Scene, rows: int) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    for unusual in scene.last[-rows:][::-1]:
        table.add_row(
            Text(clock(unusual.ended_ns), style="dim"),
            Text(unusual.flow),
            Text(unusual.kind.replace("_", " ")),
            Text(f"{unusual.score:.2f}", style=COLOURS[unusual.severity]),
        )
    for _ in range(rows - len(scene.last)):
        table.add_row("", "", "", "")
    return Panel(table, title="last unusual chains", title_align="left", box=box.ROUNDED)


def _table(scene: Scene, size: int, wide: bool) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), header_style="dim")
    table.add_column("at", no_wrap=True)
    table.add_column("what we broke", no_wrap=True, overflow="ellipsis", width=36 if wide else 24)
    table.add_column("", no_wrap=True, width=6)
    if wide:
        table.add_column("severity", no_wrap=True, width=8)
    table.add_column("what spanchain says", no_wrap=True, overflow="ellipsis", ratio=1)
    if wide:
        table.add_column("suspect", no_wrap=True, width=12)
    rows = [(entry.fault.start_ns, _fault_row(entry, scene)) for entry in scene.board.begun(scene.now_ns)]
    rows += [(incident.detected_unix_nano, _false_row(incident)) for incident in scene.board.false.values()]
    for _, (at, what, mark, severity, said, suspect) in sorted(rows, key=lambda pair: pair[0])[-size:]:
        table.add_row(*((at, what, mark, severity, said, suspect) if wide else (at, what, mark, said)))
    if not rows:
        table.add_row("", Text("nothing yet", style="dim"))
    return Panel(table, title="faults and incidents", title_align="left", box=box.ROUNDED, padding=0)


def _mark(entry: Entry, scene: Scene) -> Text:
    after_s = entry.after_s()
    if entry.named_ns is not None:
        return Text(f"✔ {after_s:.0f} s", style="bold green")
    if entry.found_ns is not None:
        return Text(f"✔ {after_s:.0f} s", style="yellow")
    if scene.now_ns <= entry.fault.end_ns + scene.board.grace_ns:
        return Text("…", style="bold cyan")
    return Text("✘", style="bold red")


def _fault_row(entry: Entry, scene: Scene) -> Row:
    active = entry.fault.start_ns <= scene.now_ns < entry.fault.end_ns
    title = Text(entry.fault.title, style="bold" if active else "")
    incident = entry.best
    if incident is None:
        return Text(clock(entry.fault.start_ns), style="dim"), title, _mark(entry, scene), Text(), Text(), Text()
    more = f" (+{len(entry.incidents) - 1})" if len(entry.incidents) > 1 else ""
    return (
        Text(clock(entry.fault.start_ns), style="dim"),
        title,
        _mark(entry, scene),
        Text(incident.severity, style=COLOURS[incident.severity]),
        Text(sentence(incident) + more),
        Text((suspects(incident) or ["?"])[0], style="bold"),
    )


def _false_row(incident: Incident) -> Row:
    return (
        Text(clock(incident.detected_unix_nano), style="dim"),
        Text("nothing", style="dim"),
        Text("false", style="red"),
        Text(incident.severity, style=COLOURS[incident.severity]),
        Text(sentence(incident)),
        Text((suspects(incident) or ["?"])[0], style="bold"),
    )


def _links(scene: Scene) -> RenderableType:
    out = Text(no_wrap=True, overflow="ellipsis")
    for name, url in scene.urls:
        out.append(f" {name} ", style="dim")
        out.append(f"{url} ", style=f"link {url} blue underline")
    out.append("  Ctrl-C ends it", style="dim")
    return out


def plain(entry: Entry | None, incident: Incident) -> str:
    """One line for an incident, for where no terminal is."""
    truth = "nothing was injected" if entry is None else f"injected: {entry.fault.title}"
    return (
        f"{clock(incident.detected_unix_nano)} incident {incident.state} [{incident.severity}] {sentence(incident)}"
        f" | suspects: {', '.join(suspects(incident)[:3])} | {truth}"
    )


def summary(board: Board, now_ns: int, width: int = 160) -> tuple[Table, str]:
    """The table at the end, and the sentence under it."""
    wide = width >= SIDE_BY_SIDE
    table = Table(title="what was injected, what was said", box=box.SIMPLE_HEAD, title_justify="left")
    for name in (
        "fault",
        "found",
        "named first",
        "after",
        *(("broken service", "what spanchain said") if wide else ()),
    ):
        table.add_column(name, no_wrap=name != "what spanchain said")
    entries = board.begun(now_ns)
    for entry in entries:
        after_s, incident = entry.after_s(), entry.best
        row = (
            entry.fault.title,
            "yes" if entry.found_ns is not None else "no",
            "yes" if entry.named_ns is not None else "no",
            "" if after_s is None else f"{after_s:.1f} s",
        )
        table.add_row(*row, *((entry.fault.service, sentence(incident) if incident else "") if wide else ()))
    found = sum(entry.found_ns is not None for entry in entries)
    named = sum(entry.named_ns is not None for entry in entries)
    line = (
        f"{len(entries)} faults injected, {found} found, {named} named with the broken service first, "
        f"{len(board.false)} false incidents"
    )
    return table, line
