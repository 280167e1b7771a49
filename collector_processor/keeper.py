"""Keeps checkpoints: has exporters flushed, writes the state, frees the journal, beside the engine's own work.

How it works. The engine's thread takes the snapshot, which shares nothing with the engine, and goes on; a thread of its
own does what waits for disks and sinks. A checkpoint counts only when what was decided before it has been delivered or
is on disk, so an exporter that cannot do that holds it back; but not for ever, or a sink that is down for a day would
fill the journal and shut the service's door. After PATIENCE intervals, or when the journal is half full, the
checkpoint is written all the same and counted as `unflushed`: a crash before the sink is back would cost this one
exporter what it holds in memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from collector_processor.journal.checkpoint import Counters, write_checkpoint
from collector_processor.journal.wal import Journal
from exporters.protocol import Exporter

LOG = structlog.get_logger(__name__)
FLUSH_S = 5.0  # for all exporters together
PATIENCE = 5  # checkpoint intervals


class Keeper:
    """The checkpoints of one open journal. `begin` and `keep` are for the engine's thread."""

    def __init__(self, folder: Path, journal: Journal, exporters: Mapping[str, Exporter], counters: Counters) -> None:
        self._folder = folder
        self._journal = journal
        self._exporters = exporters
        self._counters = counters
        self._kept_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self.took_s = 0.0  # the last one, snapshot not included
        self.unflushed = 0  # checkpoints written although an exporter could not be flushed

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, position: int, state: dict[str, Any]) -> None:
        """Keeps a checkpoint in a thread of its own; only while not busy."""
        self._thread = threading.Thread(target=self._guarded, args=(position, state), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint that was begun is kept or given up."""
        if self._thread is not None:
            self._thread.join()

    def keep(self, position: int, state: dict[str, Any]) -> bool:
        """Writes a checkpoint, once everything decided before it has been delivered or is on disk; whether it did."""
        begun = time.monotonic()
        try:
            return self._kept(position, state)
        finally:
            self.took_s = time.monotonic() - begun

    def _kept(self, position: int, state: dict[str, Any]) -> bool:
        late = [name for name, flushed in self._flushed().items() if not flushed]
        if late and not self._is_overdue():
            self._counters.failures += 1
            LOG.warning("an exporter could not be flushed; the last checkpoint stays", exporters=late)
            return False
        try:
            self._journal.truncate(write_checkpoint(self._folder, position, state, self._counters))
        except OSError as error:
            LOG.warning("checkpoint not written; the last one stays", error=str(error))
            return False
        if late:
            self.unflushed += 1
            LOG.warning("checkpoint written without waiting longer for an exporter", exporters=late)
        self._kept_at = time.monotonic()
        for name, exporter in self._exporters.items():
            if name not in late:
                exporter.checkpointed()
        return True

    def _flushed(self) -> dict[str, bool]:
        deadline = time.monotonic() + FLUSH_S
        return {
            name: exporter.flush(max(deadline - time.monotonic(), 0.1)) for name, exporter in self._exporters.items()
        }

    def _is_overdue(self) -> bool:
        config = self._journal.config
        patience_s = PATIENCE * config.checkpoint_interval_s
        return time.monotonic() - self._kept_at > patience_s or self._journal.size_bytes > config.bytes_max / 2

    def _guarded(self, position: int, state: dict[str, Any]) -> None:
        try:
            self.keep(position, state)
        except Exception:  # state of a kind that cannot be written: a fault of ours, and no reason to stop serving
            LOG.exception("checkpoint failed; the last one stays")
