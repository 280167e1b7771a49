"""The chain-sequence detector: new paths, broken-off paths, and shares of the traffic that jump.

How it works. Each flow has a table of canonical paths. A chain on a known path scores -ln(share of the flow's chains on
paths at most as frequent, at this time of the week): two array look-ups. A path without normal history is judged once
per flow state, by hand: its p-value is the flow's present rate of new paths times the share of earlier new ones that
were at least as surprising under the flow's step-to-step probabilities, so that a flow whose paths vary by nature stays
quiet. It is *interrupted* when it is a proper subsequence of a known path (attributed to the one that it most probably
is), else *new*. At epoch boundaries the same finding `repeat_min` times within a slice, and counts outside their range,
become findings about the flow. What was judged anomalous counts as `bad` and trains nothing, until the path has kept
coming for longer than a day (`adopt_s`).
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from collector_processor.config import ChainSequenceConfig, Config
from collector_processor.kernels import familiarity as flags
from collector_processor.kernels import sequence as kernels
from collector_processor.model import (
    I32,
    I64,
    NONE,
    Bool,
    ChainBatch,
    Findings,
    Kind,
    Level,
    Symbols,
    all_findings,
    as_findings,
    no_findings,
)
from detectors.chain_sequence.distribution import SLICES_MIN, Distribution, Excess, Known
from detectors.chain_sequence.extremes import Extremes
from detectors.chain_sequence.paths import START, Held, PathTable
from detectors.familiarity import Familiarity, describe_young
from detectors.protocol import Scores

P_MIN = 1e-15
SURPRISE = 3.0  # nats: the surprise of a new normal path, before any was seen
GAP = math.log(0.01)  # what each further gap costs a known path as the explanation of a broken-off one
FINDING_P = 0.05  # a chain is a finding up to this
WINDOW_P = 1e-2  # a window is a finding below this
RECURRED_MAX = 5  # chains of one new path that teach how often new paths come again
CAME_MAX = 200.0  # chains on new paths over which that is averaged
FORGET_SLICES = 2016.0  # slices (a week at the default) over which path counts fade
SHARE_KINDS = (int(Kind.DISTRIBUTION_SURGE), int(Kind.DISTRIBUTION_DROP))
RATE_KINDS = (int(Kind.RATE_SURGE), int(Kind.RATE_DROP))  # of a flow as a whole
FLOW_DETAIL = 1 << 40  # added to a flow id in `detail` when the finding is about the flow's own rate
SHORT_DETAIL = 1 << 41  # added in `detail` for the short window


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is to be said of a path that is not known, or of a late chain."""

    kind: int  # Kind, or NONE: score only
    p: float
    other: int = NONE  # row of the known path it is compared with
    share: float = 0.0  # of that path among the flow's normal chains
    step: int = NONE  # event that was expected and did not come, or that came and was not expected
    after: int = NONE  # event before it
    subject: int = NONE  # event to look at first
    caller: int = NONE  # service that called the subject, when the call is to be looked at


