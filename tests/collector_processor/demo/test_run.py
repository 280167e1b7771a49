"""How the demo is put together, and one that really runs."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO

import pytest
from rich.console import Console

from collector_processor.demo import run_demo, story
from collector_processor.demo.run import Gauge, Lines, Platform, Rates, Show, demo_ports, port_or_any
from collector_processor.demo.story import demo_config
from collector_processor.demo.watcher import View, Watcher
from collector_processor.simulator.faults import SECOND_NS


def view(chains: int, records: int) -> View:
    return View(chains, records, 0, (), ())


def test_rates_are_per_second_over_two_seconds():
    rates = Rates()
    for now_s, chains in [(0.0, 0), (0.5, 40), (1.0, 100), (2.0, 300), (3.0, 300)]:
        rates.add(now_s, view(chains, chains * 20))
    assert rates.chains == [100.0, 150.0, 100.0]
    assert rates.records == [2000.0, 3000.0, 2000.0]


def test_port_or_any_takes_another_when_it_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        assert port_or_any(wanted) != wanted
    assert port_or_any(wanted) == wanted


def test_demo_ports_keeps_everything_else():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = demo_config({"receivers": {"grpc": {"endpoint": f"127.0.0.1:{port}"}}})
        moved = demo_ports(config)
        assert moved.receivers.grpc.endpoint.startswith("127.0.0.1:")
        assert moved.receivers.grpc.endpoint != config.receivers.grpc.endpoint
    assert (moved.join, moved.detectors, moved.decide) == (config.join, config.detectors, config.decide)


def test_gauge_reads_one_number():
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'# TYPE x gauge\nspanchain_open_chains{a="b"} 40\nspanchain_open_chains 2.0\nother 5\n')

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    gauge = Gauge(f"http://127.0.0.1:{server.server_address[1]}/metrics", "spanchain_open_chains")
    deadline = time.monotonic() + 10
    while gauge.value is None and time.monotonic() < deadline:
        time.sleep(0.05)
    gauge.stop()
    server.shutdown()
    server.server_close()
    thread.join()
    assert gauge.value == 42


def test_a_dead_platform_says_why(board, monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\ncat > /dev/null\necho 'no such thing' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    platform = Platform("127.0.0.1:1", time.time_ns(), time.time_ns(), 1.0, board)
    deadline = time.monotonic() + 10
    while (reason := platform.failure()) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    platform.stop()
    assert reason == "no such thing"


def test_plain_lines_tell_each_fault_and_incident_once(board, incident, start_ns):
    console = Console(file=StringIO(), width=200)
    watcher = Watcher()
    show = Show(board, watcher, start_ns - 40 * SECOND_NS, start_ns, None)
    lines = Lines(console, show)
    opened = incident("a", 43, "account", text="debits fail")
    for second in range(60):
        if second == 43:
            watcher._incidents.append(opened)
        if second == 50:
            watcher._incidents.append(incident("a", 43, "account", text="debits fail", state="updated"))
        lines.tell(show.update(start_ns + second * SECOND_NS, 5))
    said = console.file.getvalue().splitlines()
    assert [line for line in said if line.startswith("injected")] == [
        "injected: account throws while it debits",
        "injected: the network of risk is slow",
    ]
    assert sum("debits fail" in line for line in said) == 1
    assert sum(line.startswith("watching") for line in said) == 6
    assert show.scene.open_chains == 5


@pytest.mark.slow
def test_the_service_and_the_platform_run_together(tmp_path):
    """A short demo on free ports: the past is learned, traffic gets through, a summary and a picture come out."""
    console = Console(file=StringIO(), width=160)
    over = {
        "receivers": {"grpc": {"endpoint": "127.0.0.1:0"}, "http": {"endpoint": "127.0.0.1:0"}},
        "exporters": {"prometheus": {"port": 0}},
        "service": {"health": {"port": 0}},
    }
    picture = tmp_path / "demo.svg"
    code = run_demo(14.0, exit_after=True, data_dir=tmp_path / "data", console=console, picture=picture, overrides=over)
    said = console.file.getvalue()
    assert code == 0, said
    chains = [int(found.replace(",", "")) for found in re.findall(r": ([\d,]+) chains", said)]
    past = sum(1 for _ in story.platform(0).payloads(int(story.WARMUP_S) * SECOND_NS))
    assert past > 100
    assert chains[-1] > 1000
    assert "injected: account throws while it debits" in said
    assert picture.stat().st_size > 5000
