"""`python -m collector_processor.evaluation.generalise`: incidents on systems made up at random, summed over seeds.

How it works. Each seed gives a world (`worlds.py`) in one layout; the engine reads it once as shipped, and its
incidents are judged as those of a recording are (`faults.py`). Seeds below FRESH may be looked at while detection is
made; those from FRESH on are for reported figures only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from rich.console import Console

from collector_processor.config import Config
from collector_processor.evaluation.faults import FaultReport, FaultResult, judge
from collector_processor.evaluation.labels import NS, Labels
from collector_processor.evaluation.run import Observer
from collector_processor.evaluation.world_parts import Injection
from collector_processor.evaluation.worlds import Layout, World, labels_of

FRESH = 1000
CHAINS_FEW = 20  # a fault that struck fewer is told apart: it was placed by what was expected, not by what then came
FAULTS_OF: dict[Layout, int] = {"blocks": 10, "hours": 3}


@dataclass(slots=True)
class Outcome:
    """What the engine made of one world."""

    seed: int
    report: FaultReport
    injections: list[Injection]
    flagged_outside: float  # share of the chains outside fault windows that count as unusual
    records: int
    seconds: float


@dataclass(slots=True)
class Total:
    """Sums over worlds."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def results(self) -> list[FaultResult]:
        return [result for outcome in self.outcomes for result in outcome.report.results]

    @property
    def found(self) -> float:
        """Share of the faults found."""
        return sum(result.found for result in self.results) / max(1, len(self.results))

    def named(self, k: int) -> float:
        """Share of the faults found whose first incident has the service among its first k suspects."""
        found = [result for result in self.results if result.found]
        return sum((result.first_rank or k + 1) <= k for result in found) / max(1, len(found))

    @property
    def false(self) -> int:
        return sum(len(outcome.report.false) for outcome in self.outcomes)

    @property
    def covered_hours(self) -> float:
        return sum(outcome.report.covered_hours for outcome in self.outcomes)

    @property
    def false_per_covered_hour(self) -> float:
        return self.false / max(self.covered_hours, 1e-9)

    @property
    def median_s(self) -> float:
        """Median time to detect of the faults found, seconds."""
        times = [result.found_after_s for result in self.results if result.found_after_s is not None]
        return median(times) if times else float("nan")

    def of_few(self) -> tuple[int, int]:
        """(found, all) of the faults that struck fewer than CHAINS_FEW chains; traffic that drops strikes none."""
        struck = [
            result.found
            for outcome in self.outcomes
            for result, injection in zip(outcome.report.results, outcome.injections, strict=True)
            if injection.chains < CHAINS_FEW and injection.kind != "traffic_drop"
        ]
        return sum(struck), len(struck)

    def by_type(self) -> dict[str, tuple[int, int, int]]:
        """Fault type -> (found, named first, all)."""
        out: dict[str, tuple[int, int, int]] = {}
        for result in self.results:
            found, first, every = out.get(result.fault.type, (0, 0, 0))
            is_first = result.found and result.first_rank == 1
            out[result.fault.type] = (found + result.found, first + is_first, every + 1)
        return out


def run(seed: int, layout: Layout, config: Config | None = None) -> Outcome:
    """One world through the engine."""
    world = World(seed)
    stretches, injections = world.schedule(layout, FAULTS_OF[layout])
    observed = Observer(config or Config(), with_baselines=False).watch(world.payloads(stretches, injections))
    labels = Labels({}, labels_of(injections))
    seen = observed.engine
    report = judge(list(observed.last.values()), labels.faults, (seen.start_ns // (60 * NS)).tolist())
    outside = np.array([not any(f.excuses(int(ns)) for f in labels.faults) for ns in seen.start_ns], np.bool_)
    flagged = float(seen.flagged[outside].mean()) if outside.any() else 0.0
    return Outcome(seed, report, injections, flagged, observed.records, observed.seconds)


def total(seeds: Iterable[int], layout: Layout, tell: Callable[[Outcome], object] = str) -> Total:
    """All worlds of `seeds`; `tell` is told of each as it is done."""
    out = Total()
    for seed in seeds:
        outcome = run(seed, layout)
        out.outcomes.append(outcome)
        tell(outcome)
    return out


def _missed(result: FaultResult, injection: Injection) -> str:
    return (
        f"   {result.fault.fault_id} at {result.fault.service} {injection.operation.name!r}: found {result.found}, "
        f"rank {result.first_rank or '-'}, {injection.chains} chains, size {injection.size:.3g}, "
        f"first {', '.join(result.first_suspects[:3]) or '-'}"
    )


def outcome_lines(outcome: Outcome) -> list[str]:
    """What became of one world: the faults that were not found and named first, and what was false."""
    report = outcome.report
    head = (
        f"seed {outcome.seed}: {report.found} of {len(report.results)} found, {len(report.false)} false in "
        f"{report.covered_hours:.2f} h, {outcome.flagged_outside:.1%} flagged outside, {outcome.records} records, "
        f"{outcome.seconds:.1f} s"
    )
    missed = [
        _missed(result, injection)
        for result, injection in zip(report.results, outcome.injections, strict=True)
        if not result.found or result.first_rank != 1
    ]
    false = [f"   false: {i.kind} {i.subject['service']}: {i.explanation['trigger'][:200]}" for i in report.false]
    return [head, *missed, *false]


def total_lines(layout: str, sums: Total) -> list[str]:
    """The figures of the docs."""
    flagged = np.mean([outcome.flagged_outside for outcome in sums.outcomes])
    head = (
        f"{layout}: {len(sums.outcomes)} worlds, {sums.found:.1%} of {len(sums.results)} faults found, of those first "
        f"{sums.named(1):.1%}, among three {sums.named(3):.1%}; {sums.false} false in {sums.covered_hours:.1f} h "
        f"({sums.false_per_covered_hour:.2f} an hour); median {sums.median_s:.0f} s; {flagged:.1%} flagged outside"
    )
    types = sorted(sums.by_type().items())
    few, of_few = sums.of_few()
    others, of_others = round(sums.found * len(sums.results)) - few, len(sums.results) - of_few
    return [
        head,
        f"   struck fewer than {CHAINS_FEW} chains: {few} of {of_few} found; all others: {others} of {of_others}",
        *(f"   {name:15} {found:3} of {every:3} found, {first:3} first" for name, (found, first, every) in types),
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Incidents on systems made up at random.")
    parser.add_argument("--layout", choices=("blocks", "hours"), default="blocks")
    parser.add_argument("--first", type=int, default=FRESH, help="first seed")
    parser.add_argument("--worlds", type=int, default=20)
    chosen = parser.parse_args(arguments)
    console = Console(width=200, soft_wrap=True, highlight=False, markup=False)

    def tell(outcome: Outcome) -> None:
        console.print("\n".join(outcome_lines(outcome)))

    sums = total(range(chosen.first, chosen.first + chosen.worlds), chosen.layout, tell)
    console.print("\n".join(total_lines(chosen.layout, sums)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
