"""Writes verdicts and incidents as JSON lines into a folder, for `serve` and for `replay`.

How it works. The engine's thread explains the unusual chains and puts them into the queue; the worker makes lines of
them (and, when asked for, of all the normal chains) and appends. `serve` goes on with the files that are there, each id
once, and begins a new one for verdicts when it has reached its size; `replay` starts afresh, in one piece, and waits
when the disk is slower than the engine, for a recording must come out whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from collector_processor.config import FileExportConfig
from collector_processor.model import Incident, VerdictBatch
from collector_processor.rows import Rows
from exporters.backlog import Item
from exporters.file.jsonl import IncidentFile, Mark, VerdictFile
from exporters.protocol import Meter
from exporters.queue import RetryLater, WorkerQueue

ROW_BYTES = 4096  # what an explained verdict or an incident takes in memory, roughly
CHAIN_BYTES = 256  # what a normal chain takes as columns, without its records
RECORD_BYTES = 64

log = structlog.get_logger(__name__)


class FileExporter:
    """`verdicts.jsonl` and `incidents.jsonl` in `folder`. `fresh` empties them first; `wait` never drops."""

    name = "file"

    def __init__(
        self,
        config: FileExportConfig,
        folder: Path,
        rows: Rows,
        meter: Meter,
        *,
        fresh: bool = False,
        wait: bool = False,
    ) -> None:
        self._config = config
        self._which = config.verdicts
        self._folder = folder
        self._rows = rows
        self._meter = meter
        self._fresh = fresh
        self._queue = WorkerQueue(self.name, config.queue, meter, self._deliver, batch_items=64, wait_when_full=wait)
        self._verdicts: VerdictFile | None = None
        self._incidents: IncidentFile | None = None
        self._closed = False
        self._began: Mark = (0, 0)  # `position` of verdicts.jsonl when the last flush began
        self._flushed: Mark | None = None  # and when the one before the last good one did

    def start(self) -> None:
        """Opens the files. Raises `OSError`."""
        if self._verdicts is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        verdicts, incidents = self._folder / "verdicts.jsonl", self._folder / "incidents.jsonl"
        if self._fresh:
            for path in (verdicts, incidents, *self._folder.glob("verdicts.jsonl.*")):
                path.unlink(missing_ok=True)
        bytes_max = None if self._fresh else self._config.bytes_max
        self._verdicts = VerdictFile(verdicts, bytes_max, self._config.files_kept)
        self._incidents = IncidentFile(incidents, None if self._fresh else self._config.incidents_max)
        self._meter.count("incidents_file_removed_total", 0)
        self._began = self._verdicts.position
        self._queue.start()

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        items = []
        if self._which == "all" and len(verdicts):
            unusual = self._rows.unusual(verdicts)
            size = len(verdicts) * CHAIN_BYTES + verdicts.chains.records * RECORD_BYTES + len(unusual) * ROW_BYTES
            items.append(Item((verdicts, unusual, None), size, number=len(verdicts)))
        elif self._which == "unusual":
            unusual = self._rows.unusual(verdicts)
            if unusual:
                items.append(Item((None, unusual, None), len(unusual) * ROW_BYTES, number=len(unusual)))
        items += [Item((None, {}, self._rows.incident(incident)), ROW_BYTES) for incident in incidents]
        if items:
            self._queue.put(items)

    def flush(self, deadline_s: float) -> bool:
        if self._verdicts is None or self._closed:
            return False
        # Since this flush's snapshot was taken more may have been written; not before the last flush, which is older.
        position, self._began = self._began, self._verdicts.position
        if not self._queue.flush(deadline_s):
            return False
        try:
            self._verdicts.sync()
        except OSError as error:
            log.warning("verdicts.jsonl cannot be put on disk", error=str(error))
            return False
        self._flushed = position
        return True

    def checkpointed(self) -> None:
        if self._verdicts is None or self._flushed is None or self._closed:
            return
        try:
            self._verdicts.mark(self._flushed)
        except OSError as error:  # the older marks stand: more is read after a crash
            log.warning("verdicts.jsonl cannot be marked", error=str(error))

    def shutdown(self, deadline_s: float) -> None:
        self._queue.shutdown(deadline_s)
        if self._verdicts is not None and not self._closed:
            with contextlib.suppress(OSError):
                self._verdicts.sync()
            self._verdicts.close()
        self._closed = True

    def _deliver(self, items: list[Item]) -> int:
        assert self._verdicts is not None
        assert self._incidents is not None
        try:
            # First what may be done twice; then all verdicts in one step, for a failed batch is given again.
            removed = self._incidents.update([item.payload[2] for item in items if item.payload[2] is not None])
            self._meter.count("incidents_file_removed_total", removed)
            self._verdicts.append(row for item in items for row in self._verdict_rows(item))
        except OSError as error:
            raise RetryLater("disk") from error
        return 0

    def _verdict_rows(self, item: Item) -> Iterable[dict[str, Any]]:
        batch, unusual, _ = item.payload
        return unusual.values() if batch is None else self._rows.all(batch, unusual)
