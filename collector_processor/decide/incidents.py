"""What pages: unusual elements and chains that have one cause become one incident, with its most likely causes first.

How it works. At every epoch boundary the detectors report elements (operations, calls, services, templates) whose
window is improbable, each with a p-value; `repeats.py` adds what single chains say again and again. `judge` groups
them by the service that explains most (`cases.py`). A group that holds an element beyond the threshold for long enough
is an incident. Groups about the services or elements of an open incident join it, and may change its suspects and
raise its severity; so do those next to a young one in the call graph, for one cause shows in several places. What is
new about an old one opens its own: no alarm hides the next.

The threshold follows from the alert budget: -ln p must exceed ln(independent looks a day / alerts a day).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from collector_processor.config import DecideConfig
from collector_processor.decide import explain
from collector_processor.decide.cases import (
    EDGE,
    FLOWS_MAX,
    PATHS,
    SOFT,
    UNANSWERED,
    VIOLATION,
    Case,
    Element,
    Nats,
    elements_of,
    groups,
    restored,
    services_of,
)
from collector_processor.decide.fuse import CATEGORY, DAMAGE
from collector_processor.decide.repeats import KINDS, Repeats
from collector_processor.kernels import incidents as kernels
from collector_processor.kernels.windows import patient
from collector_processor.model import (
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
P_MIN = 1e-300
P_SEEN = 0.05  # up to which a chain's finding counts as one of an incident's chains
OPERATION = int(Level.OPERATION)
POOLS = 5  # independent subjects of a service: calls into it, itself, calls out of it, what it writes, whom it asks
CALLS_MAX = 65_536
RECENT_MAX = 1_000_000  # chains' findings of one window, 28 bytes each; every epoch may hold an equal share
MIX = np.uint64(0x9E3779B97F4A7C15)  # spreads ids, so that a sample of them is one whatever made them
ABSENT_MAX = 0.05  # share of spans known to go without a call, up to which it is missed at once
ANOTHER = 2.0  # thresholds that something new about an incident's services must exceed to be an incident of its own
UNUSUAL_LOG, UNUSUAL_CALLS, MISSING_CALL = int(Kind.UNUSUAL_LOG), int(Kind.UNUSUAL_CALLS), int(Kind.MISSING_CALL)
SAME = {  # kinds that are named for the same, after the latest example of it
    int(Kind.MISSING_LOG): UNUSUAL_LOG,
    int(Kind.ERROR): UNUSUAL_LOG,
    MISSING_CALL: UNUSUAL_CALLS,
    int(Kind.UNSEEN_CALL): UNUSUAL_CALLS,
}
FOLLOWERS = SOFT | PATHS  # kinds that mostly tell of other trouble
FINDINGS_TOLD = 4  # elements that an explanation spells out
SEEN = np.dtype(
    [
        ("service", np.int32),
        ("instance", np.int32),
        ("flow", np.int32),
        ("hi", np.uint64),
        ("lo", np.uint64),
    ]
)


def is_release(case: Case) -> bool:
    """Whether the incident is about other words for the same, with nothing broken: what comes with it may train."""
    if case.release is None:
        reworded = any(said.get("reworded") for said in case.evidence.values())
        case.release = reworded and not any(DAMAGE[element[0]] for element in case.nats)
    return case.release


def _about(element: Element) -> Element:
    """The element without what the latest example makes of it: other logs, or other calls, than usual."""
    same = SAME.get(element[0])
    return element if same is None else (same, *element[1:])


def _follows(element: Element) -> bool:
    """Whether it is no trouble of its own, however late it comes. Calls that nobody answers are: a service is gone."""
    return element[0] in FOLLOWERS and not (element[1] == EDGE and element[0] in UNANSWERED)


def _boundaries(saved: Iterable[Any]) -> dict[Element, int]:
    """What a snapshot holds of `since` or `onset`."""
    out: dict[Element, int] = {}
    for parts, boundary_ns in saved:
        kind, level, service, event, caller, rule = (int(part) for part in parts)
        out[(kind, level, service, event, caller, rule)] = int(boundary_ns)
    return out


class Source(Protocol):
    """The part of a detector that incidents ask."""

    def evidence(self, finding: np.void) -> dict[str, Any]: ...


class Incidents:
    """Open incidents of all tenants. Pure: time is an argument."""

    def __init__(
        self, config: DecideConfig, symbols: Symbols, detectors: Mapping[str, Source], epoch_s: float = 10.0
    ) -> None:
        """`detectors` in the engine's order: what `detector` of a finding is an index into."""
        self.config = config
        self.symbols = symbols
        self.sources = tuple(detectors.values())
        self.window_ns = int(config.quarantine_s * NS)
        epochs = max(2, round(config.quarantine_s / epoch_s))
        self.repeats = Repeats(epochs, config.repeat_min)
        self.epoch_max = RECENT_MAX // epochs
        self.open: list[Case] = []
        self.first_ns = 0  # when the first chain was closed
        self.now_ns = 0  # the last boundary
        self.since: dict[Element, int] = {}  # the boundary from which on an element is beyond half the threshold
        self.onset: dict[Element, int] = {}  # the same for what an element is about, whatever kind is named for it
        self.calls: set[tuple[int, int]] = set()  # (caller, callee)
        self.known_paths = np.zeros(64, np.bool_)  # whose calls have been noted
        self._known_paths = 0  # how many these are
        self.recent: deque[tuple[int, Any]] = deque()  # of one window: when closed, SEEN
        self._noted = 0  # findings in `recent` since the last boundary
        self._threshold = math.inf  # the threshold at the boundary that is being judged
        self.forgotten = 0  # findings that were not kept in `recent`, for there were too many

    def threshold(self) -> float:
        """-ln p from which on an element opens an incident."""
        services, instances = len(self.symbols.services), len(self.symbols.instances)
        looks = DAY_S * NS / self.window_ns * (POOLS * services + max(0, instances - services))
        return math.log(looks / self.config.alerts_per_day)

    def observe(self, verdicts: VerdictBatch) -> None:
        """Takes in the findings of single chains."""
        chains = verdicts.chains
        if not self.first_ns and len(chains):
            self.first_ns = int(chains.closed_ns[0])
        self._learn_calls(chains)
        if verdicts.findings.size == 0:
            return
        seen, again = np.empty(verdicts.findings.size, SEEN), np.empty(verdicts.findings.size, np.int64)
        columns = (chains.flow, chains.trace_hi, chains.trace_lo)
        count, repeated = kernels.note(verdicts.findings, verdicts.severity, KINDS, P_SEEN, *columns, seen, again)
        if repeated:
            self.repeats.observe(verdicts, again[:repeated])
        if count:
            seen.resize(count, refcheck=False)  # in place, and nobody else has it
            self.recent.append((int(chains.closed_ns[-1]), seen))
            self._noted += count

    def _learn_calls(self, chains: ChainBatch) -> None:
        """Notes which service calls which, from chains that go a way not seen before."""
        have, need = self.known_paths.size, len(self.symbols.paths)
        if self._known_paths == need - 1 and not self.symbols.paths.overflowed:
            return  # all but `other`, which no chain goes so far
        if need > have:
            self.known_paths = np.concatenate([self.known_paths, np.zeros(max(need, 2 * have) - have, np.bool_)])
        if len(self.calls) >= CALLS_MAX or np.count_nonzero(self.known_paths.take(chains.path)) == len(chains):
            return
        service = self.symbols.events.column("service")
        columns = (chains.offsets, chains.path, chains.event, chains.parent, service)
        caller, callee = kernels.calls_of(*columns, self.known_paths)
        self._known_paths = int(np.count_nonzero(self.known_paths))
        if caller.size:
            self.calls.update(zip(caller.tolist(), callee.tolist(), strict=True))

    def judge(self, now_ns: int, findings: Findings) -> list[Incident]:
        """Incidents opened, changed or resolved at the boundary `now_ns`, given the windows' findings."""
        before_ns, self.now_ns = self.now_ns, now_ns
        while self.recent and self.recent[0][0] < now_ns - self.window_ns:
            self.recent.popleft()
        out = self._judged(now_ns, findings)
        if self._noted > self.epoch_max:
            self._thin(before_ns)
        self._noted = 0
        return out

    def _judged(self, now_ns: int, findings: Findings) -> list[Incident]:
        repeated, told = self.repeats.advance()
        if not (findings.size or repeated.size or self.open):
            self.since = self.onset = {}
            return []
        rows: dict[Element, np.void] = {}
        nats: dict[Element, float] = {}
        evidence: dict[Element, dict[str, Any]] = {}
        for found, said in ((findings, ()), (repeated, told)):
            if not found.size:
                continue
            elements = elements_of(found, self.symbols)
            rows |= zip(elements, found, strict=True)
            nats |= zip(elements, [-math.log(max(p, P_MIN)) for p in found["p"].tolist()], strict=True)
            evidence |= zip(elements, said, strict=False)
        self._threshold = self.threshold()
        half = self._threshold / 2
        self.since = {e: self.since.get(e, now_ns) for e, n in nats.items() if n >= half}
        self.onset = {about: self.onset.get(about, now_ns) for about in map(_about, self.since)}
        if not self.open and max(nats.values(), default=0.0) < self._threshold:
            return []  # what no incident could take, and too weak to open one
        changed: list[Case] = []
        for root, members in groups(nats):
            for case, taken in self._placed(root, members, rows, nats):
                self._join(case, taken, rows, nats, evidence)
                if case not in changed:
                    changed.append(case)
        for case in self.open:
            for closed_ns, seen in self.recent:
                if closed_ns > case.counted_ns:
                    case.count(seen)
            case.counted_ns = now_ns
        out = [incident for case in changed if (incident := self._told(case)) is not None]
        return out + self._resolved(now_ns)

    def _thin(self, before_ns: int) -> None:
        """Keeps no more of the epoch since `before_ns`, which has been counted, than an epoch's share: a sample of its
        chains by their ids, so that how they came in batches leaves no trace."""
        order = np.concatenate([seen["lo"] for closed_ns, seen in self.recent if closed_ns > before_ns]) * MIX
        bound = np.partition(order, self.epoch_max)[self.epoch_max]
        for index, (closed_ns, seen) in enumerate(self.recent):
            if closed_ns > before_ns:
                kept = seen[seen["lo"] * MIX < bound]
                self.forgotten += len(seen) - len(kept)
                self.recent[index] = closed_ns, kept

    def suspected(self) -> list[int]:
        """The services that open incidents suspect first, while the incident is one to be patient with."""
        if not self.open:
            return []
        held = [case for case in self.open if case.root >= 0 and not is_release(case) and self._is_warranted(case)]
        return sorted({case.root for case in held})

    def released(self) -> list[int]:
        """The services that open incidents suspect first which are but a release."""
        if not self.open:
            return []
        return sorted({case.root for case in self.open if case.root >= 0 and is_release(case)})

    def _is_warranted(self, case: Case) -> bool:
        """Whether what had been seen when it opened warrants that chains through its suspect still do not train."""
        return bool(patient(case.opened_ns - self.first_ns, case.opened_ns, self.now_ns))

    def current(self) -> list[Incident]:
        """Every open incident as it was last told: what exporters are given after a restart."""
        return [self._incident(case, case.instance(self.symbols), "updated") for case in self.open if case.told]

    def _placed(
        self, root: int, members: list[Element], rows: Mapping[Element, Any], nats: Nats
    ) -> list[tuple[Case, list[Element]]]:
        """The open incidents that a group joins, each with what it takes; what none takes may open one."""
        out = []
        left = list(members)
        echoes: dict[Element, Case] = {}
        for case in self._touching(root, members):
            known = [m for m in left if m in case.nats or self._age_s(case, m, self.now_ns) <= self.config.join_s]
            taken = [m for m in known if not self._is_late(case, m)]
            if taken:
                left = [m for m in left if m not in taken]
                out.append((case, taken))
            if len(taken) < len(known):
                weak = (m for m in known if m not in taken and nats[m] < ANOTHER * self._threshold)
                echoes |= {m: case for m in weak if m not in echoes}
        if not left:
            return out
        if any(m not in echoes and self._opens(m, nats[m], rows[m]) for m in left):
            out.append((self._opened(root, rows[max(left, key=lambda m: nats[m])]), left))
        else:
            for case in {id(echoes[m]): echoes[m] for m in left if m in echoes}.values():
                case.seen_ns = self.now_ns
        return out

    def _age_s(self, case: Case, element: Element, without_ns: int) -> float:
        """How old an incident was when the trouble with an element began; `without_ns` is for what is hardly any."""
        return (self.onset.get(_about(element), without_ns) - case.detected_ns) / NS

    def _is_late(self, case: Case, element: Element) -> bool:
        """Whether the trouble with an element began when an incident about its services was no longer fresh: if it is
        too strong for an echo, it is trouble of its own. The ways of whole flows are no trouble of their own here: they
        are seen later than what turns the chains there."""
        return not _follows(element) and self._age_s(case, element, case.detected_ns) >= self.config.merge_s

    def _touching(self, root: int, members: list[Element]) -> list[Case]:
        """Open incidents that a group may belong to, the likeliest first."""
        out = [case for case in self.open if case.root == root]
        out += [case for case in self.open if case not in out and not case.nats.keys().isdisjoint(members)]
        services = services_of(members)
        for case in self.open:
            if case not in out and self.now_ns - case.detected_ns <= self.config.merge_s * NS:
                about = services_of(case.nats)
                near = ((a, b) in self.calls or (b, a) in self.calls for a in services for b in about)
                if not services.isdisjoint(about) or any(near):
                    out.append(case)
        return out

    def _opens(self, element: Element, nat: float, row: np.void) -> bool:
        """Whether the element is improbable enough, and has been for long enough, to open an incident."""
        if nat < self._threshold:
            return False
        if element[0] == VIOLATION:
            patience = 0.0
        elif element[0] == MISSING_CALL:
            patience = self.config.hold_s if row["expected"] <= ABSENT_MAX else self.config.restart_hold_s
        elif element[1] == EDGE and element[0] in UNANSWERED:
            patience = self.config.restart_hold_s
        else:
            patience = self.config.soft_hold_s if element[0] in SOFT else self.config.hold_s
        if SAME.get(element[0], element[0]) == UNUSUAL_LOG and element[1] == OPERATION:
            patience = max(patience, self._ignorance_s(self.since[element]))
        return self.now_ns - self.since[element] >= patience * NS

    def _ignorance_s(self, since_ns: int) -> float:
        """How long other log lines than usual, which came at `since_ns`, must hold because so little was known then.

        Lines come and go in swarms, which nothing but time tells of: as many windows as fit into what was learned, that
        part of a window."""
        known_s = (since_ns - self.first_ns) / NS - self.config.quarantine_s
        return self.config.quarantine_s**2 / max(known_s, 1.0)

    def _opened(self, root: int, row: np.void) -> Case:
        tenant = int(self.symbols.services.column("tenant")[root])
        tenant_name, service_name = self.symbols.tenants.text[tenant], self.symbols.services.text[root]
        identity = content_hash(tenant_name, service_name, Kind(int(row["kind"])).name, self.now_ns)
        begun_ns = self.now_ns - self.window_ns
        case = Case(root, tenant, f"{identity:016x}", begun_ns, self.now_ns, self.now_ns, begun_ns)
        self.open.append(case)
        return case

    def _join(
        self,
        case: Case,
        members: list[Element],
        rows: Mapping[Element, Any],
        nats: Nats,
        evidence: Mapping[Element, dict[str, Any]],
    ) -> None:
        if max(nats[element] for element in members) >= self._threshold / 2:
            case.seen_ns = self.now_ns
        for element in members:
            if case.takes(element, nats[element]):
                row, said = rows[element], evidence.get(element)
                if said is None:
                    said = explain.cleaned(self.sources[row["detector"]].evidence(row))
                case.add(element, nats[element], row, said)
        case.root = case.ranking()[0][0]

    def _told(self, case: Case) -> Incident | None:
        """The incident as it is now, None when nothing that matters has changed."""
        suspects = [service for service, _ in case.ranking()]
        told = (int(self._severity(case)), case.chains.bit_length(), *suspects[:3])
        if told == case.told:
            return None
        opened = not case.told
        case.told = told
        return self._retold(case, "opened" if opened else "updated")

    def _severity(self, case: Case) -> Severity:
        for element, nat in case.nats.items():
            if nat >= 2 * self._threshold and DAMAGE[element[0]]:
                return Severity.CRITICAL
            if element[0] == VIOLATION and case.evidence[element].get("severity") == "critical":
                return Severity.CRITICAL
        return Severity.WARNING

    def _retold(self, case: Case, state: str, resolved_ns: int | None = None) -> Incident:
        """The incident as it is now, explained anew."""
        instance = case.instance(self.symbols)
        case.explanation = self._explanation(case, instance)
        return self._incident(case, instance, state, resolved_ns)

    def _explanation(self, case: Case, instance: int) -> dict[str, Any]:
        order = case.ordered()[:FINDINGS_TOLD]
        names, suspects = self.symbols.services.text, [service for service, _ in case.ranking()]
        notes = []
        if len(suspects) > 1:
            notes.append(f"Also suspected, less: {', '.join(explain.clean(names[s]) for s in suspects[1:4])}")
        span_s = (self.now_ns - case.opened_ns) / NS
        lead = f"{case.chains} chains in {explain.seconds(span_s)}: " if case.chains > 1 else ""
        return explain.explain(
            self.symbols,
            [case.rows[e] for e in order],
            [case.evidence[e] for e in order],
            explain.affected_of(
                self._flows(case),
                [names[s] for s in suspects],
                [self.symbols.instances.text[instance]] if instance != NONE else [],
                case.chains,
            ),
            notes,
            lead,
        )

    def _flows(self, case: Case) -> list[str]:
        """The flows of its chains, most affected first."""
        order = sorted(case.flows, key=lambda flow: (-case.flows[flow], flow))
        return [self.symbols.flows.text[flow] for flow in order[:FLOWS_MAX]]

    def _incident(self, case: Case, instance: int, state: str, resolved_ns: int | None = None) -> Incident:
        names, events = self.symbols.services.text, self.symbols.events.text
        total = max(sum(case.nats.values()), 1e-9)
        top = case.ordered()[0]
        category = case.evidence[top].get("category") or Category(int(CATEGORY[top[0]])).name.lower()

        def operation(service: int) -> str | None:
            event = case.operation(service)
            return events[event] if event != NONE else None

        return Incident(
            incident_id=case.incident_id,
            tenant=self.symbols.tenants.text[case.tenant],
            kind=Kind(top[0]).name.lower(),
            category=str(category),
            severity=Severity(case.told[0]).name.lower(),
            subject={
                "service": names[case.root],
                "operation": operation(case.root),
                "instance": self.symbols.instances.text[instance] if instance != NONE else None,
            },
            suspects=[
                {"service": names[s], "operation": operation(s), "score": round(min(m / total, 1.0), 4)}
                for s, m in case.ranking()
            ],
            flows=self._flows(case),
            opened_unix_nano=case.opened_ns,
            detected_unix_nano=case.detected_ns,
            resolved_unix_nano=resolved_ns,
            chains=case.chains,
            example_trace_ids=case.traces(),
            explanation=case.explanation,
            state=state,
            changed_unix_nano=self.now_ns,
        )

    def _resolved(self, now_ns: int) -> list[Incident]:
        quiet = int(self.config.resolve_s * NS)
        over = [case for case in self.open if now_ns - case.seen_ns >= quiet]
        if not over:
            return []
        self.open = [case for case in self.open if case not in over]
        return [self._retold(case, "resolved", now_ns) for case in over]

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "open": [case.snapshot() for case in self.open],
            "repeats": self.repeats.snapshot(),
            "first_ns": self.first_ns,
            "now_ns": self.now_ns,
            "known_paths": self.known_paths.copy(),
            "calls": [list(pair) for pair in sorted(self.calls)],
            "since": [[list(element), since] for element, since in self.since.items()],
            "onset": [[list(element), onset] for element, onset in self.onset.items()],
            "recent": [[closed, seen.copy()] for closed, seen in self.recent],
            "forgotten": self.forgotten,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.open = [restored(saved) for saved in state["open"]]
        self.repeats.restore(state["repeats"])
        self.first_ns, self.now_ns = int(state["first_ns"]), int(state["now_ns"])
        self.known_paths = np.array(state["known_paths"], np.bool_)
        self._known_paths = int(np.count_nonzero(self.known_paths))
        self.calls = {(int(caller), int(callee)) for caller, callee in state["calls"]}
        self.since = _boundaries(state["since"])
        self.onset = _boundaries(state.get("onset", ()))  # earlier versions had none
        self.recent = deque((int(closed), np.array(seen, SEEN)) for closed, seen in state["recent"])
        self._noted = sum(len(seen) for closed_ns, seen in self.recent if closed_ns > self.now_ns)
        self.forgotten = int(state.get("forgotten", 0))  # earlier versions kept all
