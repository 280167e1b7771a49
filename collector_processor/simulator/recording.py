"""A simulated day on disk: what the Collector's file exporter would have written, and the truth beside it.

How it works. Each export request is preceded by its length as four bytes, big-endian; with zstd each request is
compressed by itself, inside the prefix. `labels.jsonl` holds a line per fault and one per chain of which the truth is
known, in the form that `spanchain evaluate` reads. The usual recording is a day in December that has an opening rush, a
night batch and a holiday, with a fault every half hour.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import cramjam
import orjson

from collector_processor.model import Signal
from collector_processor.simulator.faults import Fault, Recipe, schedule
from collector_processor.simulator.simulator import Simulator
from collector_processor.simulator.traffic import FLOWS, SECOND_NS, Calendar

OPENING: Final = datetime(2025, 12, 24, 8, 0, tzinfo=UTC)
HOLIDAYS: Final = frozenset({date(2025, 12, 25), date(2025, 12, 26)})
RATE: Final = 3.0
LASTS_S: Final = 300.0
REQUESTS_MIN: Final = 20.0  # a fault that fewer requests run into says nothing about detection
FILES: Final = {Signal.TRACES: "traces.binpb", Signal.LOGS: "logs.binpb"}

_LENGTH = struct.Struct(">I")


@dataclass(slots=True)
class Recording:
    """What was recorded."""

    folder: Path
    chains: int = 0
    anomalous: int = 0
    requests: int = 0
    data_bytes: int = 0
    touched: Counter[str] = field(default_factory=Counter)
    """Chains that each fault changed, by fault id."""


def day_faults(seed: int, hours: float, rate: float = RATE) -> tuple[Fault, ...]:
    """A fault of five minutes every half hour, after an hour without; none where hardly anybody would run into it."""
    start_ns = int(OPENING.timestamp()) * SECOND_NS
    end_ns = start_ns + int(hours * 3600) * SECOND_NS
    calendar = Calendar(start_ns, opening=OPENING, holidays=HOLIDAYS)

    def is_busy(recipe: Recipe, at_ns: int) -> bool:
        per_second = sum(calendar.rate(flow, at_ns) for flow in FLOWS if flow.name in recipe.flows)
        return per_second * rate * LASTS_S >= REQUESTS_MIN

    return schedule(seed, start_ns, end_ns, warmup_s=3600.0, every_s=1800.0, duration_s=LASTS_S, fits=is_busy)


def record(
    folder: Path,
    hours: float = 24.0,
    seed: int = 1,
    faults: Iterable[Fault] | None = None,
    rate: float = RATE,
    compress: bool = True,
) -> Recording:
    """Write `hours` of the platform from OPENING on into `folder`; `faults` are `day_faults` unless given.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = day_faults(seed, hours, rate) if faults is None else tuple(faults)
    out = Recording(folder)
    start_ns = int(OPENING.timestamp()) * SECOND_NS
    with ExitStack() as stack:
        suffix = ".zst" if compress else ""
        files = {signal: stack.enter_context(open(folder / (name + suffix), "wb")) for signal, name in FILES.items()}
        labels = stack.enter_context(open(folder / "labels.jsonl", "wb"))

        def note(trace_id: bytes, truth: bool | None, touched: Collection[str]) -> None:
            out.chains += 1
            out.touched.update(touched)
            if truth is not None:
                out.anomalous += truth
                labels.write(orjson.dumps({"trace_id": trace_id.hex(), "anomalous": truth}) + b"\n")

        simulator = Simulator(seed, start_ns, 1.0, chosen, rate=rate, opening=OPENING, holidays=HOLIDAYS, on_chain=note)
        for signal, data, _ in simulator.payloads(start_ns + int(hours * 3600) * SECOND_NS):
            out.requests += 1
            out.data_bytes += len(data)
            body = bytes(cramjam.zstd.compress(data)) if compress else data
            files[signal].write(_LENGTH.pack(len(body)) + body)
        for fault in chosen:
            labels.write(orjson.dumps({**fault.label(), "chains": out.touched[fault.fault_id]}) + b"\n")
    return out
