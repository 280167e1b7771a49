"""What the store's tests keep, and where. A number makes an id: the same number is the same verdict or incident."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import text
from verdicts import explanation

from collector_processor.config import StoreConfig
from exporters.prometheus.telemetry import Telemetry
from exporters.store.database import Database
from exporters.store.entries import Entry
from exporters.store.reader import Reader
from exporters.store.sink import Sink

NS = 1_000_000_000


class Place:
    """Where a store is. What it opens is closed when the test is over."""

    def __init__(self, folder: Path, url: str | None, stack: ExitStack) -> None:
        self.folder = folder
        self.url = url
        self.telemetry = Telemetry("1")
        self.stopped = threading.Event()
        self._stack = stack
        self._looking: Database | None = None

    def config(self, **settings: Any) -> StoreConfig:
        return StoreConfig.model_validate({"url": self.url, **settings})

    def database(self) -> Database:
        made = Database(self.config(), self.folder)
        self._stack.callback(made.close)
        return made

    def sink(self, clock_ns: Callable[[], int] = lambda: 0, **settings: Any) -> Sink:
        made = Sink(self.config(**settings), self.folder, self.telemetry, self.stopped, clock_ns)
        self._stack.callback(made.close)
        return made

    def reader(self) -> Reader:
        made = Reader(self.config(), self.folder)
        self._stack.callback(made.close)
        return made

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        if self._looking is None:
            self._looking = self.database()
        with self._looking.transaction() as connection:
            return [tuple(row) for row in connection.execute(text(query))]


def verdict(
    number: int,
    tenant: str = "default",
    *,
    closed_s: int = 0,
    severity: str = "critical",
    fill: int = 0,
    service: str = "risk",
) -> Entry:
    """The verdict on trace `number`, whose chain is one record; `fill` characters make it larger."""
    row: dict[str, Any] = {
        "verdict_id": f"{number:016x}",
        "tenant": tenant,
        "trace_id": f"{number:032x}",
        "flow": "gateway pay" + "." * fill,
        "start_unix_nano": closed_s * NS,
        "end_unix_nano": closed_s * NS,
        "score": 0.99,
        "severity": severity,
        "category": "system",
        "findings": [{"kind": "slow_operation", "subject": {"service": service}}],
        "explanation": explanation(),
    }
    record: dict[str, Any] = {
        "kind": "server",
        "service": "gateway",
        "operation": "pay",
        "instance": None,
        "span_id": "0" * 15 + "1",
    }
    record |= {"parent": None, "at_ns": 0, "duration_ns": 2 * NS, "self_ns": NS, "status": "ok"}
    chain = {"records": [record], "left_out": 0} if severity != "none" else None
    return {"verdict": row, "closed": closed_s * NS, "records": chain}


def incident(
    number: int, tenant: str = "default", *, changed_s: int = 0, resolved: bool = False, chains: int = 1
) -> Entry:
    """The state of incident `number` at second `changed_s`; it opened at second `number`."""
    row: dict[str, Any] = {
        "incident_id": f"{number:016x}",
        "tenant": tenant,
        "kind": "slow_operation",
        "category": "system",
        "severity": "critical",
        "subject": {"service": "risk", "operation": "check", "instance": None},
        "suspects": [{"service": "risk", "operation": "check", "score": 0.9}],
        "flows": ["gateway pay"],
        "opened_unix_nano": number * NS,
        "detected_unix_nano": number * NS,
        "resolved_unix_nano": changed_s * NS if resolved else None,
        "chains": chains,
        "example_trace_ids": [f"{number:032x}"],
        "explanation": explanation(),
    }
    return {"incident": row, "changed": changed_s * NS}
