"""Open incidents from the inside: which elements speak in one, which services explain them, what people are told.

How it works. An element is what a window finding is about. `mass` adds up, per service, what elements say about it: an
operation speaks for its own service, a call for the callee and, less, for the caller, and kinds that may well be meant
to be so less than others. `ranking` takes the service with the greatest mass, takes out every element that it touches,
and asks again: what an upstream service shows only because of a cause below it is discounted that way. A `Case` keeps
each element at its worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collector_processor.kernels import incidents as kernels
from collector_processor.model import FINDING, I32, NONE, Findings, Kind, Level, Symbols

SUSPECTS_MAX = 5
ELEMENTS_MAX = 256  # of one case
FLOWS_MAX = 20
EXAMPLES_MAX = 5
INSTANCE_SHARE = 0.8  # of a service's unusual chains from which on one instance is named
INSTANCE_CHAINS_MIN = 3

# Looked up once: elements are weighed thousands of times.
EDGE, SERVICE, TEMPLATE = int(Level.EDGE), int(Level.SERVICE), int(Level.TEMPLATE)
ERROR, SLOW_CALL, SLOW_OPERATION = int(Kind.ERROR), int(Kind.SLOW_CALL), int(Kind.SLOW_OPERATION)
VIOLATION = int(Kind.RULE_VIOLATION)
SOFT = frozenset((Kind.UNUSUAL_CALLS, Kind.NEW_SEQUENCE, Kind.UNUSUAL_CONTENT, Kind.UNLIKELY_SEQUENCE))
PATHS = frozenset((Kind.INTERRUPTED_SEQUENCE, Kind.DISTRIBUTION_SURGE, Kind.DISTRIBUTION_DROP))  # of whole flows
SYMPTOMS = SOFT | {Kind.MISSING_CALL}  # of trouble elsewhere as often as trouble itself
SOFT_SHARE = 0.2  # of the evidence of soft kinds: they are the cause less often than a symptom
UNANSWERED = frozenset((Kind.ERROR, Kind.UNUSUAL_CALLS, Kind.INTERRUPTED_SEQUENCE))  # about calls: a peer is not there
CALLER_SHARE = 0.5  # of a call's evidence that speaks for its caller
EXPLAINED_SHARE = 0.5  # of what a service's pool of calls says, when single calls explain it

Element = tuple[int, int, int, int, int, int]  # kind, level, service, event, caller, rule or instance
Nats = Mapping[Element, float]
Weights = dict[Element, tuple[float, float]]  # what each says about its service, and about its caller


def elements_of(found: Findings, symbols: Symbols) -> list[Element]:
    """What each row is about: kind, level, service, operation, caller, and which rule, or one more than which instance.
    A finding about a flow is about the operation that the flow enters by."""
    out = []
    for _, _, kind, level, flow, service, event, caller, instance, _, _, _, detail in found.tolist():
        if service == NONE and caller == NONE and flow != NONE:
            event = int(symbols.flows.column("event")[flow])
            service = int(symbols.events.column("service")[event])
        pooled = kind == SLOW_OPERATION and level == SERVICE
        which = detail if kind == VIOLATION else instance + 1 if pooled else 0
        out.append((kind, level, service, event, caller, which))
    return out


def touches(element: Element, service: int) -> bool:
    """Whether `service` is the element's own, or calls it."""
    return element[2] == service or element[4] == service


def services_of(elements: Iterable[Element]) -> set[int]:
    return {service for element in elements for service in (element[2], element[4]) if service != NONE}


def is_soft(element: Element) -> bool:
    """Whether the element says what may well be meant to be so, or complains about another service."""
    return element[0] == ERROR if element[1] == EDGE else element[0] in SYMPTOMS


def weighed(nats: Nats) -> Weights:
    """Evidence as it counts for services."""
    out = {}
    for element, nat in nats.items():
        own = nat * SOFT_SHARE if is_soft(element) else nat
        out[element] = own, own * CALLER_SHARE if element[1] == EDGE else own
    return out


