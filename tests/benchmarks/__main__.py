"""`make bench`: every figure of docs/benchmarks.md in one run, as ratios to something known that ran beside it.

Prints a table with what each figure is held against, and how it was measured; `--write` puts both into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import engine, journal, latency, service
from tests.benchmarks.payloads import payment_mix, train_ticket

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure; `goal` is what it is held against, as text, and `reached` whether it was."""

    what: str
    figure: str
    goal: str
    reached: bool


def at_most(what: str, value: float, limit: float, unit: str = "x") -> Row:
    return Row(what, f"{value:.2f} {unit}", f"at most {limit:g} {unit}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "x") -> Row:
    return Row(what, f"{value:.1f} {unit}", f"at least {limit:g} {unit}", value >= limit)


def payments() -> Iterator[Row]:
    """The engine on the payment mix."""
    found = engine.against_parse(payment_mix(20_000))
    yield at_most("engine, chain_sequence only / bare parse, payment mix", found["one_detector"], 2.5)
    yield at_most("engine, all detectors / bare parse, payment mix", found["all_detectors"], 4)
    yield Row(
        "  records a second on one core, all detectors", f"{found['engine_records_s'] / 1e3:,.0f} k", "", reached=True
    )


def recorded() -> Iterator[Row]:
    """The engine on the recorded day of TrainTicket."""
    mix = train_ticket()
    if mix is None:
        yield Row("engine / bare parse, TrainTicket", "skipped: the recording is not here", "", reached=True)
        return
    found = engine.against_parse(mix)
    yield at_most("engine, chain_sequence only / bare parse, TrainTicket", found["one_detector"], 9)
    yield at_most("engine, all detectors / bare parse, TrainTicket", found["all_detectors"], 12)
    yield Row(
        "  records a second on one core, all detectors", f"{found['engine_records_s'] / 1e3:,.0f} k", "", reached=True
    )


def naive() -> Iterator[Row]:
    """The naive way."""
    yield at_least("engine / Drain3 + dictionaries + half-space trees, throughput", engine.against_naive(), 50)


def memory() -> Iterator[Row]:
    """Open chains."""
    found = engine.open_chains()
    few, many = found[10_000], found[1_000_000]
    yield at_most("memory of an open chain of 18 records, 1,000,000 open", many[0] / 1024, 1, "KiB")
    yield at_most("cost of a record at 1,000,000 open chains / at 10,000", many[1] / few[1], 1.5)


def end_to_end() -> Iterator[Row]:
    """The service and the Collector."""
    large, small = (service.compare(traces) for traces in service.TRACES.values())
    size, other = service.TRACES
    what = "service over gRPC / Collector with groupbytrace, records a CPU second"
    yield at_least(f"{what}, requests of {size}", large.ratio, 3)
    yield Row("  service / Collector", rates_of(large), "", reached=True)
    yield Row(
        "  peak memory, service / Collector", f"{large.our_mib:.0f} / {large.their_mib:.0f} MiB", "", reached=True
    )
    yield Row(f"  the same, requests of {other}", f"{small.ratio:.1f} x", "", reached=True)
    yield Row("  service / Collector", rates_of(small), "", reached=True)
    yield at_most("ready to serve, kernels compiled", service.start_s(), 2, "s")


def latencies() -> Iterator[Row]:
    """From the close of a chain to its verdict."""
    found = latency.percentiles_s()
    p50, p99 = 1000 * found["p50"], 1000 * found["p99"]
    yield Row(
        "verdict after the close of its chain, at 40,000 records a second, p50", f"{p50:.0f} ms", "", reached=True
    )
    yield at_most("  p99", p99, 100, "ms")


def journalling() -> Iterator[Row]:
    """What the journal costs."""
    found = journal.cost()
    low, high = found.quartiles
    yield at_most("CPU a record with the journal at os / without it", found.ratio, 1.15)
    yield Row("  half of the rounds between", f"{low:.2f} and {high:.2f} x", "", reached=True)
    yield Row("  without it / with it", f"{found.none_us:.2f} / {found.os_us:.2f} µs a record", "", reached=True)


def rates_of(found: service.Compared) -> str:
    return f"{found.ours / 1e3:,.0f} / {found.theirs / 1e3:,.0f} k records/CPU s"


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "payments": payments,
    "recorded": recorded,
    "naive": naive,
    "memory": memory,
    "service": end_to_end,
    "latency": latencies,
    "journal": journalling,
}


def main() -> int:
    """Measures; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.md")
    arguments = parser.parse_args()
    # Not `choices`: before Python 3.12 it refuses to have none chosen.
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    console = Console()
    rows: list[Row] = []
    for name in arguments.parts or PARTS:
        with console.status(f"measuring: {name}"):
            rows += PARTS[name]()
    table = Table("what", "measured", "goal", "", title=machine())
    for row in rows:
        table.add_row(row.what, row.figure, row.goal, "" if not row.goal else "reached" if row.reached else "MISSED")
    console.print(table)
    for module in (engine, service, latency, journal):
        console.print((module.__doc__ or "").strip(), "\n", style="dim")
    if arguments.write:
        PAGE.write_text(page(rows))
        console.print(f"written to {PAGE.name}")
    return 0 if all(row.reached for row in rows) else 1


def machine() -> str:
    """What it was measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


def page(rows: list[Row]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        "What `make bench` measured, in one run. Ratios are what to trust: both sides of each ran on one machine, in",
        "the same run, on the same bytes. `make bench ARGS=--write` writes this page.",
        "",
        f"Measured on: {machine()}.",
        "",
        "| what | measured | goal | |",
        "|---|---|---|---|",
    ]
    for row in rows:
        verdict = "" if not row.goal else "reached" if row.reached else "**missed**"
        lines.append(f"| {row.what.strip()} | {row.figure} | {row.goal} | {verdict} |")
    lines += ["", "## How it is measured", ""]
    for module in (engine, service, latency, journal):
        lines += [*(module.__doc__ or "").strip().splitlines(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
