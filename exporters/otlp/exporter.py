"""Sends an event for every unusual chain, and for every change of an incident that people should know of.

How it works. The engine's thread writes the events, which are few; two queues on disk, one for spans and one for log
records, keep them until the receiver has taken them. Requests stay below the 4 MiB that receivers take by default. An
unusual chain that is about a service of which an incident is open carries that incident's id. When much fails at once
there is an event for some of the chains only: the incident says it for all, and the tracing backend is not flooded.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from collector_processor.config import OtlpExportConfig
from collector_processor.model import NONE, Incident, VerdictBatch
from collector_processor.rows import Rows, subject_record
from exporters.allowance import Allowance, most_severe
from exporters.backlog import Item
from exporters.otlp.events import Anomaly, EventWriter, verdict_attributes
from exporters.otlp.transport import Signal, Transport, connect
from exporters.protocol import Meter
from exporters.queue import Refused, RetryLater, WorkerQueue

OPEN_MAX = 10_000  # incidents that chains are told to belong to


class OtlpExporter:
    """Tee mode. `folder` is for what waits."""

    name = "otlp"

    def __init__(self, config: OtlpExportConfig, folder: Path, rows: Rows, meter: Meter, version: str) -> None:
        self._config = config
        self._rows = rows
        self._write = EventWriter(version)
        self._allowance = Allowance(config.events_per_s_max)
        self._open: dict[str, tuple[str, str | None]] = {}  # open incident -> tenant and service
        self._transport: Transport | None = None
        self._queues = {
            signal: WorkerQueue(
                f"{self.name}_{signal}",
                config.queue,
                meter,
                partial(self._deliver, signal),
                batch_bytes=config.request_bytes_max,
                path=folder / f"otlp_{signal}.queue",
            )
            for signal in self._queued()
        }

    def _queued(self) -> tuple[Signal, ...]:
        """What goes through queues of its own."""
        return ("spans", "logs") if self._config.span_events else ("logs",)

    def start(self) -> None:
        """Raises `OSError` when a certificate or the folder cannot be had; a receiver that is down is no error."""
        if self._transport is not None:
            return
        self._transport = connect(self._config)
        for queue in self._queues.values():
            queue.start()

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        anomalies = [self._anomaly(verdicts, chain, row) for chain, row in self._told(verdicts)]
        logs = [_item(each.row["verdict_id"], self._write.log_event(each)) for each in anomalies]
        logs += [self._incident(incident) for incident in incidents]
        if logs:
            self._queues["logs"].put(logs)
        whole = [each for each in anomalies if each.span_id and int(each.row["trace_id"], 16)]
        self._put_on_spans(whole)

    def _put_on_spans(self, anomalies: list[Anomaly]) -> None:
        """Sends events of spans."""
        if "spans" in self._queues and anomalies:
            events = [_item(each.row["verdict_id"], self._write.span_event(each)) for each in anomalies]
            self._queues["spans"].put(events)

    def _told(self, verdicts: VerdictBatch) -> list[tuple[int, dict[str, Any]]]:
        """The unusual chains there are events of: all, or when there are too many at once, the most severe."""
        chosen, left = most_severe(verdicts, self._allowance)
        if not chosen.size and not left:
            return []
        unusual = self._rows.unusual(verdicts)
        if left:
            for queue in self._queues.values():
                queue.drop("rate", left)
        return [(chain, unusual[chain]) for chain in chosen.tolist()]

    def _drop_over_rate(self, number: int) -> None:
        for queue in self._queues.values():
            queue.drop("rate", number)

    def _anomaly(self, verdicts: VerdictBatch, chain: int, row: dict[str, Any]) -> Anomaly:
        chains, record = verdicts.chains, subject_record(verdicts, chain)
        span_id, span_kind, ended_ns = 0, 0, int(chains.end_ns[chain])
        if record != NONE:
            span_id, span_kind = int(chains.span_id[record]), int(chains.kind[record]) - 1
            ended_ns = int(chains.time_ns[record]) + int(chains.duration[record])
        attributes = verdict_attributes(row, self._incident_of(row))
        return Anomaly(row, span_id, ended_ns, int(chains.closed_ns[chain]), attributes, span_kind)

    def flush(self, deadline_s: float) -> bool:
        end = time.monotonic() + deadline_s
        return all(queue.flush(max(end - time.monotonic(), 0.0)) for queue in self._queues.values())

    def checkpointed(self) -> None:
        for queue in self._queues.values():
            queue.checkpointed()

    def shutdown(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        for queue in self._queues.values():
            queue.shutdown(max(end - time.monotonic(), 0.0))
        if self._transport is not None:
            self._transport.close()

    def _incident_of(self, row: dict[str, Any]) -> str | None:
        """The open incident about one of the services that `row` is about; the oldest."""
        about = {(row["tenant"], finding["subject"]["service"]) for finding in row["findings"]}
        return next((incident for incident, subject in self._open.items() if subject in about), None)

    def _incident(self, incident: Incident) -> Item:
        if incident.state == "resolved":
            self._open.pop(incident.incident_id, None)
        elif len(self._open) < OPEN_MAX:
            self._open.setdefault(incident.incident_id, (incident.tenant, incident.subject["service"]))
        key = f"{incident.incident_id}:{incident.state}:{incident.severity}:{incident.chains}"
        return _item(key, self._write.incident_event(self._rows.incident(incident), incident.state))

    def _deliver(self, signal: Signal, items: list[Item]) -> int:
        if self._transport is None:
            raise RetryLater("closed")
        if items[0].size > self._config.request_bytes_max:
            raise Refused("too_large")
        return self._transport.send(signal, b"".join(item.payload for item in items))


def _item(key: str, request: bytes) -> Item:
    return Item(request, len(request), key)
