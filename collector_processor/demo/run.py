"""`spanchain demo`: the service on its defaults, the platform in a process of its own, and a display of both.

How it works. The service runs in this process with its real ports; the platform is another process that speaks OTLP
gRPC to one of them and gets the faults on its standard input. The platform has been open for a while: what it sent
until now is put into the journal, from which the service learns as it does after any restart. What the display shows
comes from an exporter (`watcher.py`) and from the service's own metrics endpoint; what was injected comes from the
story, beside it. A terminal gets a live screen, anything else plain lines.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from rich.live import Live
from rich.terminal_theme import MONOKAI

from collector_processor.config import Config, JournalConfig
from collector_processor.demo import story
from collector_processor.demo.board import Board, Entry
from collector_processor.demo.screen import Scene, draw, plain, summary
from collector_processor.demo.watcher import View, Watcher
from collector_processor.journal.wal import Journal
from collector_processor.model import Incident, Payload
from collector_processor.simulator.faults import SECOND_NS
from collector_processor.simulator.traffic import DAY_S as DAY_TRUE_S
from collector_processor.simulator.traffic import Calendar

HOST: Final = "127.0.0.1"
FRAMES_PER_S: Final = 4
BEGINS_IN_S: Final = 2.5  # the platform's process has started by then, and its past is written
STATUS_EVERY_S: Final = 10.0
UNENDING_S: Final = 3600.0
STOP_S: Final = 5.0
SUMMARY_COLUMNS: Final = 160  # of the table at the end, where no terminal says how wide it is


def port_or_any(port: int) -> int:
    """`port` when nobody listens there, else any free one."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port")


def demo_ports(config: Config) -> Config:
    """`config` with a free port wherever another program listens on the wanted one."""
    grpc, http, prometheus = config.receivers.grpc, config.receivers.http, config.exporters.prometheus
    over = {
        "receivers": {"grpc": {"endpoint": _free(grpc.endpoint)}, "http": {"endpoint": _free(http.endpoint)}},
        "exporters": {"prometheus": {"port": port_or_any(prometheus.port)}},
        "service": {"health": {"port": port_or_any(config.service.health.port)}},
    }
    return Config.model_validate(story.merged(config.model_dump(), over))


def _free(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{port_or_any(int(port))}"


def addresses(config: Config) -> tuple[tuple[str, str], ...]:
    """What there is to open in a browser."""
    metrics, health = config.exporters.prometheus, config.service.health
    return (
        ("metrics", f"http://{metrics.host}:{metrics.port}/metrics"),
        ("health", f"http://{health.host}:{health.port}/readyz"),
    )


class Platform:
    """The process that plays the platform."""

    def __init__(self, target: str, opened_ns: int, start_ns: int, duration_s: float, board: Board) -> None:
        """Open since `opened_ns`; sends to `target` from `start_ns` on, for `duration_s`."""
        arguments = {
            "--start": opened_ns,
            "--since": start_ns,
            "--duration": duration_s + (start_ns - opened_ns) / SECOND_NS,
            "--seed": story.SEED,
            "--rate": story.RATE,
            "--day": story.DAY_S,
            "--swing": story.SWING,
            "--interval": story.INTERVAL_S,
            "--opening": story.OPENS.isoformat(),
        }
        command = [sys.executable, "-m", "collector_processor.simulator", "send", target, "--faults"]
        command += [str(part) for pair in arguments.items() for part in pair]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        faults = [orjson.dumps(asdict(entry.fault)) + b"\n" for entry in board.entries]
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join(faults))
        self._process.stdin.close()

    def failure(self) -> str | None:
        """What it said when it died; None while it runs or when it ended well."""
        if self._process.poll() in {None, 0}:
            return None
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace").strip() or "no reason given"

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


