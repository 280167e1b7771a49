"""`python -m collector_processor.simulator record|send`: the platform without the service.

How it works. `record` writes a recording with its labels; `send` speaks OTLP to any port, a Collector's for instance,
and reads the faults to inject as JSON lines (the fields of `Fault`) from standard input when told to.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer

from collector_processor.simulator.faults import Fault
from collector_processor.simulator.recording import record as record_day
from collector_processor.simulator.sender import Sender, send_live
from collector_processor.simulator.simulator import Simulator
from collector_processor.simulator.traffic import DAY_S, SECOND_NS

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


@app.command()
def record(
    folder: Path,
    hours: Annotated[float, typer.Option(help="How much of the day to record.")] = 24.0,
    seed: int = 1,
    rate: Annotated[float, typer.Option(help="Requests per second at daytime, roughly.")] = 3.0,
    compress: Annotated[bool, typer.Option(help="zstd, as the file exporter compresses.")] = True,
) -> None:
    """Write a simulated day with faults: traces, logs and labels."""
    done = record_day(folder, hours, seed, rate=rate, compress=compress)
    print(
        f"{done.chains} chains ({done.anomalous} anomalous, {len(done.touched)} faults) in {done.requests} requests, "
        f"{done.data_bytes / 1e6:.0f} MB before compression: {done.folder}"
    )


@app.command()
def send(
    target: Annotated[str, typer.Argument(help="host:port of an OTLP gRPC receiver without TLS.")] = "127.0.0.1:4317",
    duration: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
    seed: int = 1,
    rate: Annotated[float, typer.Option(help="Requests per second, roughly.")] = 50.0,
    day: Annotated[float, typer.Option(help="Seconds in which a business day passes.")] = float(DAY_S),
    swing: Annotated[float, typer.Option(help="How much of the daily ups and downs is left, 0 to 1.")] = 1.0,
    interval: Annotated[float, typer.Option(help="Seconds between exports.")] = 1.0,
    start: Annotated[int, typer.Option(help="Unix time in nanoseconds at which the platform opens; 0 is now.")] = 0,
    since: Annotated[int, typer.Option(help="Unix time in nanoseconds before which nothing arrives; 0 is start.")] = 0,
    opening: Annotated[str, typer.Option(help="Business time at that moment, ISO 8601; empty: the same time.")] = "",
    faults: Annotated[bool, typer.Option(help="Read faults from standard input.")] = False,
) -> None:
    """Send the platform's telemetry to an OTLP port in real time."""
    start_ns = start or time.time_ns()
    injected = [Fault(**orjson.loads(line)) for line in sys.stdin] if faults else []
    business = datetime.fromisoformat(opening).replace(tzinfo=UTC) if opening else None
    simulator = Simulator(
        seed, start_ns, DAY_S / day, injected, rate=rate, swing=swing, interval_s=interval, opening=business
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    sender = Sender(target)
    sent = send_live(simulator, sender, start_ns + int(duration * SECOND_NS), stop, since)
    sender.close()
    print(f"{sent.requests} requests, {sent.data_bytes / 1e6:.1f} MB sent, {sent.failed} not delivered")


if __name__ == "__main__":
    app()
