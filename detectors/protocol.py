"""What a detector is: eight methods on batches of chains, and the `Scores` it answers with.

How it works. A detector looks at closed chains (`score`) and at elements over time (`advance`), and says how unusual
they are in its own units; `collector_processor/decide` calibrates. Time is cut in epochs: state changes in `learn` and
`advance` only, which the engine calls at epoch boundaries, so `score` is a pure function of (state at the last
boundary, batch), however the chains of an epoch are grouped into batches. Scoring always comes before learning.

A detector reads no clock, does no I/O, starts no thread, writes no log and imports no other detector. Its memory is
bounded. Chance comes from a seed in its config section. A `Factory` builds it from the whole config and the symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from collector_processor.config import Config
from collector_processor.model import F64, FINDING, Bool, ChainBatch, Findings, Kind, Symbols, no_findings


class BadScoresError(ValueError):
    """A detector broke the contract of `Scores`; the message says where."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a detector says of one batch."""

    value: F64  # [n] per chain, higher = more anomalous, finite, in the detector's own unit
    findings: Findings  # [f] FINDING, sorted by `chain`, each >= 0; few: only for what is unusual

    def checked(self, batch: ChainBatch) -> Scores:
        """Itself when it fits `batch`.

        Raises:
            BadScoresError: wrong length or dtype, a value not finite, findings unsorted or out of range, a wrong p.
        """
        if self.value.shape != (len(batch),) or self.value.dtype != np.float64:
            raise BadScoresError(f"value is {self.value.dtype}{self.value.shape}, expected float64({len(batch)},)")
        if not np.isfinite(self.value).all():
            raise BadScoresError(f"value of chain {int(np.flatnonzero(~np.isfinite(self.value))[0])} is not finite")
        check_findings(self.findings)
        chain = self.findings["chain"]
        if chain.size and (chain.min() < 0 or chain.max() >= len(batch)):
            raise BadScoresError("a finding of `score` names no chain of the batch")
        if (np.diff(chain) < 0).any():
            raise BadScoresError("findings are not sorted by chain")
        return self


def check_findings(findings: Findings) -> Findings:
    """`findings` themselves when dtype, kinds and p-values are in range.

    Raises:
        BadScoresError: otherwise.
    """
    if findings.dtype != FINDING:
        raise BadScoresError(f"findings have dtype {findings.dtype}, expected FINDING")
    if not ((findings["p"] > 0) & (findings["p"] <= 1)).all():
        raise BadScoresError("the p-value of a finding is outside (0, 1]")
    if not (np.isfinite(findings["expected"]) & np.isfinite(findings["actual"])).all():
        raise BadScoresError("expected or actual of a finding is not finite")
    if findings.size and int(findings["kind"].max()) > max(Kind):
        raise BadScoresError("a finding has an unknown kind")
    return findings


def no_scores(batch: ChainBatch) -> Scores:
    """What a detector says that has nothing to say: 0 for every chain."""
    return Scores(np.zeros(len(batch)), no_findings())


LEARNED_MAX = 512  # chains of one epoch that elements learn from


def sampled(batch: ChainBatch, normal: Bool, most: int = LEARNED_MAX) -> tuple[ChainBatch, Bool]:
    """At most `most` chains of an epoch, evenly spaced, and their `normal`: shares and quantiles need no more."""
    step = -(-len(batch) // most)
    if step <= 1:
        return batch, normal
    chosen = np.arange(0, len(batch), step)
    return batch.take(chosen), normal[chosen]


class Detector(Protocol):
    """One way of seeing that something is unusual.

    One whose values are -ln of a probability that it states of what it saw says so by `states_probability = True`:
    however far a value lies beyond all that calibration has seen, its p-value is no less than that probability.
    One that learns better from one epoch after the other than from several in one go, which takes less time, says so by
    `learns_by_epoch = True`.
    """

    name: str
    """The key in the registry and in `components` of a verdict."""

    def score(self, batch: ChainBatch) -> Scores:
        """Scores of `batch`; changes nothing that a later score depends on (a memo is allowed)."""
        ...

    def advance(self, now_ns: int) -> Findings:
        """Findings about windows and slices that ended by the epoch boundary `now_ns`; `chain` is NONE in each.

        The engine calls it once a boundary, before `learn`, boundaries ascending; it may skip boundaries at which
        nothing happened, so what is due is judged by `now_ns`, not by counting calls.
        """
        ...

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        """Takes in chains whose quarantine is over. `normal` [n]: False for those that must not train the baseline."""
        ...

    def evidence(self, finding: np.void) -> dict[str, Any]:
        """JSON-able facts behind one row of FINDING that this detector made: what was expected and what was seen.

        Keys that the explanation understands, all optional: `text` (a whole sentence, shown as it is), `expected` and
        `actual`, `step` (expected next, did not come), `after` (the last step seen), `within_s`, `share` (0-1, of the
        normal cases), `path`, `template`, `history` (how many normal cases the comparison rests on). A rule violation
        also gives `rule` (its name), `category` (system | operational | compliance), `severity` (info | warning |
        critical), `certain` (bool: bypasses the fusion) and `actions` (list of str).
        """
        ...

    def version(self) -> str:
        """For `models` of a verdict: changes whenever scores may change for another reason than online learning."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """The whole state as dicts, lists, strings, numbers and numpy arrays, with `"version": 1`; shares no memory."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `snapshot` gave, into a new instance with the same config."""
        ...

    def describe_state(self) -> str | None:
        """Why it is quiet and until when (cold start), for people; None when it is at work."""
        ...


@runtime_checkable
class Reloadable(Protocol):
    """A detector whose model may be exchanged while it runs; the engine does so at epoch boundaries only."""

    def use(self, model: Any) -> None:
        """Scores by `model`, of the kind that the detector loads itself, and names it in `version` from now on."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A detector that looks at elements one by one, at so many at the most."""

    @property
    def overflowed(self) -> int:
        """How often an element found no room, since the first start."""
        ...


Factory = Callable[[Config, Symbols], Detector]