class Gauge:
    """Reads one number from a metrics endpoint once a second, on a thread of its own."""

    def __init__(self, url: str, name: str) -> None:
        self.value: int | None = None
        self._url = url
        self._line = re.compile(rf"^{name}(?:{{[^}}]*}})? (\S+)", re.MULTILINE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-gauge", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            try:
                with urllib.request.urlopen(self._url, timeout=2.0) as answer:  # noqa: S310 - our own endpoint
                    text = answer.read().decode()
            except OSError:
                continue
            self.value = int(sum(float(number) for number in self._line.findall(text)))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5.0)


class Rates:
    """Totals as rates per second over the last two seconds, one sample a second kept for the bars."""

    def __init__(self) -> None:
        self.chains: list[float] = []
        self.records: list[float] = []
        self._totals: deque[tuple[float, int, int]] = deque(maxlen=3)

    def add(self, now_s: float, view: View) -> None:
        """Take in the totals at `now_s`; more than one a second is ignored."""
        if self._totals and now_s < self._totals[-1][0] + 1.0:
            return
        self._totals.append((now_s, view.chains, view.records))
        then_s, chains, records = self._totals[0]
        if now_s > then_s:
            self.chains = [*self.chains[-59:], (view.chains - chains) / (now_s - then_s)]
            self.records = [*self.records[-59:], (view.records - records) / (now_s - then_s)]


class Show:
    """A running demo: the scene, and what is told of it."""

    def __init__(self, board: Board, watcher: Watcher, opened_ns: int, start_ns: int, ends_ns: int | None) -> None:
        self.board = board
        self.watcher = watcher
        self.rates = Rates()
        self.calendar = Calendar(opened_ns, DAY_TRUE_S / story.DAY_S, story.OPENS)
        self.scene = Scene(board, start_ns, start_ns, ends_ns, self.calendar.business_time(start_ns))

    def update(self, now_ns: int, open_chains: int | None) -> tuple[Incident, ...]:
        """Bring the scene to `now_ns`; returns the incidents that changed."""
        view = self.watcher.view()
        self.rates.add(now_ns / 1e9, view)
        self.board.tell(view.incidents, now_ns)
        scene = self.scene
        scene.now_ns = now_ns
        scene.business = self.calendar.business_time(now_ns)
        scene.records_rate, scene.chains_rate = self.rates.records, self.rates.chains
        scene.chains, scene.unusual, scene.last = view.chains, view.unusual, view.last
        scene.open_chains = open_chains
        return view.incidents


