"""A small labelled recording, written the way a Collector's file exporter writes protobuf."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collector_processor.evaluation import cases
from collector_processor.evaluation.cases import NS, SERVER, Case, Log, Span

START = 1_700_000_000 * NS
FAULT_S = (900, 1020)
LENGTH_S = 1200


def payment(number: int, rng: np.random.Generator, broken: bool) -> Case:
    """One payment a second; while a fault runs the ledger is slow and logs an error."""
    start = START + number * NS

    def ns(typical_ms: float) -> int:
        return int(typical_ms * 1e6 * math.exp(rng.normal(0, 0.15)))

    book = ns(2000 if broken else 8)
    spans = (
        Span("gateway", "pay", start, book + 60_000_000),
        Span("risk", "check", start + 5_000_000, ns(10), 0, SERVER),
        Span("ledger", "book", start + 40_000_000, book, 0, SERVER),
    )
    text = "posting failed: connection reset" if broken else "posted entry"
    logs = (Log(1, "checked order", start + 6_000_000), Log(2, text, start + 41_000_000, 17 if broken else 9))
    return Case(f"{number:032x}", broken, spans, logs, "slow" if broken else None)


def write(
    folder: Path, length_s: int = LENGTH_S, faults_s: Sequence[tuple[int, int]] = (FAULT_S,), labelled_from_s: int = 601
) -> tuple[Path, Path]:
    """Writes `otlp` and `labels.jsonl` into `folder`; returns both paths."""
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = [
        {
            "fault_id": f"f{number}",
            "start_unix_nano": START + begin * NS,
            "end_unix_nano": START + end * NS,
            "service": "ledger",
            "type": "slow",
        }
        for number, (begin, end) in enumerate(faults_s, 1)
    ]
    with (folder / "otlp").open("wb") as out:
        for number in range(length_s):
            case = payment(number, rng, any(begin <= number <= end for begin, end in faults_s))
            for request in (cases._traces(case), cases._logs(case)):
                data = request.SerializeToString()
                out.write(len(data).to_bytes(4, "big") + data)
            if number >= labelled_from_s:
                lines.append({"trace_id": case.case_id, "anomalous": case.anomalous})
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "otlp", folder / "labels.jsonl"
