"""Incidents against injected faults: found or not, when, and who was named.

How it works. A fault is found when an incident is detected between `early_s` before its start and 60 s after its end,
and one of its first three suspects is the faulted service. Root cause is judged on the first incident of that window
alone, at its own detection time. An incident is false when it was detected outside every window, each reaching until
120 s after its end. There is no point adjustment: one incident that stays open over two faults has found at most the
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from collector_processor.evaluation.labels import NS, Fault
from collector_processor.model import Incident

SUSPECTS_THAT_COUNT = 3


@dataclass(frozen=True, slots=True)
class FaultResult:
    """What became of one fault."""

    fault: Fault
    incidents: int  # detected in its window
    found: bool
    first_rank: int | None  # of the service among the first incident's suspects, from 1; None: not named or no incident
    found_after_s: float | None  # from the fault's start to the first incident that names it; never negative
    first_suspects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FaultReport:
    """All faults of a recording. `hours` are observed hours outside fault windows, `covered_hours` all observed."""

    results: tuple[FaultResult, ...]
    incidents: int
    false: tuple[Incident, ...]
    hours: float
    covered_hours: float

    @property
    def found(self) -> int:
        return sum(result.found for result in self.results)

    @property
    def recall(self) -> float:
        """Share of the faults that were found; 0 without faults."""
        return self.found / max(1, len(self.results))

    @property
    def precision(self) -> float:
        """Share of the incidents that were not false; 0 without incidents."""
        return (self.incidents - len(self.false)) / max(1, self.incidents)

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def false_per_hour(self) -> float:
        return len(self.false) / self.hours if self.hours > 0 else float(len(self.false) > 0)

    @property
    def false_per_covered_hour(self) -> float:
        return len(self.false) / self.covered_hours if self.covered_hours > 0 else float(len(self.false) > 0)

    @property
    def time_to_detect_s(self) -> float | None:
        """Median over the faults found."""
        times = [r.found_after_s for r in self.results if r.found_after_s is not None]
        return median(times) if times else None

    def named_first(self, k: int) -> float | None:
        """Share of the faults found whose first incident has the service among its first k suspects."""
        found = [r for r in self.results if r.found]
        return sum((r.first_rank or k + 1) <= k for r in found) / len(found) if found else None

    def by_type(self) -> dict[str, tuple[int, int]]:
        """Fault type -> (found, all)."""
        out: dict[str, tuple[int, int]] = {}
        for result in self.results:
            found, every = out.get(result.fault.type, (0, 0))
            out[result.fault.type] = (found + result.found, every + 1)
        return out


def judge(incidents: Sequence[Incident], faults: Sequence[Fault], minutes: Iterable[int]) -> FaultReport:
    """The report on `incidents`, each given once; `minutes` since 1970 are those in which chains began."""
    ordered = sorted(incidents, key=lambda incident: (incident.detected_unix_nano, incident.incident_id))
    results = tuple(_result(fault, ordered) for fault in faults)
    false = tuple(i for i in ordered if not any(fault.excuses(i.detected_unix_nano) for fault in faults))
    covered = set(minutes)
    outside = sum(not any(fault.excuses((minute * 60 + 30) * NS) for fault in faults) for minute in covered)
    return FaultReport(results, len(ordered), false, outside / 60.0, len(covered) / 60.0)


def suspects(incident: Incident) -> tuple[str, ...]:
    """The suspected services, most likely first, each once; the subject's when there are no suspects."""
    named = [s.get("service") for s in incident.suspects] or [incident.subject.get("service")]
    return tuple(dict.fromkeys(name for name in named if name))


def _result(fault: Fault, incidents: Sequence[Incident]) -> FaultResult:
    hits = [incident for incident in incidents if fault.detects(incident.detected_unix_nano)]
    named = [suspects(hit) for hit in hits]
    naming = [i for i, names in enumerate(named) if fault.service in names[:SUSPECTS_THAT_COUNT]]
    first = named[0] if named else ()
    after = max(0.0, (hits[naming[0]].detected_unix_nano - fault.start_ns) / NS) if naming else None
    rank = first.index(fault.service) + 1 if fault.service in first else None
    return FaultResult(fault, len(hits), bool(naming), rank, after, first)
