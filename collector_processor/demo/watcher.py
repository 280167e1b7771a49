"""The demo's own exporter: what it needs of verdicts and incidents, kept for the display.

How it works. It is an exporter like any other (`exporters/protocol.py`) and knows what any exporter is given. `export`
runs on the engine's thread and only counts; the display asks for a `View` from its own.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from collector_processor.model import Incident, VerdictBatch
from collector_processor.rows import kind_of, severity_of

LAST: Final = 8


@dataclass(frozen=True, slots=True)
class Unusual:
    """One unusual chain."""

    ended_ns: int
    trace_id: str
    flow: str
    kind: str
    severity: str
    score: float


@dataclass(frozen=True, slots=True)
class View:
    """What was seen so far. `incidents`: those that changed since the last view."""

    chains: int
    records: int
    unusual: int
    last: tuple[Unusual, ...]
    incidents: tuple[Incident, ...]


class Watcher:
    """An exporter into the display's hands."""

    name: str = "demo"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chains = self._records = self._unusual = 0
        self._last: deque[Unusual] = deque(maxlen=LAST)
        self._incidents: list[Incident] = []

    def start(self) -> None:
        """Nothing to open."""

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        """Count the verdicts, keep the incidents."""
        found = np.flatnonzero(verdicts.severity)
        newest = [self._describe(verdicts, int(chain)) for chain in found[-LAST:]]
        with self._lock:
            self._chains += len(verdicts)
            self._records += verdicts.chains.records
            self._unusual += found.size
            self._last.extend(newest)
            self._incidents += incidents

    @staticmethod
    def _describe(verdicts: VerdictBatch, chain: int) -> Unusual:
        chains = verdicts.chains
        flow = int(chains.flow[chain])
        return Unusual(
            ended_ns=int(chains.end_ns[chain]),
            trace_id=chains.trace_id(chain),
            flow=chains.symbols.flows.text[flow] if flow >= 0 else "",
            kind=kind_of(verdicts, chain),
            severity=severity_of(verdicts, chain),
            score=float(verdicts.score[chain]),
        )

    def checkpointed(self) -> None:
        """Nothing is kept."""

    def flush(self, deadline_s: float) -> bool:  # noqa: ARG002 - of the protocol
        """Nothing is ever waiting."""
        return True

    def shutdown(self, deadline_s: float) -> None:
        """Nothing to close."""

    def view(self) -> View:
        """What was seen so far, and the incidents since the last call."""
        with self._lock:
            incidents, self._incidents = tuple(self._incidents), []
            return View(self._chains, self._records, self._unusual, tuple(self._last), incidents)
