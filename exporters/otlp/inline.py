"""Inline mode: the originals go out through spanchain, with the events on their spans.

How it works. Log events are sent as in tee mode. The event of a span becomes a note for the forwarder (`forward.py`),
which has the journal and sends everything: it writes the event into the span when that passes, or sends the child span
of tee mode when the span had gone before its verdict was there.
"""

from __future__ import annotations

import time
from pathlib import Path

from collector_processor.config import OtlpExportConfig
from collector_processor.model import Incident, VerdictBatch
from collector_processor.rows import Rows
from exporters.forwarding import Source
from exporters.otlp.events import Anomaly
from exporters.otlp.exporter import OtlpExporter
from exporters.otlp.forward import Forwarder
from exporters.otlp.notes import Note
from exporters.otlp.transport import Signal
from exporters.protocol import Meter


class InlineExporter(OtlpExporter):
    """Inline mode. `folder` is for what waits; `attach` comes before `start`."""

    def __init__(self, config: OtlpExportConfig, folder: Path, rows: Rows, meter: Meter, version: str) -> None:
        super().__init__(config, folder, rows, meter, version)
        self._forwarder = Forwarder(config, folder / "otlp_forward.db", meter)

    def _queued(self) -> tuple[Signal, ...]:
        return ("logs",)

    def attach(self, source: Source) -> None:
        self._forwarder.attach(source)

    def start(self) -> None:
        super().start()
        if self._transport is not None:
            self._forwarder.start(self._transport)

    def advance(self, now_ns: int) -> None:
        self._forwarder.advance(now_ns)

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        super().export(verdicts, incidents)
        self._forwarder.judged(verdicts.chains)  # after its notes: whoever sees a trace judged finds its note

    def _put_on_spans(self, anomalies: list[Anomaly]) -> None:
        self._forwarder.put([self._note(anomaly) for anomaly in anomalies])

    def _note(self, anomaly: Anomaly) -> Note:
        row = anomaly.row
        event, child = self._write.event(anomaly)
        if not self._config.span_events:
            child = b""
        span_id = anomaly.span_id.to_bytes(8, "big")
        trace_id = bytes.fromhex(row["trace_id"])
        return Note(row["verdict_id"], row["tenant"], trace_id, span_id, anomaly.span_kind, event, child)

    def _drop_over_rate(self, number: int) -> None:
        super()._drop_over_rate(number)
        self._forwarder.drop("rate", number, self._forwarder.notes_name)

    def flush(self, deadline_s: float) -> bool:
        end = time.monotonic() + deadline_s
        return self._forwarder.flush(deadline_s) and super().flush(max(end - time.monotonic(), 0.0))

    def checkpointed(self) -> None:
        self._forwarder.checkpointed()
        super().checkpointed()

    def shutdown(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        self._forwarder.shutdown(deadline_s)
        super().shutdown(max(end - time.monotonic(), 0.0))
