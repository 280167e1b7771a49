"""Labels of recorded traffic: which chains are anomalous, and which faults were injected when and where.

How it works. JSON lines in two forms, in one file or apart: `{"trace_id", "anomalous"}` for a chain, and `{"fault_id",
"start_unix_nano", "end_unix_nano", "service", "type"}` for a fault, with `early_s` when its injection may have been
logged late. Other keys are ignored, a line that is neither form is an error with its number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

NS = 1_000_000_000
EARLY_S = 20.0  # an injection may be logged late: an alarm this long before a fault's start is not false
LATE_S = 60.0  # a detection this long after a fault's end still counts as having found it
FALSE_AFTER_S = 120.0  # and from this long after it on, it is false


class LabelsError(ValueError):
    """The labels cannot be read; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault. Times in ns since 1970."""

    fault_id: str
    start_ns: int
    end_ns: int
    service: str
    type: str
    early_s: float = EARLY_S

    def detects(self, at_ns: int) -> bool:
        """Whether an incident detected at `at_ns` may be this fault's."""
        return self.start_ns - self.early_s * NS <= at_ns <= self.end_ns + LATE_S * NS

    def excuses(self, at_ns: int) -> bool:
        """Whether an incident detected at `at_ns` is not false because of this fault."""
        return self.start_ns - self.early_s * NS <= at_ns <= self.end_ns + FALSE_AFTER_S * NS


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of one recording."""

    chains: dict[str, bool] = field(default_factory=dict)  # trace id -> anomalous
    faults: tuple[Fault, ...] = ()  # by start

    def fault_at(self, at_ns: int) -> Fault | None:
        """The fault that ran at `at_ns`, the one begun last when several did."""
        running = [fault for fault in self.faults if fault.start_ns <= at_ns <= fault.end_ns]
        return running[-1] if running else None


def load(paths: Iterable[Path]) -> Labels:
    """The labels in `paths`.

    Raises:
        LabelsError: a line is not JSON or of neither form.
        OSError: a file cannot be read.
    """
    chains: dict[str, bool] = {}
    faults: list[Fault] = []
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
                if "fault_id" in row:
                    faults.append(_fault(row))
                else:
                    chains[str(row["trace_id"]).lower()] = bool(row["anomalous"])
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise LabelsError(f"{path}:{number}: not a label of a chain or a fault ({error})") from error
    return Labels(chains, tuple(sorted(faults, key=lambda fault: fault.start_ns)))


def _fault(row: dict[str, Any]) -> Fault:
    return Fault(
        str(row["fault_id"]),
        int(row["start_unix_nano"]),
        int(row["end_unix_nano"]),
        str(row["service"]),
        str(row.get("type", "fault")),
        float(row.get("early_s", EARLY_S)),
    )
