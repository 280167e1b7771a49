"""`spanchain tune`: settings that serve a labelled recording better, found on its first part, judged on its last.

How it works. The recording is cut in time, outside of any fault: what comes before the cut chooses, what comes after it
judges, and every trial replays the whole in one pass, as the service would have lived it. From the given config on, one
knob at a time is turned by a step; a turn that raises J on the first part stays and may be repeated. J = alpha * F1 +
beta * recall - gamma * P99 takes F1 and recall as the mean of chain level and incident level, as far as labels exist.
What an operator decides (the alert budget, limits, times) is no knob. The result names each changed setting, before and
after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from collector_processor.config import Config
from collector_processor.evaluation.faults import judge
from collector_processor.evaluation.labels import NS, Labels
from collector_processor.evaluation.measures import decisions, j_value
from collector_processor.evaluation.run import Observed, Observer

TUNED_SHARE = 0.6  # of the labelled time chooses
GAIN_MIN = 1e-3  # less is noise of the clock
Trial = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting and the factors by which it may be turned."""

    path: tuple[str, ...]
    factors: tuple[float, ...] = (0.5, 2.0)

    @property
    def name(self) -> str:
        return ".".join(self.path)


FINE = (0.75, 1.33)
KNOBS = (
    *(Knob(("decide", "weights", part)) for part in ("rec", "seq", "ctx")),
    Knob(("decide", "probability_in_incident")),
    Knob(("decide", "probability_max")),
    Knob(("decide", "hold_s")),
    Knob(("decide", "merge_s")),
    Knob(("detectors", "online", "report"), FINE),
    Knob(("detectors", "online", "chain_surprise"), FINE),
    Knob(("detectors", "online", "material_share")),
    Knob(("detectors", "online", "prior")),
    Knob(("detectors", "online", "learn_min")),
    Knob(("detectors", "context", "report"), FINE),
    Knob(("detectors", "context", "chain_surprise"), FINE),
    Knob(("detectors", "context", "shrink")),
    Knob(("detectors", "context", "learn_min")),
    Knob(("detectors", "chain_sequence", "learn_chains_min")),
    Knob(("detectors", "chain_sequence", "repeat_min")),
    Knob(("detectors", "retrieval", "learn_chains_min")),
    Knob(("detectors", "sequence_transformer", "learn_chains_min")),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """The weights of J; `gamma` per second of P99."""

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0


@dataclass(frozen=True, slots=True)
class Worth:
    """What a config is worth on one part of the recording."""

    j: float
    f1: float
    recall: float
    p99_s: float
    found: int
    faults: int
    false: int


@dataclass(frozen=True, slots=True)
class Tuned:
    """The outcome: the config, what was changed, and what before and after are worth on both parts.

    `changed` is setting -> (before, after); `tried` counts replays.
    """

    config: Config
    changed: dict[str, tuple[Any, Any]]
    cut_ns: int
    chosen_on: tuple[Worth, Worth]  # before, after
    judged_on: tuple[Worth, Worth]
    tried: int

    @property
    def better(self) -> bool:
        """Whether the change also pays on the part that had no say."""
        return bool(self.changed) and self.judged_on[1].j > self.judged_on[0].j


def tune(
    paths: Sequence[Path],
    labels: Labels,
    config: Config,
    *,
    trials: int = 30,
    seed: int = 0,
    goal: Goal | None = None,
    progress: Trial | None = None,
) -> Tuned:
    """Searches from `config` with at most `trials` further replays. `progress` is told (trial, of, best J).

    Raises:
        ValueError: the labels do not allow a cut with something to find on both sides.
        OSError: a file cannot be read.
    """
    goal = goal or Goal()
    cut_ns = _cut(labels)
    observed = first = Observer(config, with_baselines=False).run(paths)
    best = config
    best_worth = worth(observed, labels, goal, None, cut_ns)
    start = best_worth
    queue = _turns(seed)
    tried = 0
    while queue and tried < trials:
        knob, factor = queue.pop(0)
        candidate = turned(best, knob, factor)
        if candidate is None:
            continue
        tried += 1
        seen = Observer(candidate, with_baselines=False).run(paths)
        reached = worth(seen, labels, goal, None, cut_ns)
        if reached.j > best_worth.j + GAIN_MIN:
            best, best_worth, observed = candidate, reached, seen
            queue.insert(0, (knob, factor))
        if progress is not None:
            progress(tried, trials, best_worth.j)
    judged = (worth(first, labels, goal, cut_ns, None), worth(observed, labels, goal, cut_ns, None))
    return Tuned(best, difference(config, best), cut_ns, (start, best_worth), judged, tried)


def worth(observed: Observed, labels: Labels, goal: Goal, from_ns: int | None, until_ns: int | None) -> Worth:
    """What was observed from one time until another, None for the ends of the recording, is worth under `goal`."""
    low, high = from_ns or 0, until_ns or 1 << 62
    seen = observed.engine
    rows = [
        i
        for i, (trace, at) in enumerate(zip(seen.trace_id, seen.start_ns.tolist(), strict=True))
        if low <= at < high and trace in labels.chains
    ]
    parts: list[tuple[float, float]] = []
    if rows:
        made = decisions(np.array([labels.chains[seen.trace_id[i]] for i in rows], np.bool_), seen.flagged[rows])
        parts.append((made.f1, made.recall))
    faults = [fault for fault in labels.faults if low <= fault.start_ns < high]
    incidents = [i for i in observed.last.values() if low <= i.detected_unix_nano < high]
    minutes = (seen.start_ns[(seen.start_ns >= low) & (seen.start_ns < high)] // (60 * NS)).tolist()
    judged = judge(incidents, faults, minutes)
    if faults:
        parts.append((judged.f1, judged.recall))
    f1, recall = (float(np.mean(values)) for values in zip(*parts, strict=True)) if parts else (0.0, 0.0)
    j = j_value(f1, recall, observed.p99_s, goal.alpha, goal.beta, goal.gamma)
    return Worth(j, f1, recall, observed.p99_s, judged.found, len(faults), len(judged.false))


def turned(config: Config, knob: Knob, factor: float) -> Config | None:
    """`config` with the knob turned, None when it has no such setting or the value is not allowed."""
    values = config.model_dump()
    section: Any = values
    for name in knob.path[:-1]:
        section = section.get(name, {})
    value = section.get(knob.path[-1])
    if not value:
        return None
    after = round(value * factor) if isinstance(value, int) else float(f"{value * factor:.3g}")
    if after == value:
        return None
    section[knob.path[-1]] = after
    try:
        return Config.model_validate(values)
    except ValidationError:
        return None


def difference(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Setting -> (before, after) of all that differ."""
    old, new = _flat(before.model_dump()), _flat(after.model_dump())
    return {name: (old.get(name), value) for name, value in new.items() if old.get(name) != value}


def as_yaml(tuned: Tuned, sources: Iterable[Path]) -> str:
    """A config file a person can read: what is not the default, and in its head why."""
    names = ", ".join(path.name for path in sources)
    head = [f"Found by `spanchain tune` on {names}.", "", "                      chosen on            judged on"]
    head.append("                      before     after     before     after")
    for name in ("j", "f1", "recall", "p99_s", "found", "faults", "false"):
        values = [getattr(part, name) for pair in (tuned.chosen_on, tuned.judged_on) for part in pair]
        shown = "".join(f"{v:>10}" if isinstance(v, int) else f"{v:>10.4f}" for v in values)
        head.append(f"{name:<20}{shown}")
    head.append("")
    head += [f"{name}: {before} -> {after}" for name, (before, after) in tuned.changed.items()]
    if not tuned.changed:
        head.append("Nothing that was tried did better.")
    elif not tuned.better:
        head.append("The change does NOT pay on the part that had no say: look at it before you use it.")
    plain = Config().model_dump(mode="json")
    wanted = tuned.config.model_dump(mode="json")
    body = yaml.safe_dump(_pruned(wanted, plain), sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + ("\n" + body if body != "{}\n" else "")


def _turns(seed: int) -> list[tuple[Knob, float]]:
    turns = [(knob, factor) for knob in KNOBS for factor in knob.factors]
    Random(seed).shuffle(turns)
    return turns


def _cut(labels: Labels) -> int:
    """The time that parts the recording: after the first faults, before the next one's earliest alarm."""
    if len(labels.faults) < 2:
        raise ValueError("tuning needs at least two labelled faults: one to choose by and one to judge by")
    first_after = max(1, round(len(labels.faults) * TUNED_SHARE))
    fault = labels.faults[min(first_after, len(labels.faults) - 1)]
    return fault.start_ns - round(fault.early_s * NS)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _pruned(values: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Only what differs from `plain`; a dict that is itself a setting (the weights) stays whole."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name != "weights":
            inner = _pruned(value, plain.get(name, {}))
            if inner:
                out[name] = inner
        elif value != plain.get(name):
            out[name] = value
    return out
