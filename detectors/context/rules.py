"""Rules over chains: what must hold in every transaction, as YAML conditions and CEL expressions.

How it works. `rulebook.py` reads the files and compiles the conditions; the kernel `kernels/rules.py` decides them for
a whole batch. An expression is evaluated for those chains only whose rule's conditions hold, and once per distinct
sequence when it reads nothing but names. Which steps an event matches is found out once, when the event is first seen.
Python works per violation, not per chain. The rules keep no state: what is cached follows from the symbols.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cel_expr_python import cel

from collector_processor.kernels import rules as kernel
from collector_processor.model import NONE, ChainBatch, Findings, Kind, Level, Outcome, Symbols, no_findings
from detectors.context.rulebook import Compiler, Rule, RulesError, Source, StepMatcher, load, matcher

P_CERTAIN: Final = 1e-12
P_OTHER: Final = 1e-4  # of a rule that is not certain: the fusion weighs it
MEMO_MAX: Final = 65_536
KINDS: Final = ("log", "unspecified", "internal", "server", "client", "producer", "consumer")
STATUS: Final = ("unset", "ok", "error")

# What an expression may read. All of it but the names makes the result depend on more than the sequence.
VARIABLES: Final = {
    "flow": cel.Type.STRING,
    "tenant": cel.Type.STRING,
    "trace_id": cel.Type.STRING,
    "outcome": cel.Type.STRING,
    "duration_s": cel.Type.DOUBLE,
    "services": cel.Type.List(cel.Type.STRING),
    "spans": cel.Type.List(cel.Type.Map(cel.Type.STRING, cel.Type.DYN)),
    "logs": cel.Type.List(cel.Type.Map(cel.Type.STRING, cel.Type.DYN)),
}
BEYOND_NAMES: Final = re.compile(
    r"\b(?:trace_id|outcome|duration_s|start_s|time_s|kind|status|severity|instance|parent|span|attributes|values)\b"
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled CEL expression. `by_sequence`: it reads names only."""

    program: Any
    by_sequence: bool


