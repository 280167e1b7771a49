"""What single chains say again and again: violated rules, unknown contents and orders, counted per subject.

How it works. Detectors that look at whole chains have no windows of their own, so their findings in unusual chains are
counted here, per subject and epoch, over one window. A subject that comes more often than its past allows becomes a
finding about the window: the p-value is the Poisson tail of the count at the subject's own rate, which is learned from
epochs that leave the window quietly. A rule whose violation is critical speaks at its first violation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collector_processor.decide import explain
from collector_processor.model import FINDING, I64, NONE, Findings, Kind, VerdictBatch, no_findings

KINDS = np.zeros(len(Kind), np.bool_)  # that no detector watches in windows
KINDS[[Kind.RULE_VIOLATION, Kind.UNUSUAL_CONTENT, Kind.UNLIKELY_SEQUENCE]] = True
SUBJECTS_MAX = 4096
RATE_KEPT = 0.995  # what an epoch leaves of a subject's rate
RATE_PRIOR = 0.05  # chains an epoch that are believed before anything is known
RATE_FORGOTTEN = RATE_PRIOR / 100  # below which nothing is kept of a subject that comes no more
P_CRITICAL = 1e-30  # of a critical rule
IDENTITY = ("detector", "kind", "level", "service", "event", "caller", "detail")

Subject = tuple[int, ...]  # the fields of IDENTITY


@dataclass(slots=True)
class Count:
    """How often one subject came."""

    ring: list[int]  # chains per epoch of the window
    rate: float = RATE_PRIOR
    critical: bool = False
    total: int = 0  # of the ring
    row: Any = None  # the last finding
    evidence: dict[str, Any] = field(default_factory=dict)


class Repeats:
    """Counts of all subjects; the least recently seen go when there are more than SUBJECTS_MAX."""

    def __init__(self, columns: int, repeat_min: int) -> None:
        self.columns, self.repeat_min = columns, repeat_min
        self.column = 0
        self.counts: dict[Subject, Count] = {}

    def observe(self, verdicts: VerdictBatch, rows: I64) -> None:
        """Counts the chains of `verdicts` with the findings `rows`, each subject once a chain."""
        found = verdicts.findings
        seen: set[tuple[int, Subject]] = set()
        for i in rows.tolist():
            row = found[i]
            subject = tuple(int(row[name]) for name in IDENTITY)
            chain = int(row["chain"])
            if (chain, subject) in seen:
                continue
            seen.add((chain, subject))
            count = self.counts.pop(subject, None) or Count([0] * self.columns)
            self.counts[subject] = count
            count.ring[self.column] += 1
            count.total += 1
            count.row = found.take([i])[0]
            count.row["chain"] = NONE  # a number within this batch, which says nothing later
            count.evidence = dict(verdicts.evidence.get(i, count.evidence))
            count.critical = count.evidence.get("severity") == "critical"
        while len(self.counts) > SUBJECTS_MAX:
            del self.counts[next(iter(self.counts))]

    def advance(self) -> tuple[Findings, list[dict[str, Any]]]:
        """Findings about the window that ends now, with their evidence; then opens the next epoch."""
        self.column = (self.column + 1) % self.columns
        told: list[tuple[Any, dict[str, Any], float, float, int]] = []
        gone = []
        for subject, count in self.counts.items():
            if count.total:
                expected = count.rate * self.columns
                p = P_CRITICAL if count.critical else 1.0
                if count.total >= self.repeat_min:
                    p = min(p, poisson_tail(count.total, expected))
                if p < 1.0:
                    told.append((count.row, count.evidence, p, expected, count.total))
                self._turn(count)
            else:
                count.rate *= RATE_KEPT
                if count.rate < RATE_FORGOTTEN:
                    gone.append(subject)
        for subject in gone:
            del self.counts[subject]
        if not told:
            return no_findings(), []
        found, evidence, *numbers = zip(*told, strict=True)
        rows = np.array(list(found), FINDING)
        rows["p"], rows["expected"], rows["actual"] = numbers
        return rows, list(evidence)

    def _turn(self, count: Count) -> None:
        """The oldest epoch teaches the rate, as far as it is not exceeded, and is cleared."""
        leaving, count.ring[self.column] = count.ring[self.column], 0
        count.total -= leaving
        taught = min(float(leaving), 1.0 + 3.0 * count.rate)
        count.rate = count.rate * RATE_KEPT + (1.0 - RATE_KEPT) * taught

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "column": self.column,
            "counts": [
                {
                    "ring": list(c.ring),
                    "rate": c.rate,
                    "critical": c.critical,
                    "row": np.array([c.row], FINDING),
                    "evidence": explain.cleaned(c.evidence),
                }
                for c in self.counts.values()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.column = int(state["column"])
        self.counts = {}
        for saved in state["counts"]:
            row = np.array(saved["row"], FINDING)[0]
            subject = tuple(int(row[name]) for name in IDENTITY)
            ring = [int(n) for n in saved["ring"]]
            self.counts[subject] = Count(
                ring, float(saved["rate"]), bool(saved["critical"]), sum(ring), row, saved["evidence"]
            )


def poisson_tail(count: int, rate: float) -> float:
    """A bound on P(at least `count`) at the expectation `rate` (Chernoff); 1 when it is not exceeded."""
    if count <= rate:
        return 1.0
    return math.exp(-(count * math.log(count / rate) - count + rate))
