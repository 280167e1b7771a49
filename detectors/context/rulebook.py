"""Rule files: YAML in, checked rules and the tables that the kernel judges by out, or an error with file, line, rule.

How it works. A rule says when it applies (`applies_to`, `when`), what must hold (`require`), what must not (`forbid`),
and for what these cannot say a CEL expression that must be true. A record is named by a *step*: `account POST /v1/*`
(the service, a blank, the operation) or a mapping with `service`, `operation` or `log`, `kind`, `status`; `*` stands
for anything, a leading `!` excludes. The conditions, each a mapping with one key:

| condition | holds when |
|---|---|
| `present: STEP`, `absent: STEP` | it occurs, or does not |
| `count: {step, min, max}` | it occurs that often |
| `order: {first: STEP, then: STEP}` | the first of each stand in this causal order; open when one is missing |
| `follows: {step, by: STEP, within_s}` | after the first `step` comes a `by` in that time; open without `step` |
| `duration: {step, max_s, min_s}` | the longest `step`, or the whole chain, took that long |
| `compare: {left, is, right, reference, tolerance}` | two attributes, or one and a number, are so; open when missing |
| `call: {from, to}` | one service calls the other |

An operand is `{attribute, step, take}`; `take` is first (if not said), last, sum, min, max or count. With `reference`
the side that differs from it is named. What is open neither violates a rule nor lets it apply.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from collector_processor.kernels import rules as kernel
from collector_processor.model import F64, I64, content_hash

FILE_BYTES_MAX: Final = 1 << 20
RULES_MAX: Final = 1000
SHIPPED: Final = Path(__file__).parent
RELATIONS: Final = ("==", "!=", "<=", "<", ">=", ">")  # in the order of kernel.EQUAL...
TAKES: Final = ("sum", "first", "last", "min", "max", "count")  # in the order of kernel.SUM...
OUTCOMES: Final = ("complete", "timeout", "evicted")  # in the order of model.Outcome
KINDS: Final = ("log", "unspecified", "internal", "server", "client", "producer", "consumer")  # as ChainBatch.kind
MANY: Final = 1 << 40


class RulesError(ValueError):
    """A rule file cannot be used. One line for each thing that is wrong: file, line, rule, what."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _patterns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns), Field(min_length=1)]


class Step(_Model):
    """A pattern of records."""

    service: Patterns = ("*",)
    operation: Patterns | None = None
    log: Patterns | None = None
    kind: Literal["unspecified", "internal", "server", "client", "producer", "consumer"] | None = None
    status: Literal["error", "no error"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        service, _, operation = value.partition(" ")
        return {"service": service, "operation": operation or "*"}

    @model_validator(mode="after")
    def _one_name(self) -> Step:
        if self.log is not None and (self.operation is not None or self.kind is not None):
            raise ValueError("a step is a span (operation, kind) or a log, not both")
        return self


class Operand(_Model):
    """An attribute over the records of a chain, as one number."""

    attribute: str
    step: Step | None = None
    take: Literal["sum", "first", "last", "min", "max", "count"] = "first"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"attribute": value} if isinstance(value, str) else value


class Count(_Model):
    step: Step
    min: Annotated[int, Field(ge=0)] = 0
    max: Annotated[int, Field(ge=0)] = MANY


class Order(_Model):
    first: Step
    then: Step


class Follows(_Model):
    step: Step
    by: Step
    within_s: Annotated[float, Field(gt=0)] | None = None


class Duration(_Model):
    step: Step | None = None
    max_s: Annotated[float, Field(gt=0)] | None = None
    min_s: Annotated[float, Field(ge=0)] = 0.0


class Compare(_Model):
    left: Operand
    relation: Annotated[Literal["==", "!=", "<=", "<", ">=", ">"], Field(alias="is")] = "=="
    right: float | Operand
    reference: Operand | None = None
    tolerance: Annotated[float, Field(ge=0)] = 1e-9


class Call(_Model):
    caller: Annotated[Patterns, Field(alias="from")]
    to: Patterns


