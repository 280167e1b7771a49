"""The shadow baseline: has what is learned as normal crept away from what was normal once?

How it works. The other detectors follow slow change, as they must; so somebody who makes things worse by half a per
cent an hour, on purpose or not, is never beyond any of their limits. This one keeps, per operation, the mean logarithm
of its self time and its share of errors over the first day, frozen, and the same over a fading day until now, both from
chains that were learned as normal. Once an hour they are compared. A difference that matters and that chance does not
explain is a finding about the operation, for as long as it lasts; after `adopt_s` it has been told long enough, and
what is now becomes the new reference. Single chains are no matter of this detector: their value is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.config import Config
from collector_processor.kernels import slices as kernels
from collector_processor.model import F64, I64, Bool, ChainBatch, Findings, Kind, Level, Symbols, no_findings
from detectors.protocol import Scores, no_scores

NS = 1_000_000_000
HOUR_NS = 3600 * NS
SHORTEST_NS, LONGEST_NS = 1e3, 3.6e12  # self times are clipped to 1 us .. 1 h
OVERDISPERSION = 4.0  # spans of one hour are alike: the variance of a mean is this many times that of independent ones
NATS_MAX = 60.0
SLOWER, FAILING = 0, 1  # `detail` of a finding
THEN, NOW = ("then_n", "then_sum", "then_square", "then_errors"), ("now_n", "now_sum", "now_errors")


class Shadow:
    """The detector `shadow`. See the module."""

    name = "shadow"

    def __init__(self, config: Config, symbols: Symbols) -> None:
        self.config = config.detectors.shadow
        self.symbols = symbols
        self._sums = np.zeros((0, len(THEN)))  # of one epoch; zero between calls
        self._then, self._now = np.zeros((0, len(THEN))), np.zeros((0, len(NOW)))
        self._first_ns = np.zeros(0, np.int64)  # of each operation; 0 never seen
        self._last_ns = np.zeros(0, np.int64)
        self._frozen = np.zeros(0, np.bool_)
        self._since_ns = np.zeros((0, 2), np.int64)  # per kind of difference: since when it has been a finding; 0 not
        self._checked_ns = 0
        self._findings = no_findings()

    def score(self, batch: ChainBatch) -> Scores:
        return no_scores(batch)

    def advance(self, now_ns: int) -> Findings:
        if now_ns - self._checked_ns >= HOUR_NS:
            self._checked_ns = now_ns
            self._findings = self._compared(now_ns)
        return self._findings.copy() if self._findings.size else no_findings()

    def learn(self, batch: ChainBatch, normal: Bool) -> None:
        if not len(batch):
            return
        self._grow(len(self.symbols.events))
        kernels.creep(
            *(batch.offsets, batch.kind, batch.status, batch.event, batch.self_time, normal, SHORTEST_NS, LONGEST_NS),
            *(self._sums, int(batch.closed_ns[-1]), self.config.memory_s * NS, self.config.reference_s * NS),
            *(float(self.config.learn_min), self._first_ns, self._last_ns, self._frozen, self._then, self._now),
        )

    def evidence(self, finding: np.void) -> dict[str, Any]:
        operation = int(finding["event"])
        days = (self._checked_ns - int(self._first_ns[operation])) / (24 * HOUR_NS)
        service = self.symbols.services.text[int(finding["service"])]
        name = f"{service} {self.symbols.events.text[operation]}"
        expected, actual = float(finding["expected"]), float(finding["actual"])
        if finding["detail"] == SLOWER:
            what = f"itself takes {actual / expected:.1f} times as long as {days:.1f} days ago"
        else:
            what = f"fails in {actual:.1%} of cases, {days:.1f} days ago in {expected:.1%}"
        return {
            "text": f"{name} {what}; it has crept up in steps that each passed as normal",
            "expected": expected,
            "actual": actual,
            "history": round(float(self._then[operation, 0])),
            "within_s": round(days * 86_400),
        }

    def version(self) -> str:
        return "1"

    def describe_state(self) -> str | None:
        if self._frozen.any():
            return None
        hours = self.config.reference_s / 3600
        return f"what is normal is being recorded; drift can be told from {hours:.0f} h after the first chains on"

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "column": {name: values.copy() for name, values in self._columns().items()},
            "first_ns": self._first_ns.copy(),
            "last_ns": self._last_ns.copy(),
            "frozen": self._frozen.copy(),
            "since_ns": self._since_ns.copy(),
            "checked_ns": self._checked_ns,
            "findings": self._findings.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._then, self._now = (
            np.stack([np.array(state["column"][name], np.float64) for name in names], axis=1) for names in (THEN, NOW)
        )
        self._sums = np.zeros_like(self._then)
        self._first_ns, self._last_ns = np.array(state["first_ns"]), np.array(state["last_ns"])
        self._frozen, self._since_ns = np.array(state["frozen"]), np.array(state["since_ns"])
        self._checked_ns = int(state["checked_ns"])
        self._findings = np.array(state["findings"])

    def _grow(self, size: int) -> None:
        have = self._frozen.size
        if size <= have:
            return
        more = max(size, 2 * have, 64) - have
        self._sums = np.zeros((have + more, len(THEN)))
        self._then = np.concatenate([self._then, np.zeros((more, len(THEN)))])
        self._now = np.concatenate([self._now, np.zeros((more, len(NOW)))])
        self._first_ns = np.concatenate([self._first_ns, np.zeros(more, np.int64)])
        self._last_ns = np.concatenate([self._last_ns, np.zeros(more, np.int64)])
        self._frozen = np.concatenate([self._frozen, np.zeros(more, np.bool_)])
        self._since_ns = np.concatenate([self._since_ns, np.zeros((more, 2), np.int64)])

    def _columns(self) -> dict[str, F64]:
        """The columns of both baselines by name."""
        columns = zip((*THEN, *NOW), (*self._then.T, *self._now.T), strict=True)
        return {name: np.asarray(values, np.float64) for name, values in columns}

    def _compared(self, now_ns: int) -> Findings:
        """Findings about every operation that is not what it was."""
        c = self._columns()
        rows = np.flatnonzero(self._frozen & (c["now_n"] >= self.config.learn_min))
        then_n, now_n = c["then_n"][rows], c["now_n"][rows]
        then, now = c["then_sum"][rows] / then_n, c["now_sum"][rows] / now_n
        spread = np.maximum(c["then_square"][rows] / then_n - then**2, 1e-4)
        each = OVERDISPERSION * (1.0 / then_n + 1.0 / now_n)
        slower = self._nats(now - then, spread * each, np.log1p(self.config.slower_by))
        was, is_now = c["then_errors"][rows] / then_n, c["now_errors"][rows] / now_n
        variance = np.maximum((was + is_now) / 2 * (1 - (was + is_now) / 2), 1.0 / (then_n + now_n))
        failing = self._nats(is_now - was, variance * each, self.config.errors_by)
        out = [
            self._told(SLOWER, now_ns, rows, slower, np.exp(then) / NS, np.exp(now) / NS),
            self._told(FAILING, now_ns, rows, failing, was, is_now),
        ]
        return np.concatenate(out)

    @staticmethod
    def _nats(difference: F64, variance: F64, least: float) -> F64:
        """-ln of the probability that chance makes such a difference; 0 for one that does not matter."""
        nats = np.minimum(np.maximum(difference, 0.0) ** 2 / (2.0 * variance), NATS_MAX)
        return np.where(difference >= least, nats, 0.0)

    def _told(self, detail: int, now_ns: int, rows: I64, nats: F64, expected: F64, actual: F64) -> Findings:
        """The findings of one kind of difference; what has been told for long enough becomes the reference."""
        since = self._since_ns[rows, detail]
        here = nats >= self.config.report
        since = np.where(here, np.where(since == 0, now_ns, since), 0)
        adopted = here & (now_ns - since >= self.config.adopt_s * NS)
        self._since_ns[rows, detail] = np.where(adopted, 0, since)
        c = self._columns()
        for name in ("n", "sum", "errors"):
            c[f"then_{name}"][rows[adopted]] = c[f"now_{name}"][rows[adopted]]
        chosen = np.flatnonzero(here & ~adopted)
        out = no_findings(chosen.size)
        out["kind"], out["level"] = Kind.DRIFT, Level.OPERATION
        out["event"] = rows[chosen]
        out["service"] = self.symbols.events.column("service")[rows[chosen]]
        out["p"] = np.exp(-nats[chosen])
        out["expected"], out["actual"] = expected[chosen], actual[chosen]
        out["detail"] = detail
        return out


def build(config: Config, symbols: Symbols) -> Shadow:
    """The detector as the registry makes it."""
    return Shadow(config, symbols)