class Rules:
    """The rules of `files` over the chains of one engine. `attributes`: `join.attributes` of the config.

    Raises RulesError: a file that cannot be used, with the file, line and rule.
    """

    def __init__(self, files: Sequence[str], attributes: Sequence[str], symbols: Symbols) -> None:
        self.symbols = symbols
        self.attributes = tuple(attributes)
        loaded, self.digest = load(files)
        self.rules: list[Rule] = [rule for rule, _ in loaded]
        compiler = Compiler(attributes)
        for rule, source in loaded:
            compiler.rule(rule, source)
        self._blamed = [compiler.step(rule.blame) if rule.blame else NONE for rule in self.rules]
        self.expressions = {
            number: compiled(rule, source, self.attributes)
            for number, (rule, source) in enumerate(loaded)
            if rule.expression is not None
        }
        self.failed: Counter[str] = Counter()
        """Expressions that could not be evaluated, by rule."""
        self._table = compiler.tables
        self._rules, self._atoms, self._bounds, self._operands = self._table.arrays()
        self._known = Known(symbols, compiler.tables.steps, compiler.tables.calls, self.rules)
        self._kinds = np.array(self._table.step_kinds, np.int64)
        self._status = np.array(self._table.step_status, np.int64)
        n_steps, n_operands = len(self._table.steps), len(self._table.operands)
        self._scratch = (
            np.zeros((n_steps, 3), np.int64),
            np.zeros(n_steps, np.float64),
            np.zeros((n_operands, 6), np.float64),
            np.zeros(n_operands, np.int64),
            np.zeros(n_operands, np.uint64),
            np.zeros((len(self._table.calls), 2), np.int64),
        )
        self._memo: dict[tuple[int, int, int], bool] = {}

    def score(self, batch: ChainBatch) -> Findings:
        """RULE_VIOLATION findings, sorted by chain, then by rule. `detail` is the number of the rule."""
        if not self.rules or not len(batch):
            return no_findings()
        rows, numbers = self._judge(batch)
        if not len(rows):
            return no_findings()
        pending = np.flatnonzero(rows[:, 2] == NONE)
        if pending.size:
            broken = np.ones(len(rows), np.bool_)
            broken[pending] = [not self._holds(batch, int(rows[i, 0]), int(rows[i, 1])) for i in pending]
            rows, numbers = rows[broken], numbers[broken]
        return self._findings(batch, rows, numbers)

    def _judge(self, batch: ChainBatch) -> tuple[Any, Any]:
        """What the kernel found: (chain, rule, atom, record) and (expected, actual)."""
        self._known.update()
        size = 256
        while True:
            out = np.empty((size, 4), np.int64), np.empty((size, 2), np.float64)
            found = kernel.judge(
                (batch.flow, batch.outcome, batch.start_ns, batch.end_ns, batch.offsets),
                (batch.event, batch.kind, batch.status, batch.time_ns, batch.duration),
                batch.parent,
                self.symbols.events.column("service"),
                (self._known.starts, self._known.ids, self._kinds, self._status),
                (batch.cell_record, batch.cell_key, batch.cell_number, batch.cell_hash),
                (self._known.callers, self._known.callees),
                self._operands,
                self._known.applies,
                self._rules,
                self._atoms,
                self._bounds,
                self._scratch,
                out,
            )
            if found <= size:
                return out[0][:found], out[1][:found]
            size = int(found)

    def _holds(self, batch: ChainBatch, chain: int, number: int) -> bool:
        """Whether the expression of rule `number` is true. One that fails (a key that is not there) is not false."""
        expression = self.expressions[number]
        key = (int(batch.sequence[chain]), int(batch.flow[chain]), number)
        if expression.by_sequence and key in self._memo:
            return self._memo[key]
        found = expression.program.eval(data=context(batch, chain, self.attributes)).value()
        if not isinstance(found, bool):
            self.failed[self.rules[number].name] += 1
        holds = found is not False
        if expression.by_sequence:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            self._memo[key] = holds
        return holds

    def _findings(self, batch: ChainBatch, rows: Any, numbers: Any) -> Findings:
        out = no_findings(len(rows))
        out["chain"] = rows[:, 0]
        out["kind"] = Kind.RULE_VIOLATION
        out["flow"] = batch.flow[rows[:, 0]]
        out["detail"] = rows[:, 1]
        out["expected"] = np.nan_to_num(numbers[:, 0])
        out["actual"] = np.nan_to_num(numbers[:, 1])
        for i, (chain, rule, atom, row) in enumerate(rows.tolist()):
            out["p"][i] = P_CERTAIN if self.rules[rule].certain else P_OTHER
            self._blame(
                batch, out[i : i + 1], chain, self._blamed[rule], self._table.blame[atom] if atom >= 0 else NONE, row
            )
        return out

    def _blame(self, batch: ChainBatch, finding: Findings, chain: int, chosen: int, missing: int, row: int) -> None:
        """Fills the subject: the step that the rule blames, else the record that broke it, else the step missing."""
        symbols = self.symbols
        if chosen >= 0:
            row = next(iter(self._occurrences(batch, chain, chosen)), NONE)
        if row < 0 and (step := chosen if chosen >= 0 else missing) >= 0:
            service = self._known.service_of(step, int(batch.tenant[chain]))
            finding["service"] = service
            finding["level"] = Level.SERVICE if service >= 0 else Level.FLOW
            return
        if row < 0:
            row = int(batch.root[chain])
        if row < 0:
            finding["level"] = Level.FLOW
            return
        event = int(batch.event[row])
        service = int(symbols.events.column("service")[event])
        finding["event"] = event
        finding["service"] = service
        finding["level"] = Level.TEMPLATE if symbols.events.column("is_log")[event] else Level.OPERATION
        parent = int(batch.parent[row])
        if parent >= 0:
            caller = int(symbols.events.column("service")[batch.event[parent]])
            finding["caller"] = caller if caller != service else NONE

    def _occurrences(self, batch: ChainBatch, chain: int, step: int) -> Iterable[int]:
        known = self._known
        for row in range(int(batch.offsets[chain]), int(batch.offsets[chain + 1])):
            event = batch.event[row]
            if step in known.ids[known.starts[event] : known.starts[event + 1]] and kernel.matches(
                step, batch.kind[row], batch.status[row], self._kinds, self._status
            ):
                yield row

    def evidence(self, finding: np.void) -> dict[str, Any]:
        """The rule's text and what it asks for."""
        rule = self.rules[int(finding["detail"])]
        expected, actual = float(finding["expected"]), float(finding["actual"])
        return {
            "rule": rule.name,
            "text": rule.sentence(expected, actual),
            "category": rule.category,
            "severity": rule.severity,
            "certain": rule.certain,
            "actions": list(rule.actions),
            "expected": expected,
            "actual": actual,
        }

    def version(self) -> str:
        return f"rules-{self.digest}"

    def describe_state(self) -> str | None:
        """The rules whose expressions fail, with how often; None when all can be evaluated."""
        if not self.failed:
            return None
        return "; ".join(
            f"rule {name} could not be evaluated {count} times" for name, count in sorted(self.failed.items())
        )