def mass(weights: Weights) -> dict[int, float]:
    """Evidence for each service."""
    out: dict[int, float] = {}
    for (_, _, service, _, caller, _), (own, of_caller) in weights.items():
        if service != NONE:
            out[service] = out.get(service, 0.0) + own
        if caller != NONE:
            out[caller] = out.get(caller, 0.0) + of_caller
    return out


def greatest(masses: Mapping[int, float]) -> int:
    """The service with the greatest mass; of equal ones that with the smallest id."""
    most = max(masses.values())
    return min([service for service, it in masses.items() if it == most])


def explained(pool: Element, claimed: set[Element], nats: Nats) -> bool:
    """Whether calls that are claimed make up most of what a service's pool of calls says."""
    kind, level, service, _, caller, _ = pool
    if level != SERVICE or kind != SLOW_CALL:
        return False
    parts = sum(nats[e] for e in claimed if e[1] == EDGE and (e[2] == service if caller == NONE else e[4] == caller))
    return parts >= EXPLAINED_SHARE * nats[pool]


def groups(nats: Nats) -> list[tuple[int, list[Element]]]:
    """Elements grouped by the service that explains most of what is left, strongest first."""
    left = weighed(nats)
    out = []
    while left and (masses := mass(left)):
        root = greatest(masses)
        members = [element for element in left if touches(element, root)]
        if len(members) < len(left):
            claimed = set(members)
            members += [e for e in left if e not in claimed and explained(e, claimed, nats)]
        for element in members:
            del left[element]
        out.append((root, members))
    return out


