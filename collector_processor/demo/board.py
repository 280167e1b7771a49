"""The scoreboard of a demo: what was injected, what the service said, and which belongs to which.

How it works. A fault is found by an incident that comes while the fault is on or shortly after and has the broken
service among its first three suspects; it is named when the service is the first of them. An incident that comes while
nothing is or was wrong is false. The board is told incidents as they come and judges by the time at which it was told,
so what it shows is what somebody on call would have known by then. It decides nothing for the service and tells it
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from collector_processor.model import Incident
from collector_processor.simulator.faults import SECOND_NS, Fault

SUSPECTS: Final = 3
GRACE_S: Final = 8.0
SEVERITIES: Final = ("none", "info", "warning", "critical")


def suspects(incident: Incident) -> list[str]:
    """Suspected services, most likely first, each once."""
    named = [str(suspect.get("service") or "") for suspect in incident.suspects]
    named = named or [incident.subject.get("service") or ""]
    return [service for service in dict.fromkeys(named) if service]


def worse(left: str, right: str) -> bool:
    """Whether severity `left` is above `right`."""
    return SEVERITIES.index(left) > SEVERITIES.index(right)


@dataclass(slots=True)
class Entry:
    """One injected fault and what was said about it."""

    fault: Fault
    incidents: set[str] = field(default_factory=set)
    """Ids of those that came in the fault's time."""
    found_ns: int | None = None
    named_ns: int | None = None
    named_first: bool | None = None
    """Whether the very first incident in its time named the service first."""
    best: Incident | None = None
    """What tells it best, as it was said then: the first that named it, else that found it, else the first at all."""

    def after_s(self) -> float | None:
        """Seconds from the injection until the service was named (until it was found, when it was never named)."""
        at_ns = self.found_ns if self.named_ns is None else self.named_ns
        return None if at_ns is None else (at_ns - self.fault.start_ns) / SECOND_NS


class Board:
    """All injected faults and all incidents. `grace_s`: how long after its end a fault may still be found."""

    def __init__(self, faults: Iterable[Fault], grace_s: float = GRACE_S) -> None:
        self.entries = [Entry(fault) for fault in sorted(faults, key=lambda fault: fault.start_ns)]
        self.grace_ns = int(grace_s * SECOND_NS)
        self.false: dict[str, Incident] = {}
        self._latest: dict[str, Incident] = {}

    def tell(self, incidents: Sequence[Incident], now_ns: int) -> None:
        """Take in incidents that were opened, updated or resolved."""
        for incident in incidents:
            key = incident.incident_id
            entry = self._at(incident.detected_unix_nano)
            before = self._latest.get(key)
            self._latest[key] = incident
            if entry is None:
                self.false[key] = incident
            else:
                self._note(entry, incident, now_ns)
            present = self._at(now_ns)
            if before is None or present is None or present is entry:
                continue
            # An incident that was open already and now blames what broke just now says something new.
            if suspects(before)[:1] != suspects(incident)[:1] == [present.fault.service]:
                self._note(present, incident, now_ns)

    def _at(self, time_ns: int) -> Entry | None:
        """The fault that is on at `time_ns`, else the last that was on within the grace."""
        for entry in reversed(self.entries):
            if entry.fault.start_ns <= time_ns <= entry.fault.end_ns + self.grace_ns:
                return entry
        return None

    def _note(self, entry: Entry, incident: Incident, now_ns: int) -> None:
        named = suspects(incident)
        service = entry.fault.service
        if not entry.incidents:
            entry.named_first = named[:1] == [service]
        entry.incidents.add(incident.incident_id)
        if service in named[:SUSPECTS] and entry.found_ns is None:
            entry.found_ns = now_ns
            entry.best = incident
        if named[:1] == [service] and entry.named_ns is None:
            entry.named_ns = now_ns
            entry.best = incident
        entry.best = entry.best or incident

    def begun(self, now_ns: int) -> list[Entry]:
        """The faults that were injected by `now_ns`."""
        return [entry for entry in self.entries if entry.fault.start_ns <= now_ns]

    def open(self) -> list[Incident]:
        """Incidents that are not resolved."""
        return [incident for incident in self._latest.values() if incident.resolved_unix_nano is None]

    def states(self) -> dict[str, str]:
        """Service -> the worst severity at which it is the first suspect of an open incident; `suspected` when it is
        a later one. Services that nothing is said of are absent."""
        out: dict[str, str] = {}
        for incident in self.open():
            for rank, service in enumerate(suspects(incident)[:SUSPECTS]):
                present = out.get(service)
                if rank:
                    out.setdefault(service, "suspected")
                elif present in {None, "suspected"} or worse(incident.severity, str(present)):
                    out[service] = incident.severity
        return out