class Condition(_Model):
    """Exactly one of its members."""

    present: Step | None = None
    absent: Step | None = None
    count: Count | None = None
    order: Order | None = None
    follows: Follows | None = None
    duration: Duration | None = None
    compare: Compare | None = None
    call: Call | None = None

    @model_validator(mode="after")
    def _one(self) -> Condition:
        if len(self.model_fields_set) != 1 or getattr(self, next(iter(self.model_fields_set))) is None:
            raise ValueError(f"a condition is one of {', '.join(type(self).model_fields)}")
        return self


class Scope(_Model):
    flows: Patterns = ("*",)
    tenants: Patterns = ("*",)
    services: Patterns | None = None
    outcomes: tuple[Literal["complete", "timeout", "evicted"], ...] = ("complete",)


class Rule(_Model):
    """One rule as the file has it."""

    name: Annotated[str, Field(min_length=1, max_length=120)]
    category: Literal["system", "operational", "compliance"]
    severity: Literal["info", "warning", "critical"]
    text: Annotated[str, Field(min_length=1, max_length=1000)]
    actions: tuple[str, ...] = ()
    certain: bool = True
    blame: Step | None = None
    applies_to: Scope = Scope()
    when: tuple[Condition, ...] = ()
    require: tuple[Condition, ...] = ()
    forbid: tuple[Condition, ...] = ()
    expression: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if not (self.require or self.forbid or self.expression):
            raise ValueError("a rule needs require, forbid or expression")
        for _, name, spec, _ in string.Formatter().parse(self.text):
            if name is not None and name not in {"expected", "actual"}:
                raise ValueError(f"text knows {{expected}} and {{actual}}, not {{{name}}}")
            if name is not None:
                format(1.0, spec or "")
        return self

    def sentence(self, expected: float, actual: float) -> str:
        """The text for the page."""
        return self.text.format(expected=_Shown(expected), actual=_Shown(actual))


class _Shown(float):
    """A float that without a format is written as short as it can be."""

    def __format__(self, spec: str) -> str:
        return format(float(self), spec or ".12g")


