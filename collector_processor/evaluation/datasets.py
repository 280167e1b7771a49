"""Labelled public data sets behind one small interface: a name, what they are, and their cases in order of time.

How it works. `DATASETS` names an adapter for each set; `cases(folder)` reads the files under the data folder and yields
`Case`s. Sets without times get evenly spaced ones at the rate of the system they come from (HDFS: 22,421 blocks of 38.7
hours; OpenStack: 2,069 instances of 14.5 hours; a firm's purchases: some hundred a day), in the order of the file;
anomalous cases that a file holds at its end are spread over the second half by their content hash, so that nothing
depends on the order in which a set was written. OTLP recordings are sets too, but run through `evaluate` on their own
files.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from collector_processor.evaluation.cases import (
    CLIENT,
    INTERNAL,
    NS,
    SERVER,
    STEP_NS,
    Case,
    Log,
    Span,
    of_logs,
)

START_NS = 1_700_000_000 * NS
PURCHASES_PER_DAY = 100.0


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set. `known_for` says what it can show and what it cannot."""

    name: str
    folder: str
    known_for: str
    cases: Callable[[Path], Iterator[Case]]
    live: bool = False  # at its natural prevalence and times: judged in one pass, learning on, no label used

    def read(self, data: Path) -> list[Case]:
        """All cases under the folder `data`, by start.

        Raises:
            OSError: a file is missing or cannot be read.
        """
        return sorted(self.cases(data / self.folder), key=lambda case: (case.spans[0].start_ns, case.case_id))

    def present(self, data: Path) -> bool:
        return (data / self.folder).is_dir()


def evenly(cases: Iterator[Case], per_day: float = 1440.0) -> Iterator[Case]:
    """Cases without times: normal ones first in the file's order, the others among the second half of them.

    `per_day` is how many such cases a real system sees: the alert budget is shared by that many.
    """
    every_ns = int(86_400 * NS / per_day)
    every = list(cases)
    normal = [case for case in every if not case.anomalous]
    half = len(normal) // 2
    later = normal[half:] + [case for case in every if case.anomalous]
    later.sort(key=lambda case: hashlib.blake2b(case.case_id.encode(), digest_size=8).digest())
    for number, case in enumerate([*normal[:half], *later]):
        yield _moved(case, START_NS + number * every_ns)


def _moved(case: Case, start_ns: int) -> Case:
    shift = start_ns - case.spans[0].start_ns
    return replace(
        case,
        spans=tuple(replace(span, start_ns=span.start_ns + shift) for span in case.spans),
        logs=tuple(replace(log, time_ns=log.time_ns + shift) for log in case.logs),
    )


