"""Real recordings told otherwise: half of the traces, other names, no span kinds, other durations, another hour.

How it works. Each change rewrites the JSON requests of a recording and its labels; the engine reads the result once, as
shipped. What a fault looks like is still there, so nearly as many must be found: a method that holds on by names, by
the absolute time, or by being just at its limits would fall here.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from collector_processor.config import Config
from collector_processor.evaluation.labels import NS
from collector_processor.evaluation.labels import load as load_labels
from collector_processor.evaluation.run import Report, evaluate

pytestmark = [pytest.mark.data, pytest.mark.slow]

Record = dict[str, Any]
TIMES = ("startTimeUnixNano", "endTimeUnixNano", "timeUnixNano", "observedTimeUnixNano")


def same(name: str) -> str:
    return name


def hashed(name: str) -> str:
    return "n" + hashlib.sha256(name.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Change:
    """How a recording is told otherwise."""

    keep: Callable[[str], bool] = lambda trace_id: True
    name: Callable[[str], str] = same
    logs: bool = True
    kinds: bool = True
    stretch: float = 1.0  # of each trace's times, about its begin
    shift_s: int = 0


CHANGES = {
    "half of the traces": Change(keep=lambda trace_id: int(trace_id[-2:], 16) % 2 == 0),
    "other names": Change(name=hashed),
    "no span kinds": Change(kinds=False),
    "twice as slow": Change(stretch=2.0),
    "three times as fast": Change(stretch=1 / 3),
    "another hour": Change(shift_s=7 * 3600 + 780),
    "no logs": Change(logs=False),
}


@dataclass
class Rewriter:
    """Applies one change."""

    change: Change
    begins: dict[str, int] = field(default_factory=dict)  # of each trace
    services: set[str] = field(default_factory=set)  # whose names logs may mention

    @cached_property
    def said(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.services, key=lambda name: (-len(name), name)))))

    def time(self, trace_id: str, ns: int) -> int:
        begin = self.begins.get(trace_id, ns)
        return begin + int((ns - begin) * self.change.stretch) + self.change.shift_s * NS

    def rewrite(self, request: Record) -> bytes:
        for outer, scopes, records in (
            ("resourceSpans", "scopeSpans", "spans"),
            ("resourceLogs", "scopeLogs", "logRecords"),
        ):
            for resource in request.get(outer, []):
                for attribute in resource["resource"].get("attributes", []):
                    if attribute["key"] == "service.name":
                        attribute["value"]["stringValue"] = self.change.name(attribute["value"]["stringValue"])
                for scope in resource[scopes]:
                    scope[records] = [self._record(r) for r in scope[records] if self.change.keep(r["traceId"])]
        return orjson.dumps(request)

    def _record(self, record: Record) -> Record:
        for key in TIMES:
            if key in record:
                record[key] = str(self.time(record["traceId"], int(record[key])))
        body = record.get("body", {})
        if "stringValue" in body and self.services:
            body["stringValue"] = self.said.sub(lambda word: self.change.name(word[0]), body["stringValue"])
        if "name" in record:
            record["name"] = self.change.name(record["name"])
            if not self.change.kinds:
                record.pop("kind", None)
        return record


def requests(path: Path) -> list[bytes]:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
        return [line for line in io.BufferedReader(stream) if line.strip()]


def told_otherwise(source: Path, target: Path, change: Change) -> Report:
    """The report on the recording `source` with `change`, which is written to `target`."""
    rewriter = Rewriter(change)
    traces, logs = requests(source / "traces.jsonl.zst"), source / "logs.jsonl.zst"
    for line in traces if change.stretch != 1.0 or change.name is not same else ():
        for resource in orjson.loads(line)["resourceSpans"]:
            attributes = resource["resource"]["attributes"]
            rewriter.services.update(a["value"]["stringValue"] for a in attributes if a["key"] == "service.name")
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    at = int(span["startTimeUnixNano"])
                    rewriter.begins[span["traceId"]] = min(at, rewriter.begins.get(span["traceId"], at))
    files = [("traces.jsonl", traces)]
    if change.logs and logs.exists():
        files.append(("logs.jsonl", requests(logs)))
    for name, lines in files:
        (target / name).write_bytes(b"\n".join(rewriter.rewrite(orjson.loads(line)) for line in lines) + b"\n")
    labels = []
    for line in (source / "labels.jsonl").read_bytes().splitlines():
        row = orjson.loads(line)
        if "fault_id" in row:
            row["service"] = change.name(row["service"])
            for key in ("start_unix_nano", "end_unix_nano"):
                row[key] += change.shift_s * NS
            labels.append(orjson.dumps(row))
    (target / "labels.jsonl").write_bytes(b"\n".join(labels) + b"\n")
    return evaluate(
        [target / name for name, _ in files], load_labels([target / "labels.jsonl"]), Config(), rivals=False
    )


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "no logs"])
def test_what_is_told_otherwise_is_found_as_well(data_dir: Path, tmp_path: Path, name: str) -> None:
    """Seven of ten, five with half of the traces: one of ten may fall to the limits of so few chains.

    Of those found one may come after an alarm about another service, which with other names is so."""
    report = told_otherwise(data_dir / "recordings" / "nezha_tt_0129_part", tmp_path, CHANGES[name]).faults
    assert report is not None
    assert report.found >= (5 if CHANGES[name].keep("01") is False else 7)
    assert report.named_first(3) is not None
    assert report.named_first(3) >= 1.0 - 1.0 / report.found
    assert len(report.false) <= 1


def test_network_faults_need_no_logs(data_dir: Path, tmp_path: Path) -> None:
    report = told_otherwise(data_dir / "recordings" / "nezha_tt_0130", tmp_path, CHANGES["no logs"]).faults
    assert report is not None
    assert report.found >= 15
    assert len(report.false) <= 1