class Known:
    """Which steps each event matches, which calls each service can be part of, which rules each flow has.

    Filled as the symbols grow, and anew when they were replaced.
    """

    def __init__(
        self,
        symbols: Symbols,
        steps: Sequence[StepMatcher],
        calls: Sequence[tuple[re.Pattern[str], re.Pattern[str]]],
        rules: Sequence[Rule],
    ) -> None:
        self.symbols = symbols
        self.steps = steps
        self.calls = calls
        self.scopes = [(matcher(rule.applies_to.flows), matcher(rule.applies_to.tenants)) for rule in rules]
        self._mark: tuple[int, ...] = ()
        self._clear()

    def _clear(self) -> None:
        self.starts = np.zeros(1, np.int32)
        self.ids = np.zeros(0, np.int32)
        self.callers = np.zeros((len(self.calls), 0), np.uint8)
        self.callees = np.zeros((len(self.calls), 0), np.uint8)
        self.applies = np.zeros((0, len(self.scopes)), np.uint8)

    def update(self) -> None:
        """Takes in the names that are new."""
        symbols = self.symbols
        lists = (symbols.events, symbols.services, symbols.flows)
        sizes = tuple(len(names) for names in lists)
        if sizes == self._mark[:3]:
            return
        done = (self.starts.size - 1, self.callers.shape[1], self.applies.shape[0])
        lasts = tuple(
            int(names.hash[n - 1]) if 0 < n <= len(names) else 0 for names, n in zip(lists, done, strict=True)
        )
        if self._mark and lasts != self._mark[3:]:
            self._clear()
        self._add_events(self.starts.size - 1)
        self._add_services(self.callers.shape[1])
        self._add_flows(self.applies.shape[0])
        self._mark = (*sizes, *(int(names.hash[-1]) for names in lists))

    def _add_events(self, first: int) -> None:
        events, services = self.symbols.events, self.symbols.services
        service, is_log = events.column("service"), events.column("is_log")
        starts, ids = [], []
        for event in range(first, len(events)):
            name, of = events.text[event], services.text[service[event]] if event else ""
            if event:  # 0 is `other`: names that did not fit
                ids += [n for n, step in enumerate(self.steps) if step.matches(of, name, bool(is_log[event] > 0))]
            starts.append(self.ids.size + len(ids))
        self.ids = np.concatenate([self.ids, np.array(ids, np.int32)])
        self.starts = np.concatenate([self.starts, np.array(starts, np.int32)])

    def _add_services(self, first: int) -> None:
        texts = self.symbols.services.text[first:]

        def column(patterns: Sequence[re.Pattern[str]]) -> Any:
            found = [[bool(pattern.match(text)) for text in texts] for pattern in patterns]
            return np.array(found, np.uint8).reshape(len(self.calls), len(texts))

        self.callers = np.concatenate([self.callers, column([caller for caller, _ in self.calls])], axis=1)
        self.callees = np.concatenate([self.callees, column([callee for _, callee in self.calls])], axis=1)

    def _add_flows(self, first: int) -> None:
        flows, tenants = self.symbols.flows, self.symbols.tenants
        rows = [
            [bool(flow.match(flows.text[i]) and tenant.match(tenants.text[flows.column("tenant")[i]])) and i > 0
             for flow, tenant in self.scopes]
            for i in range(first, len(flows))
        ]  # fmt: skip
        self.applies = np.concatenate([self.applies, np.array(rows, np.uint8).reshape(-1, len(self.scopes))])

    def service_of(self, step: int, tenant: int) -> int:
        """The first service of `tenant` that `step` can be of, NONE when none was seen."""
        services = self.symbols.services
        of = services.column("tenant")
        pattern = self.steps[step].service
        return next((i for i in range(1, len(services)) if of[i] == tenant and pattern.match(services.text[i])), NONE)