def sequences(service: str, data: str, templates: str, per_day: float) -> Callable[[Path], Iterator[Case]]:
    """Sessions as sequences of template numbers, in the form of `*_sequences.jsonl.gz`."""

    def cases(folder: Path) -> Iterator[Case]:
        texts = (folder / templates).read_text(encoding="utf-8").splitlines()
        with gzip.open(folder / data, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                events = [texts[int(event) - 1] for event in row["events"]]
                case = of_logs(str(row["session"]), row["label"] != "normal", events, service, START_NS)
                yield replace(case, type=row["type"])

    return lambda folder: evenly(cases(folder), per_day)


def processes(number: int) -> Callable[[Path], Iterator[Case]]:
    """One purchase-to-pay log: each activity a child span, who did it (and when, and where) the log lines in it."""

    def cases(folder: Path) -> Iterator[Case]:
        by_case: dict[str, list[dict[str, str]]] = defaultdict(list)
        with gzip.open(folder / f"p2p-0.3-{number}.csv.gz", "rt", encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                by_case[row["case_id"]].append(row)
        for case_id, rows in by_case.items():
            yield _process(f"p2p-{number}/{case_id}", rows)

    return lambda folder: evenly(cases(folder), PURCHASES_PER_DAY)


def _process(case_id: str, rows: list[dict[str, str]]) -> Case:
    spans = [Span("purchasing", "purchase", START_NS, STEP_NS * (len(rows) + 1))]
    logs = []
    for position, row in enumerate(rows[1:-1], 1):  # without the markers of start and end
        start = START_NS + STEP_NS * position
        spans.append(Span("purchasing", row["activity_name"], start, STEP_NS // 2, 0, SERVER))
        for number, key in enumerate(("user", "day", "company", "country")):
            if row.get(key):
                logs.append(Log(position, f"{key} is {row[key]}", start + number))
    first = rows[0]
    kind = first["anomaly_type"] if first["label"] != "normal" else None
    return Case(case_id, first["label"] != "normal", tuple(spans), tuple(logs), kind)


def robotshop(folder: Path) -> Iterator[Case]:
    """OpenTelemetry spans of Robot Shop as CSV; a trace is anomalous when one of its spans is."""
    traces: dict[str, list[dict[str, str]]] = defaultdict(list)
    with gzip.open(folder / "traces_labeled.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            traces[row["trace_id"]].append(row)
    for trace_id, rows in traces.items():
        rows.sort(key=lambda row: (int(row["start_time_ns"]), row["span_id"]))
        place = {row["span_id"]: position for position, row in enumerate(rows)}
        top = next((i for i, row in enumerate(rows) if row["parent_span_id"] not in place), 0)
        rows.insert(0, rows.pop(top))
        place = {row["span_id"]: position for position, row in enumerate(rows)}
        spans = tuple(
            Span(
                row["service_name"],
                row["span_name"],
                int(row["start_time_ns"]),
                int(row["duration_ns"]),
                place.get(row["parent_span_id"]),
                int(row["span_kind"] or 0),
                int(row["span_status"] or 0),
            )
            for row in rows
        )
        types = sorted({row["anomaly_type"] for row in rows} - {"none"})
        yield Case(trace_id, bool(types), spans, type=types[0] if types else None)


def nezha(folder: Path) -> Iterator[Case]:
    """TrainTicket of 2023-01-30 in its source's form: spans and logs with trace ids, labels per trace."""
    labels: dict[str, dict[str, str]] = {}
    with gzip.open(folder / "tt_trace_labels.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["eval"] != "exclude":
                labels.setdefault(row["trace_id"], row)
    faults = {f["fault_id"]: f["fault_type"] for f in json.loads((folder / "tt_faults.json").read_text("utf-8"))}
    spans: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    logs: dict[str, dict[tuple[str, int, str], dict[str, Any]]] = defaultdict(dict)
    with gzip.open(folder / "tt_2023-01-30.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["kind"] == "span":
                spans[row["trace_id"]][row["span_id"]] = row
            else:
                logs[row["trace_id"]][row["span_id"], row["time_ns"], row["body"]] = row
    for trace_id, label in labels.items():
        if trace_id in spans:
            kind = faults.get(label["fault_id"]) if label["eval"] == "pos" else None
            yield _nezha_case(trace_id, label["eval"] == "pos", kind, spans[trace_id], list(logs[trace_id].values()))


def _nezha_case(
    trace_id: str, anomalous: bool, kind: str | None, by_id: dict[str, dict[str, Any]], logs: list[dict[str, Any]]
) -> Case:
    rows = sorted(by_id.values(), key=lambda r: (r["parent_span_id"] is not None, r["start_ns"], r["span_id"]))
    place = {row["span_id"]: position for position, row in enumerate(rows)}
    calls_out = {r["parent_span_id"] for r in rows if r["service"] != by_id.get(r["parent_span_id"], r)["service"]}
    spans = tuple(
        Span(
            r["service"],
            r["operation"],
            r["start_ns"],
            r["end_ns"] - r["start_ns"],
            place.get(r["parent_span_id"]),
            _kind(r, by_id, calls_out),
            instance=r["pod"],
        )
        for r in rows
    )
    severities = {"ERROR": 17, "WARN": 13}
    lines = tuple(  # 79 multi-line errors carry a source year of 0001: they get their span's time
        Log(
            place[r["span_id"]],
            r["body"],
            r["time_ns"] if r["time_ns"] > 0 else by_id[r["span_id"]]["start_ns"],
            severities.get(r["severity"], 9),
        )
        for r in sorted(logs, key=lambda r: (r["time_ns"], r["body"]))
    )
    return Case(trace_id, anomalous, spans, lines, kind)


def _kind(row: dict[str, Any], by_id: dict[str, dict[str, Any]], calls_out: set[str]) -> int:
    """The span kind, which the source does not have: entered from elsewhere, calling elsewhere, or neither."""
    parent = by_id.get(row["parent_span_id"])
    if parent is None or parent["service"] != row["service"]:
        return SERVER
    return CLIENT if row["span_id"] in calls_out else INTERNAL


def hdfs_raw(folder: Path) -> Iterator[Case]:
    """HDFS lines as they were written, by block. Needs pyarrow."""
    from pyarrow import parquet

    with gzip.open(folder / "hdfs_labels.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        labels = {row[0]: row[1].lower() != "normal" for row in csv.reader(lines)}
    columns = ["timestamp", "level", "component", "message", "block_id"]
    table = parquet.read_table(folder / "hdfs_events.parquet", columns=columns).to_pydict()
    blocks: dict[str, list[int]] = defaultdict(list)
    for row, block in enumerate(table["block_id"]):
        blocks[block].append(row)
    for block, rows in blocks.items():
        if block not in labels:
            continue
        times = [_ns(table["timestamp"][row]) for row in rows]
        span = Span("hdfs", "block", times[0], max(times) - times[0] + NS)
        logs = tuple(
            Log(0, table["message"][row], at, 13 if table["level"][row] == "WARN" else 9)
            for row, at in zip(rows, times, strict=True)
        )
        yield Case(block, labels[block], (span,), logs)


def _ns(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp() * 1000) * 1_000_000


DATASETS: dict[str, Dataset] = {
    found.name: found
    for found in (
        Dataset(
            "hdfs",
            "hdfs_sequences",
            "block life cycles; short, few templates: trivial detectors do well",
            sequences("hdfs", "hdfs_xu_sequences.jsonl.gz", "HDFS_templates.csv", 14_000),
        ),
        Dataset("hdfs_raw", "hdfs_2pct_raw", "the same system as raw lines, at its natural 3 %", hdfs_raw),
        Dataset("hdfs_live", "hdfs_2pct_raw", "the same, learned from as it comes, anomalies too", hdfs_raw, live=True),
        Dataset(
            "hadoop",
            "hadoop_sequences",
            "83 % anomalous: flagging everything is hard to beat; a regression gate",
            sequences("hadoop", "hadoop_sequences.jsonl.gz", "Hadoop_templates.csv", 1_000),
        ),
        Dataset(
            "openstack",
            "openstack_sequences",
            "anomalies that sequences do not show: nothing may be claimed from it",
            sequences("nova", "openstack_loghub_sequences.jsonl.gz", "OpenStack_templates.csv", 3_400),
        ),
        *(
            Dataset(
                f"p2p-{number}",
                "p2p_process",
                "a business process (synthetic): skipped, repeated, early, late, inserted steps, wrong users",
                processes(number),
            )
            for number in (1, 2, 3, 4)
        ),
        Dataset(
            "robotshop", "robotshop_otel_traces", "112 labelled spans by intent of a load script", robotshop, live=True
        ),
        Dataset(
            "nezha_tt", "nezha_tt", "TrainTicket traces with logs, chain labels derived from faults", nezha, live=True
        ),
    )
}
