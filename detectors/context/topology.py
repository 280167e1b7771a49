"""What operations usually write and call, learned; rare logs, missing logs, rare calls, errors that name a service.

How it works. `kernels/variants.py` gives each span two variants, of its logs and of its calls, and knows how rare each
is for its operation. `score` adds these surprises to windows (`kernels/windows.py`), per operation and pooled per
service; `advance` turns improbable windows into findings; `learn` counts variants when the quarantine is over. What is
known of each operation (`variants.py`) lets a finding say which log or call is unusual and which is missing.

A release rewords logs: then nearly all spans of an operation write as many lines as ever, none of them a warning, and
one or more of them new. That is told, and then the new variant takes its place beside the one that it replaced, with
the same history, and the window begins anew: what goes wrong later is seen as before, and a stray error is not taken
for the cause of what the new words did.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from collector_processor.config import Config
from collector_processor.kernels import variants as kernel
from collector_processor.kernels.windows import Windows
from collector_processor.model import (
    F32,
    I32,
    I64,
    NONE,
    U64,
    Bool,
    ChainBatch,
    Findings,
    Kind,
    Level,
    Symbols,
    no_findings,
)
from detectors.context.sentences import Said, sentence
from detectors.context.variants import MEMBERS_MAX, Variants
from detectors.protocol import Scores, sampled

NS = 1_000_000_000
PRIOR = (0.05, 30.0, 0.2, 30.0, 0.5, 20.0)  # of surprises; see `windows.teach`
PIECE = 5.0  # least greatest surprise that bursts are made of
NOVELTY_KEPT = 1.0 - 1.0 / 20_000  # what one observation leaves of the memory for how often anything new is seen
BLAMED = 5 << 40  # marks the key of a service that errors of others name; other keys are 2 * event + 1 or + 2
REWORDED_MIN = 20  # spans in a row, nearly all of them of the same new variant
REWORDED_SHARE = 0.9
REWORDED_EPOCHS = 2
STOPPED_EPOCHS = 3  # the last ones, in which nearly all spans leave out what they always called
STOPPED_SHARE = 0.9
MANY = -2  # services are asked by the same operation
P_MIN = 1e-300
# As plain numbers: numpy is ten times slower with members of an enum.
MISSING_LOG, ERROR, UNUSUAL_LOG = int(Kind.MISSING_LOG), int(Kind.ERROR), int(Kind.UNUSUAL_LOG)
UNSEEN_CALL, UNUSUAL_CALLS, MISSING_CALL = int(Kind.UNSEEN_CALL), int(Kind.UNUSUAL_CALLS), int(Kind.MISSING_CALL)
OPERATION, EDGE = int(Level.OPERATION), int(Level.EDGE)
SUBJECT = ["kind", "level", "service", "caller", "event"]  # of FINDING
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{3,}")


@dataclass(slots=True)
class Observed:
    """The children of the spans of a batch, by record; see `kernels.variants.observe`."""

    last: I32
    sibling: I32
    callee: I32


class Example(NamedTuple):
    """One unusual variant of an element. `since` is the boundary before it was seen."""

    since: int
    members: list[int]  # events, in order, each at most twice
    unanswered: list[int]  # events of calls that were made and of which no other service wrote anything
    asked: int  # the event of another service that should have been called by this one and was not, else NONE
    broken: bool  # an error is among the logs
    calm: bool = False  # no warning is among the logs
    variant: int = 0
    begun: int = 0  # the boundary since which it has been seen in every epoch
    nats: float = 0.0  # its surprise
    trace: str = ""  # the trace that it was in


NO_EXAMPLE = Example(0, [], [], NONE, broken=False)


class Topology:
    """See the module."""

    def __init__(self, config: Config, symbols: Symbols) -> None:
        self.config = config.detectors.context
        self.symbols = symbols
        epoch_ns = int(config.engine.epoch_s * NS)
        columns = max(2, round(self.config.window_s / config.engine.epoch_s))
        self.windows = Windows(self.config.elements_max, columns, epoch_ns, PRIOR, self.config.kept, PIECE)
        self.blamed = np.full(config.decode.services_max, NONE, np.int32)
        self.blamed_by = np.full(config.decode.services_max, NONE, np.int32)
        self.known = Variants(self.config)
        self.slots: I32 = np.zeros(0, np.int32)  # of each operation's logs (2 * event) and calls (2 * event + 1)
        self.named = np.zeros(0, np.int32)
        self.examples: dict[int, Example] = {}  # by slot
        self.reworded: dict[int, int] = {}  # when the logs of an operation were found to be reworded, by slot
        self.facts: dict[int, tuple[int, int]] = {}  # unusual ones and all, of the windows last reported, by slot

    def _columns(self, batch: ChainBatch) -> tuple[Any, ...]:
        """What the kernels look at."""
        events = self.symbols.events
        records = (batch.offsets, batch.event, batch.kind, batch.status, batch.parent)
        return *records, events.column("service"), events.hash

    def score(self, batch: ChainBatch) -> Scores:
        if not batch.records:
            return Scores(np.zeros(len(batch)), no_findings())
        self._name_events()
        w, known, s, config = self.windows, self.known, self.known.slots, self.config
        chains, records = len(batch), batch.records
        nats, hashes, children = np.empty(chains), np.empty((2, records), np.uint64), np.empty((3, records), np.int32)
        surprise, slot = np.empty((records, 2), np.float32), np.empty((records, 2), np.int32)
        unusual, at = np.empty(2 * records, np.int64), np.empty(chains * config.findings_max, np.int64)
        several, found = kernel.score(
            *(*self._columns(batch), self.named, w.open(), self.slots, known.keys, known.found, known.met),
            *(known.met_row, known.rows["nats"], s["new_nats"], s["usual_nats"], s["asks"]),
            *(s["seen"], config.learn_min, self.blamed[: len(self.symbols.services)], self.blamed_by),
            *(w.level, w.sums, w.usual, w.counts, w.hits, np.float32(config.hit), np.float32(config.least)),
            *(np.float32(config.chain_surprise), np.float32(config.hold), config.findings_max),
            *(nats, hashes, children, surprise, slot, unusual, at),
        )
        if not several and not found:
            return Scores(nats, no_findings())
        o, unusual, at = Observed(*children), unusual[:several], at[:found]
        flat, of = surprise.ravel(), slot.ravel()
        self._keep_examples(batch, o, hashes, of, flat, unusual)
        return Scores(nats, self._chain_findings(batch, o, hashes, flat, of, at) if found else no_findings())

    def _name_events(self) -> None:
        """Notes which templates name another service: an error about a peer says where to look."""
        events, services = self.symbols.events, self.symbols.services
        have = self.named.size
        if have == len(events):
            return
        names = {text: service for service, text in enumerate(services.text) if service and len(text) > 3}
        new = np.full(len(events) - have, NONE, np.int32)
        is_log, tenant = events.column("is_log"), services.column("tenant")
        own = events.column("service")
        for event in range(have, len(events)):
            if is_log[event] == 1:
                for word in _NAME.findall(events.text[event]):
                    service = names.get(word, NONE)
                    if service not in (NONE, own[event]) and tenant[service] == tenant[own[event]]:
                        new[event - have] = service
        self.named = np.concatenate([self.named, new])

    def _members(self, batch: ChainBatch, o: Observed, row: int, *, of_logs: bool) -> list[int]:
        """The events of the logs or calls of the span at `row`, in order, each at most twice."""
        out = np.empty(MEMBERS_MAX, np.int32)
        n = kernel.members(row, of_logs, batch.kind, batch.event, o.last, o.sibling, o.callee, out)
        members: list[int] = out[:n].tolist()
        return members

    def _unanswered(self, batch: ChainBatch, o: Observed, row: int) -> list[int]:
        """The events of the calls that the span at `row` made and of which no other service wrote anything."""
        out = []
        child = int(o.last[row])
        while child >= 0:
            if batch.kind[child] in (kernel.CLIENT, kernel.PRODUCER) and o.callee[child] == child:
                out.append(int(batch.event[child]))
            child = int(o.sibling[child])
        return sorted(set(out))

    def _described(self, batch: ChainBatch, o: Observed, places: I64) -> I32:
        """What is at `places`, the logs (even ones) or calls of spans; see `kernels.variants.describe`."""
        out = np.empty((places.size, kernel.ABOUT + MEMBERS_MAX), np.int32)
        kernel.describe(places, batch.offsets, batch.kind, batch.status, batch.event, o.last, o.sibling, o.callee, out)
        return out

    def _example(
        self,
        batch: ChainBatch,
        o: Observed,
        place: int,
        described: list[int],
        slot: int,
        variant: int,
        since: int = 0,
        begun: int = 0,
        nats: float = 0.0,
    ) -> Example:
        """The variant at `place`, of which `described` says what it is made of."""
        row, of_calls = place // 2, place % 2 == 1
        chain, calm, unanswered, alone, number, *members = described
        return Example(
            since,
            members[:number],
            self._unanswered(batch, o, row) if unanswered else [],
            self._asked(batch, o, row, slot) if of_calls and alone else NONE,
            not of_calls and bool(variant & 1),
            bool(calm),
            variant,
            begun,
            nats,
            batch.trace_id(chain),
        )

    def _asked(self, batch: ChainBatch, o: Observed, row: int, slot: int) -> int:
        """The event that the call at `row`, which got no answer, was for: its usual one, or one its caller lacks."""
        asks = int(self.known.slots["asks"][slot])
        if asks in (NONE, kernel.NOT_ASKING):
            return NONE
        if asks != MANY:
            return next(iter(self.known.usual(slot)), NONE)
        parent = int(batch.parent[row])
        above = self._slot(int(batch.event[parent])) if parent >= 0 else NONE
        if above < 0:
            return NONE
        service, seen = self.symbols.events.column("service"), self._members(batch, o, parent, of_logs=False)
        own = service[batch.event[row]]
        return next((e for e in self.known.usual(above) if e not in seen and service[e] != own), NONE)

    def _slot(self, event: int) -> int:
        """The slot of an operation's calls; NONE when it has none."""
        at = 2 * event + 1
        return int(self.slots[at]) if at < self.slots.size else NONE

    def _keep_examples(
        self, batch: ChainBatch, o: Observed, hashes: U64, slot: I32, surprise: F32, unusual: I64
    ) -> None:
        """Keeps of each element the most unusual variant that its window saw, the newest of those that are alike."""
        now, described = self.windows.boundary_ns, self._described(batch, o, unusual).tolist()
        for k, d, s, nats in zip(
            unusual.tolist(), described, slot[unusual].tolist(), surprise[unusual].tolist(), strict=True
        ):
            before = self.examples.get(s, NO_EXAMPLE)
            if nats > before.nats or (nats == before.nats and before.since != now):
                variant = int(hashes[k % 2, k // 2])
                same = before.variant == variant and before.since in (now, now - self.windows.epoch_ns)
                begun = before.begun if same else now
                self.examples[s] = self._example(batch, o, k, d, s, variant, now, begun, nats)

    def _is_reworded(self, slot: int, example: Example) -> bool:
        """Whether the logs of the operation say by other words what they said before. See the module."""
        w, usual = self.windows, self.known.usual(slot)
        same = len(example.members) == len(usual) < MEMBERS_MAX and set(example.members) != set(usual)
        if not (same and example.calm and example.since - example.begun >= REWORDED_EPOCHS * w.epoch_ns):
            return False
        count = 0
        for back in range(w.columns):
            column = (w.column - back) % w.columns
            if w.hits[slot, column] < REWORDED_SHARE * w.counts[slot, column]:
                return False
            count += int(w.counts[slot, column])
            if count >= REWORDED_MIN:
                return True
        return False

    def _left_out(self, slot: int) -> bool:
        """Whether calls that the operation always made are made no more: another mix of requests leaves out some."""
        w, example = self.windows, self.examples.get(slot)
        if example is None:  # it was seen a window ago, and what came since is less unusual
            return False
        last = [(w.column - back) % w.columns for back in range(STOPPED_EPOCHS)]
        stopped = w.hits[slot, last].sum() >= max(STOPPED_SHARE * w.counts[slot, last].sum(), 1)
        return bool(stopped) and set(example.members) < set(self.known.usual(slot))

    def _absence(self, slot: int) -> float:
        """The share of spans that are known to go without the call that is now left out. It is 1 when several are left
        out at once: that may be one cause far below, which ended the operation early."""
        gone = [e for e in self.known.usual(slot) if e not in self.examples[slot].members]
        if len(set(gone)) != 1:
            return 1.0
        return self.known.share_without(slot, gone[0])

    def _subject(self, slot: int, what: int, example: Example) -> tuple[int, int, int, int, int]:
        """Kind, level, service, caller and event of a finding about the logs (0) or calls (1) of an operation."""
        own, event, seen = int(self.windows.near[slot]), (int(self.windows.key[slot]) - 1) // 2, example.members
        if what == 0:
            more, less = self.known.differs(slot, seen)
            fewer = not more and any(e not in seen for e in less)
            return ERROR if example.broken else MISSING_LOG if fewer else UNUSUAL_LOG, OPERATION, own, NONE, event
        service = self.symbols.events.column("service")
        if example.asked != NONE:
            return UNUSUAL_CALLS, EDGE, int(service[example.asked]), own, example.asked
        usual = self.known.usual(slot)
        missing = [e for e in usual if e not in seen and service[e] != own]
        if missing and any(e not in usual for e in example.unanswered):
            return UNUSUAL_CALLS, EDGE, int(service[missing[0]]), own, missing[0]
        return UNSEEN_CALL if self._further(slot, seen) else UNUSUAL_CALLS, OPERATION, own, NONE, event

    def _further(self, slot: int, seen: list[int]) -> list[int]:
        """The calls to other services in `seen` that no known variant makes, or not so often."""
        own, service = int(self.windows.near[slot]), self.symbols.events.column("service")
        return [e for e in self.known.never_so_often(slot, seen) if service[e] != own]

    def _chain_findings(
        self, batch: ChainBatch, o: Observed, hashes: U64, surprise: F32, slot: I32, at: I64
    ) -> Findings:
        """Findings about the variants at the places `at`."""
        out, rows, described = no_findings(at.size), at // 2, self._described(batch, o, at)
        out["chain"] = described[:, kernel.CHAIN]
        out["instance"] = batch.instance[rows]
        out["p"] = np.exp(-surprise[at].astype(np.float64))
        out["detail"] = slot[at]
        alike: dict[Any, tuple[int, ...]] = {}  # what is seen once is mostly seen again and again
        subjects = []
        for k, d, s in zip(at.tolist(), described.tolist(), slot[at].tolist(), strict=True):
            e = self._example(batch, o, k, d, s, int(hashes[k % 2, k // 2]))
            key = (s, e.broken, e.asked, *e.members, NONE, *e.unanswered)
            if key not in alike:
                alike[key] = self._subject(s, k % 2, e)
            subjects.append(alike[key])
        out[SUBJECT] = subjects
        return out

    def advance(self, now_ns: int) -> Findings:
        w = self.windows
        slots = w.judge(now_ns, self.config.hold, self.config.report)
        rows = no_findings(slots.size)
        self.facts = {}
        reworded: list[int] = []
        for i, slot in enumerate(slots.tolist()):
            key, near = int(w.key[slot]), int(w.near[slot])
            example = self.examples.get(slot, NO_EXAMPLE)
            if key & BLAMED:
                kind, *subject = ERROR, EDGE, near, int(self.blamed_by[near]), NONE
            else:
                kind, *subject = self._subject(slot, (key - 1) % 2, example)
            unusual, count = int(w.hits[slot].sum()), max(int(w.counts[slot].sum()), 1)
            self.facts[slot] = (unusual, count)
            rows["actual"][i] = unusual / count
            if kind == UNUSUAL_CALLS and self._left_out(slot):
                kind = MISSING_CALL
                rows["expected"][i] = self._absence(slot)
            if kind == UNUSUAL_LOG and self._is_reworded(slot, example):
                reworded.append(slot)
            rows[SUBJECT][i] = (kind, *subject)
        if slots.size:
            rows["p"] = np.maximum(np.exp(-w.exponents[slots]), P_MIN)
            rows["detail"] = slots
        w.turn(now_ns)
        oldest = now_ns - w.columns * w.epoch_ns
        if self.reworded:
            self.reworded = {slot: since for slot, since in self.reworded.items() if since >= oldest}
        for slot in reworded:
            self.reworded[slot] = now_ns
            example = self.examples[slot]
            key = int(kernel.variant_key(int(w.key[slot]), np.uint64(example.variant)))
            if self.known.take_over(slot, key, example.members):
                w.clear(slot)
        if self.examples:
            self.examples = {slot: kept for slot, kept in self.examples.items() if kept.since >= oldest}
        return rows

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        batch, normal = sampled(batch, normal)
        records = batch.records
        children, missing = np.empty((3, records), np.int32), np.empty(records, np.int64)
        new = np.empty((2 * records, 2), np.int64)
        lacking, found = self._learn(batch, normal, children, missing, new, every=True)
        if lacking:
            self._new_slots(batch, missing[:lacking])
            _, found = self._learn(batch, normal, children, missing, new, every=False)
        if found:
            places, rows = new[:found].T.copy()
            described = self._described(batch, Observed(*children), places)
            self.known.members[rows] = described[:, kernel.ABOUT :]
            for place, (number, *members) in zip(places.tolist(), described[:, kernel.NUMBER :].tolist(), strict=True):
                if place % 2 == 1 and number:
                    self._note_asked(int(batch.event[place // 2]), members[:number])
            self.known.entered(found)

    def _learn(
        self, batch: ChainBatch, normal: Bool, children: I32, missing: I64, new: I64, *, every: bool
    ) -> tuple[int, int]:
        """Learns, unless operations have no slot and `every` one should; see `kernels.variants.learn`."""
        w, known, config = self.windows, self.known, self.config
        s, v = known.slots, known.rows
        return kernel.learn(  # type: ignore[no-any-return]
            *(*self._columns(batch), normal, batch.closed_ns, every, w.alarmed_ns, s["audited_ns"], w.epoch_ns),
            *(self.slots, known.keys, known.found, known.met, known.met_row, v["count"], s["first"]),
            *(v["following"], s["distinct"], s["seen"], s["fresh"], s["excess"], known.novelty, NOVELTY_KEPT),
            *(known.used, config.shrink, np.float32(config.least), np.float32(config.hit)),
            *(v["nats"], s["new_nats"], s["usual_nats"], children, missing, new),
        )

    def _note_asked(self, event: int, members: list[int]) -> None:
        """Notes whom the operation `event` calls when it does nothing but call another service."""
        service, slot = self.symbols.events.column("service"), self._slot(event)
        own, called, asks = int(service[event]), int(service[members[0]]), self.known.slots["asks"]
        if slot < 0:
            return
        if len(members) > 1 or called == own or asks[slot] == kernel.NOT_ASKING:
            asks[slot] = kernel.NOT_ASKING
        else:
            asks[slot] = called if asks[slot] in (NONE, called) else MANY

    def _new_slots(self, batch: ChainBatch, spans: I64) -> None:
        """Slots for the logs and calls of operations never learned before, and for their services."""
        for event in dict.fromkeys(batch.event[spans].tolist()):
            service = int(self.symbols.events.column("service")[event])
            if self.blamed[service] < 0:
                self._add(BLAMED | service, service)
            self._add(2 * event + 1, service)
            self._add(2 * event + 2, service)

    def _add(self, key: int, service: int) -> int:
        slot = self.windows.add(key, service, NONE)
        if slot >= 0:
            self.known.begin(slot, self.windows.size)
            self._note_slot(key, slot)
        return slot

    def _note_slot(self, key: int, slot: int) -> None:
        """Enters a new slot where it is looked for."""
        if key & BLAMED:
            self.blamed[key & ~BLAMED] = slot
            return
        if key > self.slots.size:
            more = max(2 * len(self.symbols.events), key) - self.slots.size
            self.slots = np.concatenate([self.slots, np.full(more, NONE, np.int32)])
        self.slots[key - 1] = slot

    def evidence(self, finding: np.void) -> dict[str, Any]:
        slot = int(finding["detail"])
        out: dict[str, Any] = {"history": int(self.known.slots["seen"][slot])}
        fewer = False
        if int(self.windows.key[slot]) & BLAMED:
            template = self._complaint(int(finding["caller"]), int(finding["service"]))
        else:
            usual, seen = self.known.usual(slot), self.examples.get(slot, NO_EXAMPLE).members
            kind = int(finding["kind"])
            if kind in (Kind.MISSING_CALL, Kind.UNUSUAL_CALLS):
                template = next((e for e in usual if e not in seen), NONE)
            elif kind == Kind.UNSEEN_CALL:
                template = next(iter(self._further(slot, seen)), NONE)
            else:
                more, less = self.known.differs(slot, seen)
                fewer = not more
                template = self.known.rarest(slot, more or less) if kind != Kind.ERROR or more else NONE
        if template != NONE:
            out["template"] = self.symbols.events.text[template]
        if finding["chain"] == NONE and slot in self.facts:
            unusual, count = self.facts[slot]
            out |= {"unusual": unusual, "count": count, "window_s": self.config.window_s}
            if slot in self.reworded:
                out["reworded"] = True
            if trace := self.examples.get(slot, NO_EXAMPLE).trace:
                out["trace_id"] = trace
            said = Said(template, fewer, unusual, count, self.config.window_s)
            out["text"] = sentence(self.symbols, finding, said)
        return out

    def _complaint(self, caller: int, service: int) -> int:
        """The template by which `caller` complains about `service`, NONE when none is at hand."""
        for slot, example in self.examples.items():
            if self.windows.near[slot] == caller:
                for event in example.members:
                    if event < self.named.size and self.named[event] == service:
                        return event
        return NONE

    def describe_state(self) -> str | None:
        """Why nothing can be unusual yet; None when it is at work."""
        if self.windows.used:
            return None
        return "no chain has waited out its quarantine yet, so nothing is known about what operations write and call"

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "windows": self.windows.snapshot(),
            **self.known.snapshot(self.windows.used),
            "facts": [[slot, *counts] for slot, counts in self.facts.items()],
            "blamed_by": self.blamed_by.copy(),
            "examples": [[slot, *example] for slot, example in self.examples.items()],
            "reworded": [[slot, since] for slot, since in self.reworded.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.windows.restore(state["windows"])
        used = self.windows.used
        self.known.restore(state, used, self.windows.size)
        self.examples = {int(slot): Example(*example) for slot, *example in state["examples"]}
        self.reworded = {int(slot): int(since) for slot, since in state["reworded"]}
        self.facts = {int(slot): (int(unusual), int(count)) for slot, unusual, count in state["facts"]}
        self.blamed_by = np.array(state["blamed_by"], np.int32)
        self.blamed[:] = NONE
        self.slots = np.zeros(0, np.int32)
        for slot, key in enumerate(self.windows.key[:used].astype(np.int64).tolist()):
            self._note_slot(key, slot)