class ChainSequence:
    """See the module. `epoch_s` is the engine's grid, `rows_max` bounds the canonical paths."""

    name = "chain_sequence"

    def __init__(self, config: ChainSequenceConfig, symbols: Symbols, epoch_s: float, rows_max: int) -> None:
        self.config = config
        self.symbols = symbols
        self.known = Familiarity(config.learn_chains_min, SURPRISE)
        self.paths = PathTable(symbols, self.known, rows_max, config.path_length_max)
        self.distribution = Distribution(config.slice_s, epoch_s)
        self.tenant_chains = np.zeros(1024)
        self.tenant_rootless = np.zeros(1024)
        self.repeats = Extremes(1.0, 1.5)
        self.share = np.zeros(0)
        self.slice_index = NONE  # of the last `advance`
        self.recurred, self.came = (
            3.0,
            10.0,
        )  # chains on paths new in their slice: after the first one, and all; a guess
        self.judged: dict[tuple[int, int], Judgement] = {}
        self.learned_at = 0.0  # chains of all flows when `judged` was last emptied

    # scoring

    def score(self, batch: ChainBatch) -> Scores:
        rows = self.paths.rows(batch)
        value, state, odd = self.known.score(rows, batch.outcome)
        if not odd:
            return Scores(value, no_findings())
        unusual = np.flatnonzero(state & (flags.NEW | flags.TIMED_OUT))
        return Scores(value, self._findings(rows, state, unusual, value))

    def _findings(self, rows: I32, state: Any, chains: I64, value: Any) -> Findings:
        """One finding a chain, made once per distinct (row, state); sets the values of these chains."""
        codes, length = (rows[chains].astype(np.int64) * 8 + state[chains]).tolist(), self.paths.column["length"]
        values: dict[int, float] = {}
        said: dict[int, tuple[float, ...]] = {}
        for code in sorted(set(codes)):
            row = code >> 3
            judgement = self._judgement(row, code & 7)
            values[code] = -math.log(judgement.p)
            if judgement.kind != NONE and judgement.p <= FINDING_P:
                expected = 0 if judgement.other == NONE else length[judgement.other]
                said[code] = self._finding(row, judgement, judgement.p, expected, length[row], code)
        value[chains] = np.maximum(value[chains], [values[code] for code in codes])
        return as_findings(
            [(chain, *said[code]) for chain, code in zip(chains.tolist(), codes, strict=True) if code in said]
        )

    def _finding(
        self, row: int, judgement: Judgement, p: float, expected: float, actual: float, detail: int
    ) -> tuple[float, ...]:
        """What `judgement` says of a path, as a row of FINDING without its chain."""
        level, subject = Level.EDGE if judgement.caller != NONE else Level.OPERATION, judgement.subject
        return (
            *(0, judgement.kind, level if subject != NONE else Level.FLOW, self.known.row["flow"][row]),
            *(self._service(subject), subject, judgement.caller, NONE, p, expected, actual, detail),
        )

    def _service(self, event: int) -> int:
        return int(self.symbols.events.column("service")[event]) if event >= 0 else NONE

    def _judgement(self, row: int, state: int) -> Judgement:
        found = self.judged.get((row, state))
        if found is None:
            if state & 3 == flags.NEW:
                found = self._judge_new(row, bool(state & flags.TIMED_OUT))
            else:
                found = self._judge_late(row, cold=state & 3 == flags.COLD)
            self.judged[(row, state)] = found
        return found

    def _judge_new(self, row: int, late: bool) -> Judgement:
        flow = int(self.known.row["flow"][row])
        if not self.paths.column["novel"][row] and self.known.row["bad"][row] == 0:
            return Judgement(NONE, 1.0)  # from when its flow was young: normal, and waiting to be learned
        surprise, at, held = self.paths.judge(row, self.paths.flow_rows(flow), GAP)
        p = self.known.new_rate(flow) * self.known.odder_share(flow, surprise)
        if late:
            p = min(1.0, 2.0 * min(p, self.known.late_rate(flow)))
        p = max(p, P_MIN)
        length = int(self.paths.column["length"][row])
        if held[0] != NONE:
            broken_off = length >= self.config.interrupted_length_min
            return self._broken_off(row, held, p, late) if broken_off else Judgement(NONE, p)
        return self._new(row, at, p)

    def _new(self, row: int, at: int, p: float) -> Judgement:
        """A path that no known one contains: the step with the most surprising transition, and who made it."""
        operations = self.paths.operations(row)
        if operations.size == 0:
            return Judgement(Kind.NEW_SEQUENCE, p)
        at = min(at, operations.size - 1)
        caller, _ = self.paths.caller_of(row, at)
        step = int(operations[at])
        return Judgement(
            Kind.NEW_SEQUENCE, p, step=step, after=int(operations[at - 1]) if at else NONE,
            subject=step if caller == NONE else caller, other=self.paths.nearest(row)[0],
        )  # fmt: skip

    def _broken_off(self, row: int, held: Held, p: float, late: bool) -> Judgement:
        """The judgement when `row` is a proper subsequence of a known path."""
        other, at, share = held
        operations = self.paths.operations(other)
        step, after = int(operations[at]), int(operations[at - 1]) if at else NONE
        subject, caller = self._suspect(row, other, at, late)
        return Judgement(Kind.INTERRUPTED_SEQUENCE, p, other, share, step, after, subject, caller)

    def _suspect(self, row: int, other: int, at: int, late: bool) -> tuple[int, int]:
        """(event to look at first, calling service or NONE) when the step `at` of the path `other` did not come.

        A call that was made and not answered, or whose caller is missing too: the callee. A caller that went on without
        the step: the caller. One that stopped: whom it had called last, for that is where it went wrong or threw.
        """
        known, seen = self.paths.operations(other).tolist(), self.paths.operations(row).tolist()
        caller, client = self.paths.caller_of(other, at)
        asked = client != NONE and client in self.paths.unanswered.get(row, ())
        if caller == NONE or late or asked or caller not in seen:
            return known[at], self._service(caller)
        callers = self.paths.callers_of(other)
        following = [step for step, by in zip(known[at + 1 :], callers[at + 1 :], strict=True) if by == caller]
        if not set(seen[at:]).isdisjoint(following):
            return caller, NONE
        home = self._service(caller)
        for k in range(at - 1, -1, -1):
            if callers[k] == caller and self._service(known[k]) != home:
                return known[k], home
        return caller, NONE

    def _judge_late(self, row: int, cold: bool) -> Judgement:
        """A chain closed without its root, on a path that is usual, or in a flow too young to say.

        Without its root a chain looks like a flow of its own, so a young flow is looked for inside the tenant's others.
        """
        flow = int(self.known.row["flow"][row])
        if cold:
            tenants = self.symbols.flows.column("tenant")
            tenant = int(tenants[flow])
            rows = np.flatnonzero(tenants[self.known.view("flow")] == tenant).astype(np.int64)
            rows = rows[self.known.flow["total"][self.known.row["flow"][rows]] >= self.config.learn_chains_min]
            chains = float(self.tenant_chains[tenant])
            p = (float(self.tenant_rootless[tenant]) + 0.5) / (chains + 1.0)
        else:
            rows = self.paths.flow_rows(flow)
            p = self.known.late_rate(flow)
        _, _, held = self.paths.judge(row, rows, GAP)
        if held[0] == NONE:
            return Judgement(NONE, 1.0 if cold else p)
        return self._broken_off(row, held, min(1.0, max(p, P_MIN)), late=True)

    # windows

    def advance(self, now_ns: int) -> Findings:
        size, distribution, flows = self.paths.size, self.distribution, self.known.flow["total"].size
        if size > distribution.dispersion.size or flows > distribution.rate.size:
            distribution.reserve(size, flows)
            self.repeats.reserve(flows)
        if self.share.size != size:
            self.share = np.empty(size)
        flow, row = self.known.view("flow"), self.known.row
        known = Known(
            *(self.known.flow["total"], float(self.config.learn_chains_min), self.paths.column["novel"]),
            *(row["good"], row["bad"], row["ratio"], self.share),
        )
        boundary = distribution.missed_boundary(now_ns)
        if boundary is not None:
            distribution.look(flow, known)
            distribution.push(boundary, np.zeros(size, np.int64), flow)  # what was seen since came after it
            self._end_slice(boundary)
        ended = distribution.end_epoch(now_ns, self.known.view("seen"), flow, known)
        findings = (self._repeated(flow, ended.repeated), self._out_of_range(flow, ended.excess))
        if ended.is_slice:
            self._end_slice(now_ns)
        if self._enter_slice(now_ns):
            distribution.look(flow, known)
        return all_findings(findings)

    def _end_slice(self, now_ns: int) -> None:
        """Learns from the slice that ended at `now_ns`."""
        clumped = self.came / (self.came - self.recurred)  # of geometric clumps
        self.distribution.end_slice(now_ns, self.share, self.known.view("flow"), clumped)
        self.repeats.end_slice(self.known.flow["total"] >= self.config.learn_chains_min)
        came = self.paths.view("novel") & (self.known.view("first_ns") > now_ns - self.distribution.slice_ns)
        counts = np.minimum(self.distribution.rows.sum_long[: came.size][came], RECURRED_MAX)
        self.recurred += float(np.maximum(counts - 1, 0).sum())
        self.came += float(counts.sum())
        fade = min(1.0, CAME_MAX / self.came)
        self.recurred, self.came = self.recurred * fade, self.came * fade

    def _enter_slice(self, now_ns: int) -> bool:
        """Whether another slice has begun: forgets a little then, and sets what is expected in it."""
        slice_index = now_ns // self.distribution.slice_ns
        if slice_index == self.slice_index:
            return False
        self.slice_index = slice_index
        self.known.adopt(self.config.adopt_s, self.config.adopt_repeats)
        self.paths.fade(1.0 - 1.0 / FORGET_SLICES)
        flow, good = self.known.view("flow"), self.known.view("good")
        overall = good / np.maximum(self.known.flow["total"][flow], 1.0)
        shares = self.distribution.shares(self.distribution.slot(now_ns), flow, overall)
        self.known.view("ratio")[:] = np.divide(shares, overall, out=np.ones_like(overall), where=overall > 0)
        self.known.recount()
        self._forget_judgements()
        return True

    def _forget_judgements(self) -> None:
        """After what is known has changed noticeably; part of the state, so that a restored run judges alike."""
        self.judged.clear()
        self.learned_at = self.known.chains()

    def _repeated(self, flow: I32, rows: list[int]) -> Findings:
        """New and broken-off paths seen `repeat_min` times within the last slice, summed per flow, kind and subject.

        p: that many different ones by chance, times that they came again so often (geometric, from earlier new paths).
        """
        if not rows:
            return no_findings()
        counts = self.distribution.rows.sum_long
        groups: dict[tuple[int, int, int], list[tuple[int, int, Judgement]]] = {}
        for row in rows:
            judgement = self._judgement(row, flags.NEW)
            if judgement.kind != NONE:
                key = int(flow[row]), judgement.kind, judgement.subject
                groups.setdefault(key, []).append((int(counts[row]), row, judgement))
        said = []
        for (of_flow, _, _), group in groups.items():
            count = sum([entry[0] for entry in group])
            if count < self.config.repeat_min:
                continue
            _, row, judgement = max(group, key=lambda entry: (entry[0], -entry[1]))
            expected = float(self.distribution.flows.sum_long[of_flow]) * judgement.p
            again = (self.recurred / self.came) ** (count - len(group))
            nominal = max(P_MIN, repeat_tail(len(group), expected) * again)
            nats = -math.log(nominal)
            self.repeats.current[of_flow] = max(self.repeats.current[of_flow], nats)
            if nominal < WINDOW_P and (p := max(nominal, self.repeats.p(of_flow, nats))) < WINDOW_P:
                detail = row * 8 + flags.NEW
                said.append((NONE, *self._finding(row, judgement, p, expected, count, detail)))
        return as_findings(said)

    def _out_of_range(self, flow: I32, found: list[Excess]) -> Findings:
        said = []
        for excess in found:
            if excess.p >= WINDOW_P:
                continue
            detail = excess.index + (0 if excess.long else SHORT_DETAIL)
            if excess.subject == "flow":
                of_flow, event = excess.index, int(self.symbols.flows.column("event")[excess.index])
                detail += FLOW_DETAIL
            else:
                of_flow, event = int(flow[excess.index]), self._where_it_parts(excess.index)
            surge, drop = RATE_KINDS if excess.subject == "flow" else SHARE_KINDS
            subject = of_flow, self._service(event), event, NONE, NONE
            counts = excess.expected, excess.actual
            kind = surge if excess.nats > 0 else drop
            said.append((NONE, 0, kind, Level.FLOW, *subject, max(P_MIN, excess.p), *counts, detail))
        return as_findings(said)

    def _where_it_parts(self, row: int) -> int:
        """The operation that decides between a path and the flow's most similar other one."""
        other, at = self.paths.nearest(row)
        operations = self.paths.operations(row)
        if operations.size == 0:
            return int(self.symbols.flows.column("event")[self.known.row["flow"][row]])
        if other == NONE:
            return int(operations[0])
        holder, at = (row, at) if at < operations.size else (other, min(at, self.paths.operations(other).size - 1))
        caller, _ = self.paths.caller_of(holder, at)
        return caller if caller != NONE else int(self.paths.operations(holder)[at])

    # learning

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        if len(batch) == 0:
            return
        changed = self.paths.learn(self.paths.rows(batch), batch, normal)
        kernels.count_rootless(batch.tenant, batch.root, normal, self.tenant_chains, self.tenant_rootless)
        if changed or self.known.chains() > self.learned_at * 1.05:
            self._forget_judgements()
        kept = self.paths.evict()
        if kept is not None:
            self.distribution.reserve(int(kept.max()) + 1, 1)
            self.distribution.keep(kept)
            self._forget_judgements()

    # explaining

    def evidence(self, finding: np.void) -> dict[str, Any]:
        detail = int(finding["detail"])
        if int(finding["kind"]) in SHARE_KINDS + RATE_KINDS:
            return self._range_evidence(finding, detail)
        row = detail >> 3
        judgement = self._judgement(row, detail & 7)
        total = float(self.known.flow["total"][self.known.row["flow"][row]])
        facts: dict[str, Any] = {
            "path": self._text(row),
            "history": round(total),
            "seen": int(self.known.row["good"][row] + self.known.row["bad"][row]),
            "new_path_rate": round(self.known.new_rate(int(self.known.row["flow"][row])), 6),
            "step": self._event_text(judgement.step),
            "after": self._event_text(judgement.after),
        }
        if judgement.other != NONE:
            facts["known_path"] = self._text(judgement.other)
        if judgement.kind == Kind.INTERRUPTED_SEQUENCE:
            flow = int(self.known.row["flow"][judgement.other])
            after = START if judgement.after == NONE else judgement.after
            facts["share"] = round(self.paths.probability(flow, after, judgement.step), 6)
            facts["path_share"] = round(judgement.share, 6)
        if finding["chain"] == NONE:
            facts |= {"expected": round(float(finding["expected"]), 3), "actual": int(finding["actual"])}
            facts["slice_s"] = self.config.slice_s
        return {key: value for key, value in facts.items() if value is not None}

    def _range_evidence(self, finding: np.void, detail: int) -> dict[str, Any]:
        short, index = bool(detail & SHORT_DETAIL), detail & (FLOW_DETAIL - 1)
        distribution = self.distribution
        of_flow = bool(detail & FLOW_DETAIL)
        dispersion = distribution.rate_dispersion[index] if of_flow else distribution.dispersion[index]
        spread = 3.0 * math.sqrt(max(float(finding["expected"]), 0.25) * float(dispersion))
        low, high = max(0.0, float(finding["expected"]) - spread), float(finding["expected"]) + spread
        within = distribution.short * distribution.epoch_ns / 1e9 if short else self.config.slice_s
        facts = {
            "expected": f"{low:.0f} to {high:.0f}",
            "actual": int(finding["actual"]),
            "within_s": within,
            "history": int(distribution.slices[int(finding["flow"])]),
        }
        if not of_flow:
            facts |= {"path": self._text(index), "share": round(float(self.share[index]), 6)}
        return facts

    def _event_text(self, event: int) -> str | None:
        if event < 0:
            return None
        return f"{self.symbols.services.text[self._service(event)]} {self.symbols.events.text[event]}"

    def _text(self, row: int) -> str:
        events = self.paths.operations(row).tolist()
        first, last = (events, []) if len(events) <= 12 else (events[:8], events[-2:])
        names = [self._event_text(event) or "" for event in first + last]
        if last:
            names.insert(len(first), f"({len(events) - 10} more)")
        return " > ".join(names)

    def version(self) -> str:
        return "1"

    def describe_state(self) -> str | None:
        young = describe_young(self.known.flow["total"], self.known.young, self.symbols.flows.text, "new paths")
        if young is not None:
            return young
        slices = int(self.distribution.slices.max())
        if slices < SLICES_MIN:
            wait = (SLICES_MIN - slices) * self.config.slice_s / 60
            return f"shares of paths are judged after {SLICES_MIN} slices: {wait:.0f} more minutes"
        return None

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "paths": self.paths.snapshot(),
            "known": self.known.snapshot(),
            "distribution": self.distribution.snapshot(),
            "tenant_chains": self.tenant_chains.copy(),
            "tenant_rootless": self.tenant_rootless.copy(),
            "learned_at": self.learned_at,
            "share": self.share.copy(),
            "repeats": self.repeats.snapshot(),
            "slice_index": self.slice_index,
            "recurred": self.recurred,
            "came": self.came,
            "judged": np.array([[*key, *astuple(j)] for key, j in self.judged.items()]).reshape(-1, 10),
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["version"] != 1:
            raise ValueError(f"chain_sequence snapshot of version {state['version']}, expected 1")
        self.known.restore(state["known"])
        self.paths.restore(state["paths"])
        self.distribution.restore(state["distribution"])
        self.tenant_chains = np.array(state["tenant_chains"], np.float64)
        self.tenant_rootless = np.array(state["tenant_rootless"], np.float64)
        self.learned_at = float(state["learned_at"])
        self.share = np.array(state["share"], np.float64)
        self.repeats.restore(state["repeats"])
        self.slice_index = int(state["slice_index"])
        self.recurred, self.came = float(state["recurred"]), float(state["came"])
        self.judged = {
            (int(row), int(flag)): Judgement(int(kind), p, int(other), share, *(int(event) for event in events))
            for row, flag, kind, p, other, share, *events in np.asarray(state["judged"]).tolist()
        }


def repeat_tail(count: int, expected: float) -> float:
    """P(at least `count` of a Poisson of mean `expected`), by its Chernoff bound: an upper limit, never 0."""
    if count <= expected:
        return 1.0
    expected = max(expected, 1e-9)
    return max(P_MIN, math.exp(count - expected - count * math.log(count / expected)))


def build(config: Config, symbols: Symbols) -> ChainSequence:
    """The detector as configured."""
    return ChainSequence(config.detectors.chain_sequence, symbols, config.engine.epoch_s, config.decode.paths_max)
