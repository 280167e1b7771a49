"""What an exporter is: five methods, called by the runtime; and what it reports to: `Meter`.

How it works. The engine's thread calls `export` after every batch and at every change of an incident. `export` never
blocks: an exporter that sends puts what it has into its own bounded queue (`exporters/queue.py`) and counts what does
not fit. Before a checkpoint is written the runtime calls `flush`: what an exporter was given before must then be
delivered or on disk, for after a crash the journal is replayed from the checkpoint only. Whatever was given after it is
given again; verdict and incident ids are content hashes, so an exporter can tell, and `checkpointed` tells it which ids
it may forget. After a restart the runtime gives each open incident once more, with state `updated`.
"""

from __future__ import annotations

from typing import Protocol

import numpy.typing as npt

from collector_processor.model import Incident, VerdictBatch


class Exporter(Protocol):
    """One way out."""

    name: str
    """The key in the registry, in the config and in the label `exporter`."""

    def start(self) -> None:
        """Opens what it needs, starts its threads. Raises `OSError` when it cannot (port taken, folder read-only)."""
        ...

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        """Takes one batch and the incidents that changed. Engine's thread; never blocks, never raises."""
        ...

    def flush(self, deadline_s: float) -> bool:
        """True once all that was given so far is delivered or on disk; False when `deadline_s` was too short.

        Called from the checkpoint's thread, shortly after the snapshot, while the engine goes on and gives more."""
        ...

    def checkpointed(self) -> None:
        """The checkpoint that the last `flush` was for is kept, beside the one before it; older ones are gone."""
        ...

    def shutdown(self, deadline_s: float) -> None:
        """Delivers what it can within `deadline_s`, keeps or counts the rest. Safe twice, and unstarted."""
        ...


class Meter(Protocol):
    """Where the service's own numbers go. Thread-safe; `name` without the prefix, as in `prometheus/metrics.py`."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Adds `amount` to a counter."""
        ...

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Sets a gauge."""
        ...

    def observe(self, name: str, values: npt.ArrayLike, /, **labels: str) -> None:
        """Adds one or many observations to a histogram."""
        ...