class Lines:
    """What is printed where no terminal is."""

    def __init__(self, console: Console, show: Show) -> None:
        self.console = console
        self.show = show
        self._announced = 0
        self._next_status_ns = 0

    def tell(self, changed: tuple[Incident, ...]) -> None:
        """The faults that began, the incidents that were opened, and now and then how it goes."""
        scene, board = self.show.scene, self.show.board
        begun = board.begun(scene.now_ns)
        for entry in begun[self._announced :]:
            self._print(f"injected: {entry.fault.title}")
        self._announced = len(begun)
        for incident in changed:
            if incident.state == "opened":
                self._print(plain(self._entry(incident), incident))
        if scene.now_ns >= self._next_status_ns:
            self._next_status_ns = scene.now_ns + int(STATUS_EVERY_S * SECOND_NS)
            newest = scene.chains_rate[-1] if scene.chains_rate else 0.0
            self._print(f"watching: {scene.chains:,} chains, {newest:,.0f} a second, {scene.unusual:,} unusual")

    def _entry(self, incident: Incident) -> Entry | None:
        return next((entry for entry in self.show.board.entries if incident.incident_id in entry.incidents), None)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def save_picture(scene: Scene, path: Path, width: int = 150) -> None:
    """The scene as an SVG that needs nothing from elsewhere (no web fonts)."""
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(draw(scene, width))
    svg = console.export_svg(title="spanchain demo", theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    path.write_text(svg.replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono"), encoding="utf-8")


def write_past(folder: Path, config: JournalConfig, opened_ns: int, until_ns: int) -> None:
    """What the platform sent from `opened_ns` to `until_ns`, into the journal in `folder`. Raises `OSError`.

    What is under way at `until_ns` is told to its end there, for the process that plays on begins with new requests:
    however long it takes to start, no request is torn in two."""
    journal = Journal.open(folder, config.model_copy(update={"durability": "os"}))
    platform = story.platform(opened_ns)
    try:
        for signal, data, sent_ns in chain(platform.payloads(until_ns), platform.rest()):
            journal.append(Payload(signal, "default", data, min(sent_ns, until_ns)))
    finally:
        journal.close()


def _play(console: Console, show: Show, gauge: Gauge, failure: Callable[[], str | None], until_ns: int) -> None:
    """Until the end, a `failure`, or Ctrl-C."""

    def step() -> tuple[Incident, ...]:
        changed = show.update(time.time_ns(), gauge.value)
        if (reason := failure()) is not None:
            raise RuntimeError(reason)
        return changed

    if not console.is_terminal:
        lines = Lines(console, show)
        lines.tell(step())
        while time.time_ns() < until_ns:
            time.sleep(1.0 / FRAMES_PER_S)
            lines.tell(step())
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while time.time_ns() < until_ns:
            step()
            live.update(draw(show.scene, console.width, console.height), refresh=True)
            time.sleep(1.0 / FRAMES_PER_S)


def run_demo(
    duration_s: float | None = None,
    exit_after: bool = False,
    data_dir: Path | None = None,
    console: Console | None = None,
    picture: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> int:
    """Run the demo until Ctrl-C, or for `duration_s` (120 s) with `exit_after`; then print what was found.

    `data_dir` is kept when given, else thrown away. `picture`: write the last screen there as SVG.
    `overrides`: settings on top of the demo's. Returns 0, or 1 when something could not be started.
    """
    from collector_processor.runtime import Service, StartError

    console = console or Console()
    length_s = (duration_s or 120.0) if exit_after else max(duration_s or 0.0, UNENDING_S)
    config = demo_ports(story.demo_config(overrides))
    watcher = Watcher()
    with ExitStack() as stack:
        folder = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spanchain-demo-")))
        console.print("starting the service (the first time, kernels are compiled) …", style="dim")
        start_ns = time.time_ns() + int(BEGINS_IN_S * SECOND_NS)
        opened_ns = start_ns - int(story.WARMUP_S * SECOND_NS)
        board = Board(story.story(story.SEED, start_ns, length_s))
        until_ns = start_ns + int(length_s * SECOND_NS)
        platform = Platform(config.receivers.grpc.endpoint, opened_ns, start_ns, length_s, board)
        stack.callback(platform.stop)
        service = Service(config, folder, watchers=(watcher,))
        stack.callback(service.stop, STOP_S)
        try:
            write_past(folder / config.journal.dir, config.journal, opened_ns, start_ns)
            service.start()
        except (OSError, StartError) as error:
            console.print(str(error), style="red", highlight=False, markup=False)
            return 1
        console.print(f"learning from {story.WARMUP_S:.0f} s of normal traffic …", style="dim")
        while not service.ready and not service.failed:
            time.sleep(0.05)
        time.sleep(max(0.0, (start_ns - time.time_ns()) / SECOND_NS))
        urls = addresses(config)
        gauge = Gauge(dict(urls)["metrics"], "spanchain_open_chains")
        stack.callback(gauge.stop)
        show = Show(board, watcher, opened_ns, start_ns, until_ns if exit_after else None)
        show.scene.urls = urls

        def failure() -> str | None:
            if service.failed:
                return "the service failed; the log says why"
            reason = platform.failure()
            return None if reason is None else f"the simulated platform died: {reason}"

        try:
            _play(console, show, gauge, failure, until_ns)
        except KeyboardInterrupt:
            pass
        except RuntimeError as error:
            console.print(str(error), style="red", highlight=False, markup=False)
            return 1
        if picture is not None:
            save_picture(show.scene, picture)
    if not console.is_terminal:
        console = Console(file=console.file, width=SUMMARY_COLUMNS)
    table, line = summary(board, show.scene.now_ns, console.width)
    console.print(table)
    console.print(line, highlight=False)
    return 0