def compiled(rule: Rule, source: Source, attributes: Sequence[str]) -> Expression:
    """The expression of `rule`, tried once on a made-up chain. RulesError when it cannot be compiled or evaluated."""
    text = rule.expression or ""
    try:
        program = cel.NewEnv(variables=VARIABLES).compile(text)
    except RuntimeError as error:
        raise source.error(rule, f"expression: {_first_fault(str(error))}") from None
    if program.return_type() not in (cel.Type.BOOL, cel.Type.DYN):
        raise source.error(rule, f"expression: it is {program.return_type().name()}, not BOOL")
    kept = dict.fromkeys(attributes, 1.0)
    shared = {"service": "s", "instance": "i", "attributes": kept, "values": dict.fromkeys(attributes, "0")}
    span = {
        **shared,
        "operation": "o",
        "kind": "server",
        "status": "ok",
        "start_s": 0.0,
        "duration_s": 0.0,
        "parent": -1,
    }
    log = {**shared, "template": "t", "severity": 9, "time_s": 0.0, "span": 0}
    names = {"flow": "f", "tenant": "t", "trace_id": "0", "outcome": "complete", "duration_s": 0.0, "services": ["s"]}
    found = program.eval(data={**names, "spans": [span], "logs": [log]}).value()
    if not isinstance(found, bool) and "Key not found" in str(found):  # other errors may come of the made-up chain
        raise source.error(rule, f"expression: {found}")
    return Expression(program, BEYOND_NAMES.search(text) is None)


def _first_fault(message: str) -> str:
    line = message.split("\n", 1)[0]
    return line.replace("INVALID_ARGUMENT: ", "").replace("ERROR: <input>:", "at ").strip()


def context(batch: ChainBatch, chain: int, attributes: Sequence[str]) -> dict[str, Any]:
    """What an expression reads of a chain.

    Times are seconds after the chain's start; `parent` and `span` are indices in `spans`, -1 none; `attributes` holds
    numbers, `values` a token per value that is equal when the values are.
    """
    symbols = batch.symbols
    first, last = int(batch.offsets[chain]), int(batch.offsets[chain + 1])
    start = int(batch.start_ns[chain])
    numbers, tokens = _cells(batch, first, last, attributes)
    service_of = symbols.events.column("service")
    place: dict[int, int] = {}
    spans: list[dict[str, Any]] = []
    logs: list[dict[str, Any]] = []
    for row in range(first, last):
        event, kind, status, parent = (int(x[row]) for x in (batch.event, batch.kind, batch.status, batch.parent))
        instance = int(batch.instance[row])
        one: dict[str, Any] = {
            "service": symbols.services.text[service_of[event]],
            "instance": symbols.instances.text[instance] if instance >= 0 else "",
            "attributes": numbers.get(row, {}),
            "values": tokens.get(row, {}),
        }
        at_s = (int(batch.time_ns[row]) - start) * 1e-9
        if kind == 0:
            of = place.get(parent, NONE)
            logs.append({**one, "template": symbols.events.text[event], "severity": status, "time_s": at_s, "span": of})
            continue
        place[row] = len(spans)
        one |= {"operation": symbols.events.text[event], "kind": KINDS[min(kind, 6)], "status": STATUS[min(status, 2)]}
        one |= {"start_s": at_s, "duration_s": float(batch.duration[row]) * 1e-9, "parent": place.get(parent, NONE)}
        spans.append(one)
    return {
        "flow": symbols.flows.text[batch.flow[chain]],
        "tenant": symbols.tenants.text[batch.tenant[chain]],
        "trace_id": batch.trace_id(chain),
        "outcome": Outcome(int(batch.outcome[chain])).name.lower(),
        "duration_s": (int(batch.end_ns[chain]) - start) * 1e-9,
        "services": list(dict.fromkeys(one["service"] for one in spans)),
        "spans": spans,
        "logs": logs,
    }


def _cells(
    batch: ChainBatch, first: int, last: int, attributes: Sequence[str]
) -> tuple[dict[int, Any], dict[int, Any]]:
    """Per record its attributes that are numbers, and a token per attribute."""
    numbers: dict[int, dict[str, float]] = {}
    tokens: dict[int, dict[str, str]] = {}
    low, high = np.searchsorted(batch.cell_record, [first, last])
    for i in range(int(low), int(high)):
        row, key = int(batch.cell_record[i]), attributes[int(batch.cell_key[i])]
        tokens.setdefault(row, {})[key] = f"{int(batch.cell_hash[i]):016x}"
        if not np.isnan(batch.cell_number[i]):
            numbers.setdefault(row, {})[key] = float(batch.cell_number[i])
    return numbers, tokens


__all__ = ["Rules", "RulesError"]
