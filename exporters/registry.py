"""Which exporters there are: name -> how to build it. The name is also its section in `config.exporters`.

How it works. What needs a client library of its own is imported when it is built: a start does not pay for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collector_processor.config import ExportersConfig
from collector_processor.rows import Rows
from exporters.file.exporter import FileExporter
from exporters.prometheus.exporter import PrometheusExporter
from exporters.prometheus.telemetry import Telemetry
from exporters.protocol import Exporter


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What exporters are built from."""

    config: ExportersConfig
    rows: Rows
    telemetry: Telemetry  # also where the rest of the service counts
    data: Path  # the folder that the service may write to
    version: str  # of the program

    @property
    def queues(self) -> Path:
        """The folder in which items wait for sinks that are down."""
        return self.data / "queues"


def _otlp(s: Surroundings) -> Exporter:
    from exporters.otlp.exporter import OtlpExporter
    from exporters.otlp.inline import InlineExporter

    make = InlineExporter if s.config.otlp.mode == "inline" else OtlpExporter
    return make(s.config.otlp, s.queues, s.rows, s.telemetry, s.version)


def _alertmanager(s: Surroundings) -> Exporter:
    from exporters.alertmanager.exporter import AlertmanagerExporter

    return AlertmanagerExporter(s.config.alertmanager, s.queues, s.rows, s.telemetry)


def _store(s: Surroundings) -> Exporter:
    from exporters.store.exporter import StoreExporter

    return StoreExporter(s.config.store, s.data, s.queues, s.rows, s.telemetry)


EXPORTERS: dict[str, Callable[[Surroundings], Exporter]] = {
    "prometheus": lambda s: PrometheusExporter(s.config.prometheus, s.telemetry),
    "otlp": _otlp,
    "alertmanager": _alertmanager,
    "file": lambda s: FileExporter(s.config.file, s.data, s.rows, s.telemetry),
    "store": _store,
}


def build(surroundings: Surroundings) -> dict[str, Exporter]:
    """The exporters that the config enables, by name, in the order of the table; not yet started."""
    return {name: make(surroundings) for name, make in EXPORTERS.items() if getattr(surroundings.config, name).enabled}