class RuleFile(_Model):
    version: Literal[1] = 1
    rules: tuple[Rule, ...]


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule stands: for messages."""

    file: str
    line: int

    def error(self, rule: Rule, message: str) -> RulesError:
        return RulesError(f"{self.file}:{self.line}: rule {rule.name}: {message}")


def load(names: Sequence[str]) -> tuple[list[tuple[Rule, Source]], str]:
    """The rules of the files `names` (a path, or the name of a shipped set: `payments`), and a digest of all of them.

    Raises:
        RulesError: a file that cannot be read, is no YAML, or holds a bad rule or two of one name.
    """
    rules: list[tuple[Rule, Source]] = []
    texts: list[str] = []
    for name in names:
        path = Path(name)
        if "/" not in name and not path.suffix:
            path = SHIPPED / f"rules-{name}.yaml"
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise RulesError(f"{path}:1: larger than {FILE_BYTES_MAX} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RulesError(f"{path}:1: cannot be read: {error}") from None
        texts.append(text)
        rules += loads(text, str(path))
    seen: dict[str, Source] = {}
    for rule, source in rules:
        if rule.name in seen:
            raise source.error(rule, f"the name is taken by the rule at {seen[rule.name].file}:{seen[rule.name].line}")
        seen[rule.name] = source
    if len(rules) > RULES_MAX:
        raise RulesError(f"{len(rules)} rules; at most {RULES_MAX} are possible")
    return rules, f"{content_hash(*texts):016x}"


def loads(text: str, file: str) -> list[tuple[Rule, Source]]:
    """The rules in the YAML `text`. Errors as `load`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise RulesError(f"{file}:{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if root is None:
        return []
    _no_key_twice(root, file)
    try:
        parsed = RuleFile.model_validate(value)
    except ValidationError as error:
        lines = [_message(problem, root, value, file) for problem in error.errors(include_url=False)]
        raise RulesError("\n".join(dict.fromkeys(lines))) from None
    nodes = _at(root, ("rules",))
    return [
        (rule, Source(file, _line(nodes.value[number]) if isinstance(nodes, yaml.SequenceNode) else 1))
        for number, rule in enumerate(parsed.rules)
    ]


def _no_key_twice(node: yaml.Node, file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, item in node.value:
            if str(key.value) in seen:
                raise RulesError(f"{file}:{_line(key)}: {key.value} stands here twice")
            seen.add(str(key.value))
            _no_key_twice(item, file)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _no_key_twice(item, file)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _at(node: yaml.Node, path: Sequence[str | int]) -> yaml.Node:
    """The node at `path` below `node`, or the last one on the way that is there."""
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next((item for key, item in node.value if key.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
        else:
            found = None
        if found is not None:
            node = found  # a step that is not in the file names a model or a member of a union
    return node


def _message(problem: Any, root: yaml.Node, value: Any, file: str) -> str:
    path = problem["loc"]
    rule = ""
    if len(path) > 1 and path[0] == "rules" and isinstance(path[1], int):
        entry = value["rules"][path[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        rule = f"rule {name or f'number {path[1] + 1}'}: "
        path = path[2:]
    line = _line(_at(root, problem["loc"]))
    what = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), KEYS, 1)
        what = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    where = ".".join(str(part) for part in path)
    return f"{file}:{line}: {rule}{where + ': ' if where else ''}{what}"


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield info.alias or name


KEYS: Final = sorted(
    {
        key
        for model in (RuleFile, Rule, Scope, Step, Operand, Condition, Count, Order, Follows, Duration, Compare, Call)
        for key in _keys(model)
    }
)

# ---- tables ----------------------------------------------------------------------------------------------------------


def matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    """A pattern for names: any of `patterns`, but none of those with a leading `!`; `*` stands for anything."""

    def either(chosen: list[str]) -> str:
        return "|".join(".*".join(map(re.escape, text.split("*"))) for text in chosen)

    wanted = [text for text in patterns if not text.startswith("!")] or ["*"]
    unwanted = [text[1:] for text in patterns if text.startswith("!")]
    without = rf"(?!(?:{either(unwanted)})\Z)" if unwanted else ""
    return re.compile(rf"{without}(?:{either(wanted)})\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class StepMatcher:
    """A step ready to be held against names."""

    service: re.Pattern[str]
    name: re.Pattern[str]
    is_log: bool

    def matches(self, service: str, name: str, is_log: bool) -> bool:
        return is_log == self.is_log and bool(self.name.match(name)) and bool(self.service.match(service))


@dataclass(slots=True)
class Tables:
    """The rules as `kernels/rules.py` reads them."""

    steps: list[StepMatcher] = field(default_factory=list)
    step_kinds: list[int] = field(default_factory=list)  # bits of ChainBatch.kind
    step_status: list[int] = field(default_factory=list)
    calls: list[tuple[re.Pattern[str], re.Pattern[str]]] = field(default_factory=list)
    operands: list[tuple[int, int, int]] = field(default_factory=list)
    rules: list[tuple[int, int, int]] = field(default_factory=list)
    atoms: list[list[int]] = field(default_factory=list)
    bounds: list[list[float]] = field(default_factory=list)
    blame: list[int] = field(default_factory=list)  # per atom: the step to blame when no record is, or -1
    numbers: dict[Any, int] = field(default_factory=dict)

    def arrays(self) -> tuple[I64, I64, F64, I64]:
        """rules with a last row for the end, atoms, bounds, and the operands."""
        rules = np.array([*self.rules, (len(self.atoms), 0, 0)], np.int64)
        atoms = np.array(self.atoms, np.int64).reshape(-1, 7)
        bounds = np.array(self.bounds, np.float64).reshape(-1, 3)
        return rules, atoms, bounds, np.array(self.operands, np.int64).reshape(-1, 3)


class Compiler:
    """Fills `Tables`. Steps, operands and calls that occur more than once are noted once."""

    def __init__(self, attributes: Sequence[str]) -> None:
        self.attributes = list(attributes)
        self.tables = Tables()

    def rule(self, rule: Rule, source: Source) -> None:
        """Adds `rule`. Raises RulesError when it reads an attribute that no record keeps."""
        table = self.tables
        first = len(table.atoms)
        if rule.applies_to.services is not None:
            any_of = Step(service=rule.applies_to.services)
            self.atom(kernel.WHEN, kernel.COUNT, self.step(any_of), least=1, most=MANY)
        for role, conditions in (
            (kernel.WHEN, rule.when),
            (kernel.REQUIRE, rule.require),
            (kernel.FORBID, rule.forbid),
        ):
            for condition in conditions:
                try:
                    self.condition(role, condition)
                except KeyError as error:
                    raise source.error(rule, f"attribute {error.args[0]} is not in join.attributes") from None
        outcomes = sum(1 << OUTCOMES.index(outcome) for outcome in rule.applies_to.outcomes)
        table.rules.append((first, outcomes, int(rule.expression is not None)))

    def condition(self, role: int, one: Condition) -> None:
        if one.present is not None:
            self.atom(role, kernel.COUNT, self.step(one.present), least=1, most=MANY)
        elif one.absent is not None:
            self.atom(role, kernel.COUNT, self.step(one.absent))
        elif one.count is not None:
            self.atom(role, kernel.COUNT, self.step(one.count.step), least=one.count.min, most=one.count.max)
        elif one.order is not None:
            self.atom(role, kernel.ORDER, self.step(one.order.first), self.step(one.order.then))
        elif one.follows is not None:
            right = self.step(one.follows.by)
            within = np.inf if one.follows.within_s is None else one.follows.within_s * 1e9
            self.atom(role, kernel.FOLLOWS, self.step(one.follows.step), right, high=within, blame=right)
        elif one.duration is not None:
            step = -1 if one.duration.step is None else self.step(one.duration.step)
            most = np.inf if one.duration.max_s is None else one.duration.max_s * 1e9
            self.atom(role, kernel.DURATION, step, low=one.duration.min_s * 1e9, high=most)
        elif one.compare is not None:
            self.compare(role, one.compare)
        elif one.call is not None:
            key = ("call", one.call)
            if key not in self.tables.numbers:
                self.tables.numbers[key] = len(self.tables.calls)
                self.tables.calls.append((matcher(one.call.caller), matcher(one.call.to)))
            self.atom(role, kernel.CALL, self.tables.numbers[key], blame=-1)

    def compare(self, role: int, one: Compare) -> None:
        number = one.right if isinstance(one.right, float) else 0.0
        right = self.operand(one.right) if isinstance(one.right, Operand) else -1
        third = self.operand(one.reference) if one.reference is not None else -1
        relation = RELATIONS.index(one.relation)
        self.atom(
            role,
            kernel.COMPARE,
            self.operand(one.left),
            right,
            least=relation,
            reference=third,
            high=number,
            tolerance=one.tolerance,
            blame=-1,
        )

    def atom(
        self,
        role: int,
        op: int,
        left: int,
        right: int = -1,
        *,
        least: int = 0,
        most: int = 0,
        reference: int = -1,
        low: float = 0.0,
        high: float = 0.0,
        tolerance: float = 0.0,
        blame: int | None = None,
    ) -> None:
        self.tables.atoms.append([role, op, left, right, least, most, reference])
        self.tables.bounds.append([low, high, tolerance])
        self.tables.blame.append(left if blame is None else blame)

    def step(self, step: Step) -> int:
        """The number of `step`."""
        found = self.tables.numbers.get(step)
        if found is not None:
            return found
        number = self.tables.numbers[step] = len(self.tables.steps)
        names = step.log or step.operation or ("*",)
        self.tables.steps.append(StepMatcher(matcher(step.service), matcher(names), step.log is not None))
        kinds = 1 if step.log is not None else 0b1111110
        self.tables.step_kinds.append(kinds if step.kind is None else 1 << KINDS.index(step.kind))
        status = {None: kernel.ANY_STATUS, "error": kernel.ONLY_ERROR, "no error": kernel.NO_ERROR}
        self.tables.step_status.append(status[step.status])
        return number

    def operand(self, operand: Operand) -> int:
        """The number of `operand`. KeyError when its attribute is not kept."""
        if operand.attribute not in self.attributes:
            raise KeyError(operand.attribute)
        if operand not in self.tables.numbers:
            step = -1 if operand.step is None else self.step(operand.step)
            row = (self.attributes.index(operand.attribute), step, TAKES.index(operand.take))
            self.tables.numbers[operand] = len(self.tables.operands)
            self.tables.operands.append(row)
        return self.tables.numbers[operand]