@dataclass(slots=True, eq=False)
class Case:
    """An open incident. Times are boundaries in ns; `detected_ns` is when it was opened, `opened_ns` when it began."""

    root: int  # service
    tenant: int
    incident_id: str
    opened_ns: int
    detected_ns: int
    seen_ns: int  # the last boundary with strong evidence
    counted_ns: int  # chains up to here are counted
    nats: dict[Element, float] = field(default_factory=dict)  # at its greatest
    rows: dict[Element, Any] = field(default_factory=dict)  # the finding then
    evidence: dict[Element, dict[str, Any]] = field(default_factory=dict)  # and what the detector said of it
    chains: int = 0
    flows: dict[int, int] = field(default_factory=dict)
    instances: dict[int, int] = field(default_factory=dict)  # of the first suspect
    examples: list[str] = field(default_factory=list)
    told: tuple[int, ...] = ()  # severity, magnitude and first suspects as last handed out
    explanation: dict[str, Any] = field(default_factory=dict)
    _ranking: list[tuple[int, float]] = field(default_factory=list)  # as of the last element taken; empty: to be made
    _ordered: tuple[int, list[Element]] = (NONE, [])  # likewise, and the root it is for
    _services: I32 | None = None  # likewise: those that its elements are about
    release: bool | None = None  # what `incidents.is_release` says of it, likewise

    def takes(self, element: Element, nat: float) -> bool:
        """Whether what is said of `element` is worse than before, and there is room for it."""
        return nat > self.nats.get(element, 0.0) and (element in self.nats or len(self.nats) < ELEMENTS_MAX)

    def add(self, element: Element, nat: float, row: np.void, evidence: dict[str, Any]) -> None:
        """Keeps what is said of an `element` that it takes."""
        self.nats[element] = nat
        self.rows[element] = row
        self.evidence[element] = evidence
        self._ranking, self._ordered, self._services, self.release = [], (NONE, []), None, None

    def ranking(self) -> list[tuple[int, float]]:
        """(service, evidence) by how much of the case each explains when those before it are taken out."""
        if not self._ranking:
            self._ranking = self._ranked()
        return self._ranking

    def _ranked(self) -> list[tuple[int, float]]:
        left = weighed(self.nats)
        whole = masses = mass(left)
        out: list[tuple[int, float]] = []
        while masses and len(out) < SUSPECTS_MAX:
            root = greatest(masses)
            out.append((root, masses[root]))
            left = {element: weight for element, weight in left.items() if not touches(element, root)}
            masses = mass(left)
        known = {service for service, _ in out}
        rest = sorted([(m, -s) for s, m in whole.items() if s not in known], reverse=True)
        return (out + [(-s, m) for m, s in rest])[:SUSPECTS_MAX]

    def ordered(self) -> list[Element]:
        """The elements: those of the first suspect first, operations and calls before pools, then by evidence."""
        root, order = self._ordered
        if root != self.root or not order:
            order = sorted(
                self.nats,
                key=lambda e: (not touches(e, self.root), is_soft(e), -self.nats[e] * (1 + (e[1] != SERVICE)), e),
            )
            self._ordered = (self.root, order)
        return order

    def operation(self, service: int) -> int:
        """The operation of `service` that says most, NONE when none does."""
        for _, level, own, event, _, _ in self.ordered():
            if own == service and event != NONE and level != TEMPLATE:
                return event
        return NONE

    def count(self, seen: Any) -> None:
        """Counts the chains of `seen` that had something unusual at a service that the case is about."""
        if self._services is None:
            self._services = np.array(list({e[2] if e[2] != NONE else e[4] for e in self.nats}), np.int32)
        first, flows, instances = np.empty((3, seen.size), np.int64)
        chains, located = kernels.about(seen, self._services, self.root, first, flows, instances)
        self.chains += chains
        for flow in sorted(flows[:chains].tolist()):
            if flow in self.flows or len(self.flows) < FLOWS_MAX:
                self.flows[flow] = self.flows.get(flow, 0) + 1
        for instance in sorted(instances[:located].tolist()):
            self.instances[instance] = self.instances.get(instance, 0) + 1
        for i in first[: min(chains, EXAMPLES_MAX - len(self.examples))].tolist():
            self.examples.append(f"{int(seen['hi'][i]):016x}{int(seen['lo'][i]):016x}")

    def traces(self) -> list[str]:
        """Ids of traces to look at: of chains with something unusual, else those that the evidence names."""
        named = (said.get("trace_id") for said in self.evidence.values())
        return list(self.examples) or [trace for trace in dict.fromkeys(named) if trace][:EXAMPLES_MAX]

    def instance(self, symbols: Symbols) -> int:
        """The instance that nearly all of it happens at, if the first suspect has several; else NONE."""
        own = symbols.instances.column("service")
        counts = {i: n for i, n in self.instances.items() if own[i] == self.root}
        total = sum(counts.values())
        if total < INSTANCE_CHAINS_MIN or np.count_nonzero(own == self.root) < 2:
            return NONE
        worst = max(counts, key=lambda i: (counts[i], -i))
        return worst if counts[worst] >= INSTANCE_SHARE * total else NONE

    def snapshot(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in SCALARS},
            "elements": [list(element) for element in self.nats],
            "nats": list(self.nats.values()),
            "rows": np.array([self.rows[e] for e in self.nats], FINDING),
            "evidence": [self.evidence[e] for e in self.nats],
            "flows": [[flow, count] for flow, count in self.flows.items()],
            "instances": [[instance, count] for instance, count in self.instances.items()],
            "examples": list(self.examples),
            "told": list(self.told),
            "explanation": self.explanation,
        }


SCALARS = ("root", "tenant", "incident_id", "opened_ns", "detected_ns", "seen_ns", "counted_ns", "chains")


def restored(saved: dict[str, Any]) -> Case:
    """The case that `Case.snapshot` gave."""
    case = Case(**{name: saved[name] for name in SCALARS})
    rows = np.array(saved["rows"], FINDING)
    for i, parts in enumerate(saved["elements"]):
        kind, level, service, event, caller, rule = (int(part) for part in parts)
        element = (kind, level, service, event, caller, rule)
        case.nats[element] = float(saved["nats"][i])
        case.rows[element], case.evidence[element] = rows[i].copy(), saved["evidence"][i]
    case.flows = {int(flow): int(count) for flow, count in saved["flows"]}
    case.instances = {int(instance): int(count) for instance, count in saved["instances"]}
    case.examples, case.told = list(saved["examples"]), tuple(int(part) for part in saved["told"])
    case.explanation = saved["explanation"]
    return case
