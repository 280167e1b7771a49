"""What the journal costs: the service with `durability: os` against the service with `none`.

How it is measured. Two services run side by side and get the same requests in turns, a few at a time, so that whatever
else the machine does meets both alike. Each round of half a million records gives one ratio of CPU time (user plus
system, from the clock of each process); the median of many rounds counts, and the quartiles say how far to trust it.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.service import cpu_seconds, send, serving
from tests.soak.load import Payments

DURABILITIES = ("none", "os")
TURN = 20  # pairs of requests
ROUND = 30  # turns of each


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time a record at `os` over that at `none`: the middle of all rounds and its quartiles."""

    ratio: float
    quartiles: tuple[float, float]
    none_us: float  # CPU time a record without a journal
    os_us: float


def cost(rounds: int = 20) -> Cost:
    """Measures, after a round that is not counted; each takes some two seconds of CPU time."""
    payments = Payments(every_us=1000)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        services = [stack.enter_context(serving(Path(name) / each, each)) for each in DURABILITIES]
        looks = []
        for _ in range(rounds + 1):
            for turn in range(ROUND):
                batches = [payments.batch(time.time_ns(), time.time_ns()) for _ in range(TURN)]
                for _, address, _ in services[:: 1 if turn % 2 else -1]:
                    send(address, batches)
            looks.append([cpu_seconds(process.pid) for process, _, _ in services])
    none, os = np.diff(looks, axis=0).T / (ROUND * TURN * payments.records) * 1e6
    low, middle, high = np.quantile(os / none, (0.25, 0.5, 0.75))
    return Cost(float(middle), (float(low), float(high)), float(np.median(none)), float(np.median(os)))
