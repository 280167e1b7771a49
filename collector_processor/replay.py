"""Recorded OTLP through the engine at full speed, in event time: `spanchain replay`.

How it works. The reader merges the files by the time of their requests and gives each request its own time as arrival
time; the engine then behaves as it would have behaved then. Verdicts and incidents are written as they come. At the end
every record is accounted for: it is in a closed chain, or it was rejected, evicted, late, a copy, an orphan, or one too
many for its chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson

from collector_processor.config import Config, FileExportConfig
from collector_processor.decide.verdicts import incident_row, verdict_rows
from collector_processor.decode import otlp_json
from collector_processor.engine import Engine, Output
from collector_processor.ingest.recording import Progress as Reading
from collector_processor.ingest.recording import open_recording
from collector_processor.join.joiner import DEFAULT_TENANT
from collector_processor.model import Incident, Severity, Signal, VerdictBatch
from collector_processor.rows import Rows
from exporters.file.exporter import FileExporter
from exporters.prometheus.telemetry import Telemetry

Watch = Callable[[VerdictBatch, list[Incident]], None]
Progress = Callable[[int], None]


@dataclass(slots=True)
class Summary:
    """What became of every record. `records` is the sum of `chain_records`, which are in verdicts, and of what is told
    from `rejected` on; but lines and requests that could not be read are rejected too, and nobody knows how many
    records they held. `unread` names the first of those: file, place, and what is wrong."""

    records: int
    spans: int
    logs: int
    chains: int
    unusual: int
    incidents: int
    chain_records: int
    rejected: dict[str, int]
    unread: list[str]
    evicted: dict[str, int]
    orphans: int
    late: int
    duplicates: int
    oversize: int
    accounted: bool
    first_unix_nano: int
    last_unix_nano: int


class Replay:
    """One run of one engine over recorded files."""

    def __init__(self, config: Config, watch: Watch | None = None) -> None:
        """watch: sees every batch of verdicts and the incidents that changed with it."""
        self.engine = Engine(config)
        self._watch = watch
        self._chains = 0
        self._unusual = 0
        self._first_ns = 0
        self.incidents: dict[str, Incident] = {}

    def run(self, paths: Iterable[Path], progress: Progress | None = None) -> Summary:
        """Replays `paths` to their end. progress: told the bytes of the files that are read so far, now and then.

        Raises:
            OSError: a file cannot be read.
        """
        bytes_max = self.engine.config.receivers.limits.request_bytes_max
        recording = open_recording(paths, otlp_json.to_protobuf, tenant=DEFAULT_TENANT, bytes_max=bytes_max)
        for count, (payload, reading) in enumerate(recording):
            self._first_ns = self._first_ns or payload.arrival_ns
            self._take(self.engine.process((payload,), payload.arrival_ns))
            if progress is not None and count % 64 == 0:
                progress(reading.bytes_read)
        self._take(self.engine.flush())
        return self._summary(recording.progress)

    def _take(self, output: Output) -> None:
        for incident in output.incidents:
            self.incidents[incident.incident_id] = incident
        for verdicts in output.verdicts:
            self._chains += len(verdicts)
            self._unusual += int(np.count_nonzero(verdicts.severity != Severity.NONE))
        if self._watch is not None and (output.verdicts or output.incidents):
            batches = output.verdicts or [self.engine.no_verdicts()]
            for verdicts in batches[:-1]:
                self._watch(verdicts, [])
            self._watch(batches[-1], output.incidents)

    def _summary(self, reading: Reading) -> Summary:
        engine = self.engine
        joined = engine.joiner.counters()
        rejected = dict(reading.rejected)
        for (_, reason), count in engine.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
        spans = engine.received[Signal.TRACES]
        logs = engine.received[Signal.LOGS]
        late = joined["late_spans"] + joined["late_logs"]
        read = sum(rejected.values()) - sum(reading.rejected.values())
        duplicates = joined["duplicate_spans"] + joined["duplicate_logs"]
        gone = read + joined["orphans"] + late + duplicates + joined["oversize"]
        return Summary(
            records=spans + logs,
            spans=spans,
            logs=logs,
            chains=self._chains,
            unusual=self._unusual,
            incidents=len(self.incidents),
            chain_records=engine.records_closed,
            rejected=rejected,
            unread=reading.messages,
            evicted=dict(engine.joiner.evicted),
            orphans=joined["orphans"],
            late=late,
            duplicates=duplicates,
            oversize=joined["oversize"],
            accounted=spans + logs == engine.records_closed + gone,
            first_unix_nano=self._first_ns,
            last_unix_nano=engine.now_ns,
        )


def replay_to(
    folder: Path, paths: Iterable[Path], config: Config, which: str, progress: Progress | None = None
) -> Summary:
    """Replays into `folder`: verdicts.jsonl (unless `which` is none), incidents.jsonl, summary.json.

    which: `unusual`, `all` or `none`.

    Raises:
        OSError: a file cannot be read or written.
    """
    section = FileExportConfig.model_validate({"enabled": True, "verdicts": which})
    exporter = FileExporter(
        section, folder, Rows(verdict_rows, incident_row), Telemetry("replay"), fresh=True, wait=True
    )
    exporter.start()
    try:
        summary = Replay(config, exporter.export).run(paths, progress)
    finally:
        exporter.shutdown(60)
    (folder / "summary.json").write_bytes(orjson.dumps(asdict(summary), option=orjson.OPT_INDENT_2) + b"\n")
    return summary
