"""What pages: unusual elements and chains that have one cause become one incident, with its most likely causes first.

How it works. At every epoch boundary the detectors report elements (operations, calls, services, templates) whose
window is improbable, each with a p-value. `judge` asks which service explains most of that: an operation speaks for
its own service, a call for the callee and, less, for the caller. The strongest service claims every element it
touches, what those explain elsewhere is discounted, and the rest looks for its next explanation. A group that holds an
element beyond the threshold is an incident. A group that shares an element or the first suspect with an open incident
joins it, and may change its suspects and raise its severity; a new subject opens a new one, so that one alarm never
hides another.

The threshold follows from the alert budget: -ln p must exceed ln(independent looks a day / alerts a day).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from collector_processor.config import DecideConfig
from collector_processor.decide import explain
from collector_processor.decide.fuse import CATEGORY, DAMAGE
from collector_processor.kernels.windows import patient
from collector_processor.model import (
    FINDING,
    NONE,
    Category,
    ChainBatch,
    Findings,
    Incident,
    Kind,
    Level,
    Severity,
    Symbols,
    VerdictBatch,
    content_hash,
)

NS = 1_000_000_000
DAY_S = 86_400.0
EXAMPLES_MAX = 5
SUSPECTS_MAX = 5
FLOWS_MAX = 20
ELEMENTS_MAX = 256  # of one incident
SOFT = frozenset((Kind.UNUSUAL_CALLS, Kind.NEW_SEQUENCE, Kind.UNUSUAL_CONTENT, Kind.UNLIKELY_SEQUENCE))
POOLS = 3  # independent subjects of a service: calls into it, itself, calls out of it
SOFT_SHARE = 0.2  # of the evidence of soft kinds: they are the cause less often than a symptom
UNANSWERED = frozenset((Kind.ERROR, Kind.UNUSUAL_CALLS, Kind.INTERRUPTED_SEQUENCE))  # about calls: a peer is not there
CALLER_SHARE = 0.5  # of a call's evidence that speaks for its caller

CALLS_MAX = 65_536
SCALARS = ("root", "opened_ns", "detected_ns", "seen_ns", "tenant", "incident_id", "chains")
SEEN = np.dtype([("service", np.int32), ("caller", np.int32), ("flow", np.int32), ("hi", np.uint64), ("lo", np.uint64)])

Element = tuple[int, int, int, int, int]  # kind, level, service, event, caller


class Source(Protocol):
    """The part of a detector that incidents ask."""

    def evidence(self, finding: np.void) -> dict[str, Any]: ...


@dataclass(slots=True)
class Case:
    """An open incident."""

    root: int  # service
    opened_ns: int
    detected_ns: int
    seen_ns: int
    tenant: int
    incident_id: str
    nats: dict[Element, float] = field(default_factory=dict)
    rows: dict[Element, Any] = field(default_factory=dict)  # finding at its greatest
    chains: int = 0
    flows: dict[int, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    told: tuple[int, ...] = ()  # severity and first suspects as last handed out
    explanation: dict[str, Any] = field(default_factory=dict)


class Incidents:
    """Open incidents of all tenants. Pure: time is an argument."""

    def __init__(self, config: DecideConfig, symbols: Symbols, detectors: Mapping[str, Source]) -> None:
        """`detectors` in the engine's order: what `detector` of a finding is an index into."""
        self.config = config
        self.symbols = symbols
        self.sources = tuple(detectors.values())
        self.window_ns = int(config.quarantine_s * NS)
        self.open: list[Case] = []
        self.first_ns = 0  # when the first chain was closed
        self.now_ns = 0  # the last boundary
        self.since: dict[Element, int] = {}  # the boundary from which on an element is beyond half the threshold
        self.calls: set[tuple[int, int]] = set()  # (caller, callee)
        self.known_paths = np.zeros(64, np.bool_)  # whose calls have been noted
        self.recent: deque[tuple[int, Any]] = deque()

    def threshold(self) -> float:
        """-ln p from which on an element opens an incident."""
        looks = DAY_S * NS / self.window_ns * POOLS * len(self.symbols.services)
        return math.log(looks / self.config.alerts_per_day)

    def observe(self, verdicts: VerdictBatch) -> None:
        """Remembers, for one window, which chains had findings about which services."""
        chains = verdicts.chains
        if not self.first_ns and len(chains):
            self.first_ns = int(chains.closed_ns[0])
        self._learn_calls(chains)
        found = verdicts.findings
        if found.size == 0:
            return
        last = int(chains.closed_ns[-1])
        chain = found["chain"]
        seen = np.empty(found.size, SEEN)
        seen["service"], seen["caller"] = found["service"], found["caller"]
        seen["flow"], seen["hi"], seen["lo"] = chains.flow[chain], chains.trace_hi[chain], chains.trace_lo[chain]
        self.recent.append((last, seen))
        while self.recent and self.recent[0][0] < last - self.window_ns:
            self.recent.popleft()

    def _learn_calls(self, chains: ChainBatch) -> None:
        """Notes which service calls which, from chains that go a way not seen before."""
        have, need = self.known_paths.size, len(self.symbols.paths)
        if need > have:
            self.known_paths = np.concatenate([self.known_paths, np.zeros(max(need, 2 * have) - have, np.bool_)])
        new = np.flatnonzero(~self.known_paths[chains.path])
        if not new.size or len(self.calls) >= CALLS_MAX:
            return
        self.known_paths[chains.path[new]] = True
        chains = chains.take(new)
        inside = np.flatnonzero(chains.parent >= 0)
        service = self.symbols.events.column("service")
        callee = service[chains.event[inside]].astype(np.int64)
        caller = service[chains.event[chains.parent[inside]]].astype(np.int64)
        codes = np.unique((caller << 32 | callee)[caller != callee])
        self.calls.update((code >> 32, code & 0xFFFFFFFF) for code in codes.tolist())

    def _near(self, group: set[int], case: Case) -> bool:
        """Whether a service of the group is one of the case's, calls one of those or is called by one."""
        about = {service for element in case.nats for service in (element[2], element[4]) if service != NONE}
        return not group.isdisjoint(about) or any(
            (a, b) in self.calls or (b, a) in self.calls for a in group for b in about
        )

    def judge(self, now_ns: int, findings: Findings) -> list[Incident]:
        """Incidents opened, changed or resolved at the boundary `now_ns`, given the windows' findings."""
        self.now_ns = now_ns
        changed: dict[int, Case] = {}
        threshold = self.threshold()
        rows = {_element(row): row for row in findings}
        nats = {element: -math.log(max(float(row["p"]), 1e-300)) for element, row in rows.items()}
        self.since = {e: self.since.get(e, now_ns) for e, n in nats.items() if n >= threshold / 2}
        if findings.size:
            for root, members in self._groups(nats):
                self._place(root, members, rows, nats, now_ns, changed)
        out = [incident for case in changed.values() if (incident := self._told(case)) is not None]
        return out + self._resolved(now_ns)

    def suspected(self) -> list[int]:
        """The services that open incidents suspect first, while the incident is one to be patient with."""
        return sorted({case.root for case in self.open if case.root >= 0 and self._is_warranted(case)})

    def _is_warranted(self, case: Case) -> bool:
        """Whether what had been seen when it opened warrants that chains through its suspect still do not train."""
        return bool(patient(case.opened_ns - self.first_ns, case.opened_ns, self.now_ns))

    def _patience_ns(self, element: Element) -> int:
        """How long the element must have been in alarm before it may open an incident."""
        if element[1] == Level.EDGE and element[0] in UNANSWERED:
            return int(self.config.restart_hold_s * NS)
        if element[0] in SOFT:
            return int(self.config.soft_hold_s * NS)
        return int(self.config.hold_s * NS)

    def current(self) -> list[Incident]:
        """Every open incident as it was last told: what exporters are given after a restart."""
        return [self._incident(case, "updated") for case in self.open if case.told]

    def _groups(self, nats: dict[Element, float]) -> list[tuple[int, list[Element]]]:
        """Elements grouped by the service that explains most of what is left, strongest first."""
        left = dict(nats)
        groups = []
        while left:
            mass = _mass(left)
            if not mass:
                break
            root = max(mass, key=lambda service: (mass[service], -service))
            members = [element for element in left if _touches(element, root)]
            claimed = set(members)
            members += [e for e in left if e not in claimed and self._explained(e, claimed, nats)]
            for element in members:
                del left[element]
            groups.append((root, members))
        return groups

    @staticmethod
    def _explained(pool: Element, claimed: set[Element], nats: dict[Element, float]) -> bool:
        """Whether the calls already claimed make up most of what a service's pool of calls says."""
        kind, level, service, _, caller = pool
        if level != Level.SERVICE or kind != Kind.SLOW_CALL:
            return False
        parts = sum(
            nats[e] for e in claimed if e[1] == Level.EDGE and (e[2] == service if caller == NONE else e[4] == caller)
        )
        return parts >= 0.5 * nats[pool]

    def _place(
        self,
        root: int,
        members: list[Element],
        rows: dict[Element, Any],
        nats: dict[Element, float],
        now_ns: int,
        changed: dict[int, Case],
    ) -> None:
        """Puts a group into the open incidents about the same service or elements; what none takes may open one."""
        touching = [case for case in self.open if case.root == root]
        touching += [case for case in self.open if case.root != root and any(m in case.nats for m in members)]
        services = {service for m in members for service in (m[2], m[4]) if service != NONE}
        for case in self.open:
            if (
                case not in touching
                and now_ns - case.detected_ns <= self.config.merge_s * NS
                and self._near(services, case)
            ):
                touching.append(case)
        for case in touching:
            young = now_ns - case.detected_ns <= self.config.join_s * NS
            taken = [m for m in members if young or m in case.nats]
            members = [m for m in members if m not in taken]
            if taken:
                self._joined(case, taken, rows, nats, now_ns)
                changed[id(case)] = case
        threshold = self.threshold()
        if any(nats[m] >= threshold and now_ns - self.since[m] >= self._patience_ns(m) for m in members):
            case = self._opened(root, now_ns, rows[max(members, key=lambda m: nats[m])])
            self._joined(case, members, rows, nats, now_ns)
            changed[id(case)] = case

    def _opened(self, root: int, now_ns: int, row: np.void) -> Case:
        service = int(root)
        tenant = int(self.symbols.services.column("tenant")[service]) if service >= 0 else 0
        identity = content_hash(
            self.symbols.tenants.text[tenant], self.symbols.services.text[service], Kind(int(row["kind"])).name, now_ns
        )
        case = Case(service, now_ns - self.window_ns, now_ns, now_ns, tenant, f"{identity:016x}")
        self.open.append(case)
        return case

    def _joined(
        self, case: Case, members: list[Element], rows: dict[Element, Any], nats: dict[Element, float], now_ns: int
    ) -> None:
        if max(nats[element] for element in members) >= self.threshold() / 2:
            case.seen_ns = now_ns
        for element in members:
            if nats[element] > case.nats.get(element, 0.0) and (element in case.nats or len(case.nats) < ELEMENTS_MAX):
                case.nats[element] = nats[element]
                case.rows[element] = rows[element].copy()
        case.root = self._suspects(case)[0][0]

    def _suspects(self, case: Case) -> list[tuple[int, float]]:
        """(service, evidence) by how much of the case each explains when those before it are taken out."""
        left = dict(case.nats)
        out: list[tuple[int, float]] = []
        while left and len(out) < SUSPECTS_MAX:
            mass = _mass(left)
            if not mass:
                break
            root = max(mass, key=lambda service: (mass[service], -service))
            out.append((root, mass[root]))
            left = {e: n for e, n in left.items() if not _touches(e, root)}
        known = {service for service, _ in out}
        rest = sorted(((m, -s) for s, m in _mass(case.nats).items() if s not in known), reverse=True)
        return (out + [(-s, m) for m, s in rest])[:SUSPECTS_MAX]

    def _told(self, case: Case) -> Incident | None:
        """The incident as it is now, None when nothing that matters has changed."""
        suspects = self._suspects(case)
        order = sorted(case.nats, key=lambda e: (-case.nats[e], e))
        top = case.rows[order[0]]
        severity = self._severity(case, top)
        told = (int(severity), *(s for s, _ in suspects[:3]))
        if told == case.told:
            return None
        opened = not case.told
        case.told = told
        findings = [case.rows[e] for e in order[:4]]
        case.explanation = explain.explain(
            self.symbols,
            np.array(findings),
            [explain.cleaned(self.sources[f["detector"]].evidence(f)) for f in findings],
            explain.affected_of([], [self.symbols.services.text[s] for s, _ in suspects], [], case.chains),
        )
        return self._incident(case, "opened" if opened else "updated")

    def _severity(self, case: Case, top: np.void) -> Severity:
        strong = max(case.nats.values()) >= 2 * self.threshold()
        if strong and DAMAGE[int(top["kind"])]:
            return Severity.CRITICAL
        return Severity.WARNING

    def _incident(self, case: Case, state: str, resolved_ns: int | None = None) -> Incident:
        suspects = self._suspects(case)
        total = sum(case.nats.values())
        order = sorted(case.nats, key=lambda e: (-case.nats[e], e))
        own = [e for e in order if _touches(e, case.root)] or order
        kind = Kind(own[0][0])
        text = self.symbols.services.text
        event = next((e[3] for e in own if e[3] != NONE and e[2] == case.root), NONE)
        return Incident(
            incident_id=case.incident_id,
            tenant=self.symbols.tenants.text[case.tenant],
            kind=kind.name.lower(),
            category=Category(int(CATEGORY[kind])).name.lower(),
            severity=Severity(case.told[0]).name.lower(),
            subject={
                "service": text[case.root],
                "operation": self.symbols.events.text[event] if event != NONE else None,
                "instance": None,
            },
            suspects=[{"service": text[s], "operation": None, "score": round(m / total, 4)} for s, m in suspects],
            flows=[self.symbols.flows.text[f] for f in list(case.flows)[:FLOWS_MAX]],
            opened_unix_nano=case.opened_ns,
            detected_unix_nano=case.detected_ns,
            resolved_unix_nano=resolved_ns,
            chains=case.chains,
            example_trace_ids=list(case.examples),
            explanation=case.explanation,
            state=state,
        )

    def _resolved(self, now_ns: int) -> list[Incident]:
        quiet = int(self.config.resolve_s * NS)
        out = [self._incident(c, "resolved", now_ns) for c in self.open if now_ns - c.seen_ns >= quiet]
        self.open = [c for c in self.open if now_ns - c.seen_ns < quiet]
        return out

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "open": [
                {
                    **{name: getattr(case, name) for name in SCALARS},
                    "nats": [case.nats[e] for e in case.nats],
                    "rows": np.array([case.rows[e] for e in case.nats], FINDING),
                    "flows": [[flow, count] for flow, count in case.flows.items()],
                    "examples": list(case.examples),
                    "told": list(case.told),
                    "explanation": case.explanation,
                }
                for case in self.open
            ],
            "first_ns": self.first_ns,
            "now_ns": self.now_ns,
            "known_paths": self.known_paths.copy(),
            "calls": [list(pair) for pair in sorted(self.calls)],
            "since": [[list(element), since] for element, since in self.since.items()],
            "recent": [[closed, seen.copy()] for closed, seen in self.recent],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.open = []
        for saved in state["open"]:
            case = Case(**{name: saved[name] for name in SCALARS})
            for nat, row in zip(saved["nats"], np.array(saved["rows"], FINDING), strict=True):
                case.nats[_element(row)] = float(nat)
                case.rows[_element(row)] = row.copy()
            case.flows = {int(flow): int(count) for flow, count in saved["flows"]}
            case.examples, case.told = list(saved["examples"]), tuple(saved["told"])
            case.explanation = saved["explanation"]
            self.open.append(case)
        self.first_ns, self.now_ns = int(state["first_ns"]), int(state["now_ns"])
        self.known_paths = np.array(state["known_paths"], np.bool_)
        self.calls = {(int(caller), int(callee)) for caller, callee in state["calls"]}
        self.since = {_tuple(element): int(since) for element, since in state["since"]}
        self.recent = deque((int(closed), np.array(seen, SEEN)) for closed, seen in state["recent"])


def _element(row: np.void) -> Element:
    return (int(row["kind"]), int(row["level"]), int(row["service"]), int(row["event"]), int(row["caller"]))


def _tuple(element: list[int]) -> Element:
    kind, level, service, event, caller = element
    return kind, level, service, event, caller


def _touches(element: Element, service: int) -> bool:
    return service in (element[2], element[4])


def _is_soft(element: Element) -> bool:
    """Whether the element alone has to hold for a while before it opens an incident."""
    edge = element[1] == Level.EDGE
    return (element[0] in SOFT and not edge) or (element[0] == Kind.ERROR and edge)


def _mass(nats: dict[Element, float]) -> dict[int, float]:
    """Evidence for each service: what its own elements say, and less of what calls that it makes say."""
    mass: dict[int, float] = {}
    for element, nat in nats.items():
        _, level, service, _, caller = element
        nat = nat * SOFT_SHARE if _is_soft(element) else nat
        if service != NONE:
            mass[service] = mass.get(service, 0.0) + nat
        if caller != NONE:
            mass[caller] = mass.get(caller, 0.0) + nat * (CALLER_SHARE if level == Level.EDGE else 1.0)
    return mass
