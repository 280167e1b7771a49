"""Posts incidents to Alertmanager: when they open or change, again and again while they last, and when they end.

How it works. A change is an item of a queue on disk, so an incident that ends while Alertmanager is down is still told.
A second thread puts every open incident in again each `resend_s`, unless the queue is not empty: then the sink is
behind and will hear of it anyway. A firing alert is sent with an end a few rounds ahead, so that it ends by itself when
we are gone for good; that end is set when it is sent, for it may have waited. Of several states of an alert in one
batch the last is sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from collector_processor.config import AlertmanagerConfig
from collector_processor.model import Incident, VerdictBatch
from collector_processor.rows import Rows
from exporters.alertmanager.alerts import alert, timestamp
from exporters.backlog import Item
from exporters.http import Poster, tls_context
from exporters.protocol import Meter
from exporters.queue import WorkerQueue

OPEN_MAX = 10_000  # incidents that are sent again
ROUNDS = 4  # of `resend_s`, after which an alert that is not repeated ends


class AlertmanagerExporter:
    """Direct pages. `folder` is for what waits; `clock_ns` is the wall clock."""

    name = "alertmanager"

    def __init__(
        self,
        config: AlertmanagerConfig,
        folder: Path,
        rows: Rows,
        meter: Meter,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._rows = rows
        self._clock_ns = clock_ns
        self._open: dict[str, dict[str, Any]] = {}  # incident -> its alert
        self._lock = threading.Lock()  # guards `_open`, and that no alert is put again behind its end
        path = folder / "alertmanager.queue"
        self._queue = WorkerQueue(self.name, config.queue, meter, self._deliver, batch_items=64, path=path)
        self._poster: Poster | None = None
        self._stopped = threading.Event()
        self._resender: threading.Thread | None = None

    def start(self) -> None:
        """Raises `OSError` when a certificate or the folder cannot be had; an Alertmanager that is down is no error."""
        if self._poster is not None:
            return
        config = self._config
        context = tls_context(config.ca_file) if config.url.startswith("https:") else None
        headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._poster = Poster(config.url, headers, config.timeout_s, context)
        self._queue.start()
        self._resender = threading.Thread(target=self._resend, name="alertmanager-resend", daemon=True)
        self._resender.start()

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:  # noqa: ARG002  # incidents page
        with self._lock:
            items = [item for incident in incidents for item in self._changes(incident)]
            if items:
                self._queue.put(items)

    def _changes(self, incident: Incident) -> Iterator[Item]:
        now = alert(self._rows.incident(incident), self._config)
        before = self._open.pop(incident.incident_id, None)
        if before is not None:
            now["labels"] = before["labels"] | {"severity": incident.severity}
        if incident.state != "resolved" and len(self._open) < OPEN_MAX:
            self._open[incident.incident_id] = now
        if before is not None and before["labels"] != now["labels"]:
            yield _item(before | {"endsAt": timestamp(self._clock_ns())})
        yield _item(now, key=f"{incident.incident_id}:{incident.state}:{incident.severity}:{incident.chains}")

    def flush(self, deadline_s: float) -> bool:
        return self._queue.flush(deadline_s)

    def checkpointed(self) -> None:
        self._queue.checkpointed()

    def shutdown(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        self._stopped.set()
        if self._resender is not None:
            self._resender.join(deadline_s)
        self._queue.shutdown(max(end - time.monotonic(), 0.0))

    def _resend(self) -> None:
        while not self._stopped.wait(self._config.resend_s):
            with self._lock:
                if self._open and len(self._queue) == 0:
                    self._queue.put([_item(each) for each in self._open.values()])

    def _deliver(self, items: list[Item]) -> int:
        assert self._poster is not None
        alerts: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        until = timestamp(self._clock_ns() + int(ROUNDS * self._config.resend_s * 1e9))
        for item in items:
            each = orjson.loads(item.payload)
            alerts[tuple(each["labels"].items())] = {"endsAt": until} | each
        self._poster.post("/api/v2/alerts", orjson.dumps(list(alerts.values())), "application/json")
        return 0


def _item(content: dict[str, Any], key: str = "") -> Item:
    body = orjson.dumps(content)
    return Item(body, len(body), key)
