"""Is the share of a path, or the traffic of a flow, other than it should be at this time of the week?

How it works. Chains are counted per row (canonical path) and per epoch; two windows, a minute and a slice, are judged
at each epoch boundary. A row's count is judged *given* the flow's count, by its share; a flow's count by the rate of
earlier slices. Both use a negative binomial whose dispersion was learned from ended slices, after what lay beyond three
sigma had been pulled back to three. What is expected at this time comes from the same slice of the week when at least
two weeks are known, from the same time of day when at least two days are, and from everything so far (decaying) before
that. Until then nobody can tell the end of a session or a batch from a failure: the rate of a flow that has been away
before, at a time when it would have come at its present rate, is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from collector_processor.kernels import sequence as kernels
from collector_processor.model import F64, I32, I64, Bool
from detectors.chain_sequence.extremes import Extremes
from detectors.familiarity import grown

NS = 1_000_000_000
DAY_S, WEEK_S = 86_400, 604_800
SHORT_S = 60.0  # the short window
SIGMA = 3.0
PROFILED_MAX = 1024  # rows (and, apart, flows) whose share is kept per slice of the week
SLICES_MIN = 3  # ended slices with traffic before shares are judged
RATE_SLICES_MIN = 12  # ended slices before a flow's rate is judged
AWAY_CHAINS = 7.0  # that would have come meanwhile, from which on a flow was away: e^-7 by chance
MEMORY_SLICES = 48.0  # slices over which rate and dispersion are averaged: four hours at the default
SLOT_MEMORY = 0.5  # weight of the newest week or day in a slice's profile


RARE = 1.0  # chains expected in a slice below which a row tells nothing of its dispersion
POOL_SLICES = 4.0  # that a flow's pooled dispersion counts for beside a row's own
NATS_MIN = 7.0  # -ln of the nominal tail from which on a count is looked at closer
ROW_DIFFERENCE_MIN, FLOW_DIFFERENCE_MIN = 3.0, 5.0  # chains that a count must be off by
ROW_ARRAYS = ("dispersion", "own_dispersion", "weight")
FLOW_ARRAYS = ("flow_dispersion", "rate", "rate_dispersion", "slices", "before", "silent", "away")
NUMBERS = {"last_epoch": int, "clumped": float, "ended": int}
PARTS = ("rows", "flows", "row_profile", "flow_profile", "share_extremes", "rate_extremes")


class Known(NamedTuple):
    """What is known of flows and their rows, as kernel `look` takes it."""

    total: F64  # [flows] normal chains
    total_min: float  # flows with so many or more may be judged by shares
    novel: Bool  # and what follows: [rows]
    good: F64
    bad: F64
    ratio: F64
    share: F64  # of its flow's chains that is expected now: filled in


@dataclass(frozen=True, slots=True)
class Excess:
    """A count outside its range."""

    subject: Literal["row", "flow"]
    index: int
    long: bool  # the window: a slice, or the short one
    p: float
    nats: float  # negative for too few
    actual: int
    expected: float


class Ended(NamedTuple):
    """What came of the end of an epoch."""

    is_slice: bool  # a slice ended with it
    repeated: list[int]  # rows that came within the slice and are new, though not to a young flow
    excess: list[Excess]


class Window:
    """Counts of the last epochs: a ring of epochs with running sums for the short window and the slice."""

    def __init__(self, epochs: int, short: int) -> None:
        self.short = short
        self.ring = np.zeros((epochs, 16), np.int64)
        self.sum_short = np.zeros(16, np.int64)
        self.sum_long = np.zeros(16, np.int64)
        self.at = 0

    def reserve(self, size: int) -> None:
        """Room for `size` columns."""
        if size > self.ring.shape[1]:
            room = max(size, 2 * self.ring.shape[1])
            pad = room - self.ring.shape[1]
            self.ring = np.pad(self.ring, ((0, 0), (0, pad)))
            self.sum_short, self.sum_long = np.pad(self.sum_short, (0, pad)), np.pad(self.sum_long, (0, pad))

    def keep(self, kept: I64) -> None:
        """Only the columns `kept`, in that order."""
        self.ring = np.ascontiguousarray(self.ring[:, kept])
        self.sum_short, self.sum_long = self.sum_short[kept], self.sum_long[kept]

    def snapshot(self) -> dict[str, Any]:
        return {"ring": self.ring.copy(), "at": self.at}

    def restore(self, state: dict[str, Any]) -> None:
        self.ring, self.at = np.array(state["ring"], np.int64), int(state["at"])
        size = self.ring.shape[0]
        last = [(self.at - k) % size for k in range(min(self.short, size))]
        self.sum_short, self.sum_long = self.ring[last].sum(axis=0), self.ring.sum(axis=0)


class Profile:
    """Mean count per slice of the week, for the first PROFILED_MAX columns; float32[slices of a week, columns]."""

    def __init__(self, slice_s: float) -> None:
        self.slots = max(1, round(WEEK_S / slice_s))
        self.slots_a_day = max(1, round(DAY_S / slice_s))
        self.mean = np.zeros((self.slots, 16), np.float32)
        self.visits = np.zeros(self.slots, np.int32)
        self._asked: tuple[int, F64 | None] | None = None  # slot and answer of the last `expected`

    def reserve(self, size: int) -> None:
        """Room for `size` columns, PROFILED_MAX at most."""
        size = min(size, PROFILED_MAX)
        if size > self.mean.shape[1]:
            room = min(PROFILED_MAX, max(size, 2 * self.mean.shape[1]))
            self.mean = np.pad(self.mean, ((0, 0), (0, room - self.mean.shape[1])))
            self._asked = None

    def update(self, slot: int, counts: F64) -> None:
        """Takes in the (cleaned) counts of a slice that ended."""
        n = min(counts.size, self.mean.shape[1])
        weight = max(SLOT_MEMORY, 1.0 / (self.visits[slot] + 1))
        self.mean[slot] *= 1.0 - weight
        self.mean[slot, :n] += (weight * counts[:n]).astype(np.float32)
        self.visits[slot] += 1
        self._asked = None

    def expected(self, slot: int) -> F64 | None:
        """Mean counts at `slot`: of the week when seen twice, of the day when two days are known, else None."""
        if self._asked is None or self._asked[0] != slot:
            self._asked = slot, self._expected(slot)
        return self._asked[1]

    def _expected(self, slot: int) -> F64 | None:
        if self.visits[slot] >= 2:
            return np.asarray(self.mean[slot], np.float64)
        days = slice(slot % self.slots_a_day, None, self.slots_a_day)
        visited = self.visits[days] > 0
        if np.count_nonzero(visited) < 2:
            return None
        return np.asarray(self.mean[days][visited].mean(axis=0), np.float64)

    def keep(self, kept: I64) -> None:
        """Only the columns `kept`, in that order."""
        self.mean = np.ascontiguousarray(self.mean[:, kept[kept < self.mean.shape[1]]])
        self._asked = None

    def snapshot(self) -> dict[str, Any]:
        return {"mean": self.mean.copy(), "visits": self.visits.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.mean, self.visits = np.array(state["mean"], np.float32), np.array(state["visits"], np.int32)
        self._asked = None


class Distribution:
    """Windows, profiles and dispersions of rows and of flows. `flow` is always the flow id of each row."""

    def __init__(self, slice_s: float, epoch_s: float) -> None:
        self.slice_ns, self.epoch_ns = int(slice_s * NS), int(epoch_s * NS)
        epochs = max(1, round(slice_s / epoch_s))
        self.short = min(epochs, max(1, round(SHORT_S / epoch_s)))
        self.epochs = epochs
        self.rows, self.flows = Window(epochs, self.short), Window(epochs, self.short)
        self.row_profile, self.flow_profile = Profile(slice_s), Profile(slice_s)
        self.dispersion = np.ones(16)  # of a row's count given its flow's: its own, pulled to its flow's
        self.own_dispersion = np.ones(16)
        self.clumped = 1.0  # the dispersion of rows not seen yet
        self.weight = np.zeros(16)  # slices behind it
        self.flow_dispersion = np.ones(16)
        self.rate = np.zeros(16)  # chains a slice, per flow
        self.rate_dispersion = np.ones(16)
        self.slices = np.zeros(16, np.int64)  # ended slices since the flow was first seen
        self.before = np.zeros(16, np.int64)  # ended slices before that
        self.silent = np.zeros(16, np.int64)  # ended slices since it was last seen
        self.away = np.zeros(16, np.bool_)  # whether it came back after it had been away
        self.ended = 0  # slices
        self.share_extremes, self.rate_extremes = Extremes(5.0, 2.0), Extremes(4.0, 2.0)
        self.last_epoch = -1

    def reserve(self, rows: int, flows: int) -> None:
        """Room for that many rows and flows."""
        self.rows.reserve(rows)
        self.flows.reserve(flows)
        self.row_profile.reserve(rows)
        self.flow_profile.reserve(flows)
        for name in ROW_ARRAYS:
            fill = {"weight": 0.0, "dispersion": self.clumped}.get(name, 1.0)
            setattr(self, name, grown(getattr(self, name), rows, fill))
        for name in FLOW_ARRAYS:
            setattr(self, name, grown(getattr(self, name), flows, 1.0 if name.endswith("dispersion") else 0.0))
        self.share_extremes.reserve(self.rate.size)
        self.rate_extremes.reserve(self.rate.size)

    def push(self, now_ns: int, counts: I64, flow: I32) -> None:
        """Ends the epochs up to `now_ns`, of which the last had `counts` per row, and empties those."""
        self.rows.at = self.flows.at = kernels.push(counts, flow, self._passed(now_ns), *self._windows())

    def _passed(self, now_ns: int) -> int:
        """How many epochs end at `now_ns`; the next call counts on from there."""
        epoch = now_ns // self.epoch_ns
        passed = max(1, epoch - self.last_epoch) if self.last_epoch >= 0 else 1
        self.last_epoch = epoch
        return passed

    def _windows(self) -> tuple[Any, ...]:
        """What kernel `push` moves on."""
        rows, flows = self.rows, self.flows
        of_rows = (self.short, rows.at, rows.ring, rows.sum_short, rows.sum_long)
        return *of_rows, flows.ring, flows.sum_short, flows.sum_long

    def look(self, flow: I32, known: Known) -> None:
        """Fills in the share of each row that is expected now."""
        kernels.look(self.rows.sum_long, flow, *known, np.empty(flow.size, np.int32))

    def missed_boundary(self, now_ns: int) -> int | None:
        """The end of a slice between the last push and `now_ns`; None also after a gap longer than a slice.

        Nobody can tell a silent system from a source that was away: after such a gap the windows start anew.
        """
        boundary = now_ns // self.slice_ns * self.slice_ns
        last = self.last_epoch * self.epoch_ns
        return (
            boundary if self.last_epoch >= 0 and last < boundary < now_ns and now_ns - last <= self.slice_ns else None
        )

    def slot(self, now_ns: int) -> int:
        """The slice of the week (Thursday 00:00 UTC first) that begins at or before `now_ns`."""
        return int(now_ns // self.slice_ns % self.row_profile.slots)

    def shares(self, slot: int, flow: I32, overall: F64) -> F64:
        """Per row, the share of its flow expected in `slot`; `overall` where the week and the day know too little."""
        expected = self.row_profile.expected(slot)
        if expected is None:
            return overall
        known = min(expected.size, flow.size)
        counts = np.concatenate([expected[:known], np.zeros(flow.size - known)])
        totals = np.bincount(flow, counts, self.rate.size)
        strength = totals[flow] / (totals[flow] + 20.0)
        profiled = np.divide(counts, totals[flow], out=overall.copy(), where=totals[flow] > 0)
        profiled[known:] = overall[known:]
        return np.asarray(strength * profiled + (1.0 - strength) * overall)

    def rates(self, expected: F64 | None) -> F64:
        """Per flow, the chains a slice that are expected, given what the profile of flows says of the slot."""
        if expected is None:
            return self.rate
        return np.concatenate([expected, self.rate[expected.size :]])[: self.rate.size]

    def end_epoch(self, now_ns: int, counts: I64, flow: I32, known: Known) -> Ended:
        """`push`, and what there is to be said at the boundary `now_ns`."""
        passed, expected = self._passed(now_ns), self.flow_profile.expected(self.slot(max(0, now_ns - 1)))
        rates, part = self.rates(expected), self.short / self.epochs
        of_rows, of_flows, repeated = np.empty((2, flow.size)), np.empty((2, rates.size)), np.empty(flow.size, np.int32)
        at, count, most = kernels.end_epoch(
            *(counts, flow, passed, *self._windows(), *known, repeated),
            *(self.dispersion, self.slices, SLICES_MIN, ROW_DIFFERENCE_MIN, self.share_extremes.current, of_rows),
            *(rates, part, self.rate_dispersion, RATE_SLICES_MIN, expected is not None, self.away, self.before),
            *(self.rate, AWAY_CHAINS, FLOW_DIFFERENCE_MIN, self.rate_extremes.current, of_flows),
        )
        self.rows.at = self.flows.at = at
        found: list[Excess] = []
        if most > NATS_MIN:
            found = self._shares_out_of_range(of_rows, known.share, flow) + self._rates_out_of_range(of_flows, rates)
        is_slice = now_ns % self.slice_ns == 0 and passed <= self.epochs
        return Ended(is_slice, repeated[:count].tolist() if count else [], found)

    def _shares_out_of_range(self, nats: F64, share: F64, flow: I32) -> list[Excess]:
        out = []
        for window, row in np.argwhere(np.abs(nats) > NATS_MIN).tolist():
            counts, flow_counts = self.counts(bool(window))
            size, f = float(nats[window, row]), int(flow[row])
            p, expected = self.share_extremes.p(f, abs(size)), float(flow_counts[f] * share[row])
            out.append(Excess("row", row, bool(window), p, size, int(counts[row]), expected))
        return out

    def _rates_out_of_range(self, nats: F64, rates: F64) -> list[Excess]:
        out = []
        for window, f in np.argwhere(np.abs(nats) > NATS_MIN).tolist():
            size, usual = float(nats[window, f]), float(rates[f] * (1.0 if window else self.short / self.epochs))
            p, count = self.rate_extremes.p(f, abs(size)), int(self.counts(bool(window))[1][f])
            out.append(Excess("flow", f, bool(window), p, size, count, usual))
        return out

    def counts(self, long: bool) -> tuple[I64, I64]:
        """Counts per row and per flow of the slice, or of the short window."""
        if long:
            return self.rows.sum_long, self.flows.sum_long
        return self.rows.sum_short, self.flows.sum_short

    def end_slice(self, now_ns: int, share: F64, flow: I32, clumped: float = 1.0) -> None:
        """Learns dispersions, rates and profiles from the slice that ended; what lies beyond 3 sigma is pulled in.

        `clumped` is the dispersion of rows too rare to have shown theirs: rare paths come in clumps.
        """
        self.clumped = clumped
        slot = self.slot(now_ns - 1)
        profiled, rates = self.row_profile.expected(slot) is not None, self.rates(self.flow_profile.expected(slot))
        row_counts, flow_counts = np.empty(flow.size), np.empty(rates.size)
        kernels.end_slice(
            *(self.rows.sum_long, self.flows.sum_long, share, flow, MEMORY_SLICES, SIGMA),
            *(clumped, RARE, POOL_SLICES, profiled, self.dispersion, self.own_dispersion, self.weight),
            *(self.flow_dispersion, row_counts, rates, self.ended, SLICES_MIN, RATE_SLICES_MIN, AWAY_CHAINS),
            *(self.rate, self.rate_dispersion, self.slices, self.before, self.silent, self.away, flow_counts),
        )
        self.ended += 1
        self.share_extremes.end_slice((self.flows.sum_long[: rates.size] > 0) & (self.slices > SLICES_MIN))
        self.rate_extremes.end_slice(self.slices > RATE_SLICES_MIN)
        self.row_profile.update(slot, row_counts)
        self.flow_profile.update(slot, flow_counts)

    def keep(self, kept: I64) -> None:
        """Only the rows `kept`, in that order."""
        self.rows.keep(kept)
        self.row_profile.keep(kept)
        for name in ROW_ARRAYS:
            setattr(self, name, getattr(self, name)[kept])

    def snapshot(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).copy() for name in (*ROW_ARRAYS, *FLOW_ARRAYS)}
        return {
            **{name: getattr(self, name).snapshot() for name in PARTS},
            **arrays,
            **{name: getattr(self, name) for name in NUMBERS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        for name in PARTS:
            getattr(self, name).restore(state[name])
        for name in (*ROW_ARRAYS, *FLOW_ARRAYS):
            setattr(self, name, np.array(state[name]))
        for name, kind in NUMBERS.items():
            setattr(self, name, kind(state[name]))
