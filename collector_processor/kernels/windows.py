"""Sums of surprises over a sliding window, per slot, and how improbable they are: what detectors of elements share.

How it works. A slot belongs to one element (an operation, a call, a pool of several). Within an epoch its surprises are
added to the current column of a ring. At each boundary `judge` asks how improbable every slot's ring is when what its
greatest epoch has in excess is taken down to the *third greatest*: a burst within one epoch never alarms, of one that
straddles a boundary the smaller part counts, and what lasts counts nearly in full, however thin the traffic. Then the
next column, the oldest one, teaches the slot its mean and dispersion and is cleared. Slots in alarm teach nothing, for
as long as what is known of them warrants: an alarm after a short acquaintance is more likely ignorance than trouble, so
it holds learning up for the square of the acquaintance over PATIENCE_S: two minutes after two, a day after an hour.

A sum of n surprises has mean n m and variance n d; d is larger than the variance of one surprise when they come in
bursts. Bursts that outlast an epoch (a rare branch that comes in swarms, a service that stalls) add up within a window,
so what deviations have in common with those before them is learned too: r, the sum of deviations faded by `linked` an
epoch, would have the expected square d q if epochs were independent, q being the sum of n faded by the square (the
long-run variance of Newey and West, 1987, with an exponential kernel). What r^2 / q exceeds the deviations of single
epochs by adds to d as far as it recurs: its mean less SURE standard errors, so that one burst, which may be a fault,
teaches next to nothing. While anything in the system is SHAKEN, others deviate for its sake, and this is not learned.

What was learned from N surprises is itself uncertain, which makes the variance of a prediction n d (1 + n / N): a young
element needs more to be unusual. A detector may know better what is usual: `usual` holds what it expects of each
observation by itself (another mix of traffic, a rare variant that history knows), and the greater one counts. Two large
deviation exponents, by what the surprises are:
- unbounded (how slow): about a gamma distribution, n m^2 / d * (r - 1 - ln r) with r = sum / (n m);
- bounded (how rare, at most -ln of 1 / history): Bennett's (1962) n d / b^2 * h(b t / (n d)) with t = sum - n m and
  h(x) = (1 + x) ln(1 + x) - x. Pieces of the sum are at most b: `piece`, or the greatest excess that one epoch has
  shown, fading.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from collector_processor.kernels.jit import helper, inlined, kernel
from collector_processor.kernels.table import LookupTable

FIRST_SLOTS = 64
DEVIATION_MAX = 16.0  # of one epoch, in dispersions: what is further out teaches no more than this
PATIENCE_S = 150.0
YOUNG = 50.0  # observations below which an element learns even while it is in alarm
LEVEL_MAX = 30.0
CLUMPS = 10.0  # windows in which epochs are believed to be independent before anything is seen
SURE = 1.5  # standard errors
SHAKEN = 10.0  # exponent of an element from which on others may deviate for its sake
NEVER = np.iinfo(np.int64).min


@kernel
def exponent(total, n, mean, dispersion, piece, known, swing):
    """-ln of the probability that n surprises sum up to `total`, where `known` surprises taught mean and dispersion.

    They are taken to be unbounded when `piece` is 0. `swing` is the deviation of the mean itself from minute to minute.
    """
    usual = n * mean
    if total <= usual:
        return 0.0
    dispersion = dispersion * (1.0 + n / known) + n * swing * swing
    if piece == 0.0:
        ratio = total / usual
        return n * mean * mean / dispersion * (ratio - 1.0 - math.log(ratio))
    variance = n * dispersion
    x = piece * (total - usual) / variance
    return variance / (piece * piece) * ((1.0 + x) * math.log1p(x) - x)


@kernel
def patient(known_ns, since_ns, now_ns):
    """Whether an alarm since `since_ns` about what was known for `known_ns` still holds learning up at `now_ns`."""
    known_s = known_ns * 1e-9
    return (now_ns - since_ns) * 1e-9 <= known_s * known_s / PATIENCE_S


@inlined
def window_exponent(s, sums, usual, counts, mean, dispersion, memory, prior, piece):
    """The exponent of slot s, the greatest epoch of its window taken down to the third."""
    n = 0.0
    for e in range(counts.shape[1]):
        n += counts[s, e]
    if n == 0.0:
        return np.float32(0.0)
    total = 0.0
    expected = 0.0
    worst = 0.0
    second = 0.0
    third = 0.0
    for e in range(counts.shape[1]):
        total += sums[s, e]
        expected += usual[s, e]
        excess = sums[s, e] - max(counts[s, e] * mean[s], usual[s, e])
        third = max(third, min(second, excess))
        second = max(second, min(worst, excess))
        worst = max(worst, excess)
    total -= worst - third
    burst = max(piece, memory[s, 4]) if piece > 0.0 else 0.0
    known = memory[s, 1] + prior[1]
    swing = prior[4] * min(mean[s], expected / n)
    return np.float32(exponent(total, n, max(mean[s], expected / n), dispersion[s], burst, known, swing))


@kernel
def judge_slots(
    used, column, piece, hold, report, now_ns, window_ns, sums, usual, counts, mean, dispersion, memory, prior,
    exponents, level, born_ns, since_ns, loud_ns, alarmed_ns, reported,
):  # fmt: skip
    """Brings the exponents of the slots' windows up to date, and fills `reported` with the slots from `report` on: (how
    many these are, the greatest exponent).

    An exponent still holds unless it is NaN or the epoch that ends, in `column`, has added to the window; -1 when it
    has added to none.
    loud_ns: the last boundary beyond `hold`; since_ns: the first of them without a whole window of quiet in between;
    alarmed_ns: the last one at which the alarm still held learning up."""
    found = 0
    greatest = np.float32(0.0)
    for s in range(used):
        if np.isnan(exponents[s]) or (column >= 0 and counts[s, column] > 0):
            exponents[s] = window_exponent(s, sums, usual, counts, mean, dispersion, memory, prior, piece)
            level[s] = min(exponents[s], LEVEL_MAX)
        size = np.float32(exponents[s])
        greatest = max(greatest, size)
        if size >= report:
            reported[found] = s
            found += 1
        if size >= hold:
            if loud_ns[s] < now_ns - window_ns:
                since_ns[s] = now_ns
            loud_ns[s] = now_ns
            if patient(since_ns[s] - born_ns[s], since_ns[s], now_ns):
                alarmed_ns[s] = now_ns
    return found, greatest


@kernel
def teach(
    used, column, silent_ns, kept, linked, calm, sums, usual, counts, hits, hit_values, hit_usual, mean, dispersion,
    memory, prior, exponents, alarmed_ns,
):  # fmt: skip
    """Takes the epoch `column`, which leaves the window, into mean and dispersion, and clears it; `exponents` that this
    changes become NaN.

    Slots that have been in alarm since `silent_ns` do not learn, except those with less than YOUNG observations: what
    alarms about them is more likely their ignorance.

    `memory` float64[slots, 10]: surprises, observations, squared deviations over n, epochs, greatest excess of an
    epoch; all fade by `kept` an epoch in which the slot was seen. Then, learned while the system is `calm`: r and q,
    and, fading as much in a window, the sum and squared sum of what r^2 / q exceeds single epochs by, and their number.
    `prior` float64[6]: what is believed before anything is seen: mean, its weight in observations, dispersion, its
    weight in epochs; the deviation of the mean as a share of what is usual; and how many times the mean, once that is
    known to be small, the dispersion is believed to be at most, for rare surprises are also less dispersed.
    """
    slow = kept ** (1.0 - linked)
    for s in range(used):
        n = counts[s, column]
        if n == 0:
            continue
        exponents[s] = np.nan
        total = sums[s, column]
        expected = n * mean[s]
        sums[s, column] = 0.0
        usual[s, column] = 0.0
        counts[s, column] = 0
        if hits[s, column] > 0:
            hits[s, column] = 0
            hit_values[s, column] = 0.0
            hit_usual[s, column] = 0.0
        if alarmed_ns[s] >= silent_ns and memory[s, 1] >= YOUNG:
            continue
        deviation = min((total - expected) ** 2 / n, DEVIATION_MAX * dispersion[s])
        total = min(total, expected + DEVIATION_MAX * math.sqrt(n * dispersion[s]))
        if calm:
            memory[s, 5] = memory[s, 5] * linked + total - expected
            memory[s, 6] = memory[s, 6] * linked * linked + n
            clump = min(memory[s, 5] ** 2 / memory[s, 6], DEVIATION_MAX * dispersion[s])
            memory[s, 7] = memory[s, 7] * slow + clump - deviation
            memory[s, 8] = memory[s, 8] * slow + (clump - deviation) ** 2
            memory[s, 9] = memory[s, 9] * slow + 1.0
        else:
            memory[s, 5] = 0.0
            memory[s, 6] = 0.0
        memory[s, 0] = memory[s, 0] * kept + total
        memory[s, 1] = memory[s, 1] * kept + n
        memory[s, 2] = memory[s, 2] * kept + deviation
        memory[s, 3] = memory[s, 3] * kept + 1.0
        memory[s, 4] = max(memory[s, 4] * kept, total - expected)
        mean[s] = (memory[s, 0] + prior[0] * prior[1]) / (memory[s, 1] + prior[1])
        believed = min(prior[2], prior[5] * mean[s])
        dispersion[s] = (memory[s, 2] + believed * prior[3]) / (memory[s, 3] + prior[3])
        sure = memory[s, 7] - SURE * math.sqrt(memory[s, 8] / (1.0 - linked))
        dispersion[s] += max(sure, 0.0) / (memory[s, 9] + CLUMPS / (1.0 - linked))


@helper
def in_nats(chain_value, out):
    """Fills `out` float64[n] with about -ln P(a normal chain looks so unusual), by Fisher's rule for two pieces of
    evidence.

    `chain_value` float64[n, 3] has the greatest surprise of each chain's elements, how many there were (of so many the
    greatest is large by chance: Bonferroni), and the greatest level that an element it passed had at the last boundary.
    """
    for c in range(out.size):
        own = max(chain_value[c, 0] - math.log(max(chain_value[c, 1], 1.0)), 0.0)
        both = own + chain_value[c, 2]
        out[c] = both - math.log1p(both)


@kernel
def strongest(first, surprise, slot, level, least, hold, hit, most, out):
    """Fills `out` with the observations that are surprising by themselves, of each chain at most `most`, the strongest
    first; gives their number. Chain c has observations first[c] .. first[c + 1].

    Surprising is what reaches `least`, or `hit` at an element whose window is in alarm (its level reaches `hold`).
    """
    n = 0
    for c in range(first.size - 1):
        begin = n
        for i in range(first[c], first[c + 1]):
            u = surprise[i]
            if u < least and (u < hit or slot[i] < 0 or level[slot[i]] < hold):
                continue
            if n - begin < most:
                n += 1
            elif most == 0 or surprise[out[n - 1]] >= u:
                continue
            k = n - 1
            while k > begin and surprise[out[k - 1]] < u:
                out[k] = out[k - 1]
                k -= 1
            out[k] = i
    return n


class Windows:
    """Slots by key, their rings, and what they have learned. Beyond `limit` no slot is given, and `overflowed` counts.

    Arrays of `PER_SLOT` are attributes; their first `used` rows are in use, and they double when more are needed.
    """

    PER_SLOT = (
        ("key", np.uint64, False),
        ("near", np.int32, False),  # service that the element belongs to, the callee of a call
        ("far", np.int32, False),  # the caller of a call, else -1
        ("sums", np.float64, True),  # of surprises, per epoch of the window
        ("usual", np.float64, True),  # sum of the surprises that the detector expected
        ("counts", np.int32, True),  # of observations
        ("hits", np.int32, True),  # of observations that are surprising by themselves
        ("hit_values", np.float64, True),  # sum of their values
        ("hit_usual", np.float64, True),  # sum of what would have been usual
        ("mean", np.float32, False),
        ("dispersion", np.float32, False),
        ("level", np.float32, False),  # exponent at the last boundary
        ("born_ns", np.int64, False),  # the boundary after which the slot was given
        ("since_ns", np.int64, False),  # the boundary at which the present or last alarm began
        ("loud_ns", np.int64, False),  # the last boundary in alarm
        ("alarmed_ns", np.int64, False),  # the last boundary at which an alarm held learning up
    )

    key: Any
    near: Any
    far: Any
    sums: Any
    usual: Any
    counts: Any
    hits: Any
    hit_values: Any
    hit_usual: Any
    mean: Any
    dispersion: Any
    level: Any
    born_ns: Any
    since_ns: Any
    loud_ns: Any
    alarmed_ns: Any

    def __init__(
        self, limit: int, columns: int, epoch_ns: int, prior: tuple[float, ...], kept: float, piece: float
    ) -> None:
        """`prior`: see `teach`; `kept`: what an epoch leaves of memory."""
        self.limit, self.columns, self.epoch_ns, self.kept, self.piece = limit, columns, epoch_ns, kept, piece
        self.linked = 1.0 - 1.0 / columns  # what an epoch leaves of the deviations that it is summed up with
        self.prior = np.array(prior)
        self.used = 0
        self.overflowed = 0
        self.lookup = LookupTable(2 * limit)
        self.column = 0
        self.filled = [False] * columns  # which epochs of the ring may hold anything
        self.boundary_ns = 0
        self.shaken_ns = NEVER  # the last boundary at which anything was shaken
        self._allocate(FIRST_SLOTS)

    def _allocate(self, size: int) -> None:
        """Arrays of `size` slots, holding what is there."""
        for name, dtype, ring in self.PER_SLOT:
            new = np.zeros((size, self.columns) if ring else size, dtype)
            if self.used:
                new[: self.used] = getattr(self, name)[: self.used]
            setattr(self, name, new)
        memory = np.zeros((size, 10))
        if self.used:
            memory[: self.used] = self.memory[: self.used]
        self.memory: Any = memory
        self.exponents: Any = np.full(size, np.nan)  # at the last boundary; NaN when its window has changed since
        self.reported: Any = np.zeros(size, np.int64)  # room for the slots that a boundary reports
        # What the kernels get at every boundary: to gather it takes longer than some of their work.
        learned = (self.mean, self.dispersion, self.memory, self.prior, self.exponents)
        alarms = (self.level, self.born_ns, self.since_ns, self.loud_ns, self.alarmed_ns, self.reported)
        self._judged = (self.sums, self.usual, self.counts, *learned, *alarms)
        rings = (self.sums, self.usual, self.counts, self.hits, self.hit_values, self.hit_usual)
        self._taught = (*rings, *learned, self.alarmed_ns)

    @property
    def size(self) -> int:
        """Slots that the arrays have room for."""
        return int(self.key.size)

    def add(self, key: int, near: int, far: int) -> int:
        """A slot for `key`, which must have none; -1 when all are taken."""
        if self.used >= self.limit:
            self.overflowed += 1
            return -1
        if self.used == self.size:
            self._allocate(2 * self.size)
        slot = self.used
        self.used += 1
        self._begin(slot, key, near, far)
        self.lookup.put(key, slot)
        return slot

    def _begin(self, slot: Any, key: Any, near: Any, far: Any) -> None:
        """What is known of a slot, or of several, before anything is seen."""
        self.key[slot], self.near[slot], self.far[slot] = key, near, far
        self.mean[slot], self.dispersion[slot] = self.prior[0], self.prior[2]
        self.born_ns[slot] = self.boundary_ns
        self.since_ns[slot] = self.loud_ns[slot] = self.alarmed_ns[slot] = NEVER

    def hand_over(self, slots: Any, keys: Any, near: Any, far: Any) -> None:
        """Gives the slots of elements that are gone to others, as `add` would."""
        self.clear(slots)
        self.memory[slots] = 0.0
        self.level[slots] = 0.0
        self._begin(slots, keys, near, far)
        self._look_up_all()

    def _look_up_all(self) -> None:
        """Makes the table of slots anew."""
        self.lookup.clear()
        self.lookup.put_many(self.key[: self.used], np.arange(self.used, dtype=np.int32))

    def open(self) -> int:
        """The column that the running epoch's surprises are added to: who adds any asks here first."""
        self.filled[self.column] = True
        return self.column

    def judge(self, now_ns: int, hold: float, report: float) -> Any:
        """int64[k]: the slots whose windows reach `report` at the boundary `now_ns`, until the next one; from `hold`
        on a slot is in alarm."""
        if True not in self.filled:
            self.exponents[:] = self.level[:] = 0.0
            return self.reported[:0]
        column = self.column if self.filled[self.column] else -1
        window_ns = self.columns * self.epoch_ns
        found, greatest = judge_slots(
            self.used, column, self.piece, hold, np.float32(report), now_ns, window_ns, *self._judged
        )
        if greatest >= SHAKEN:
            self.shaken_ns = now_ns
        return self.reported[:found]

    def turn(self, now_ns: int) -> None:
        """Opens the column of the epoch that begins at the boundary `now_ns`."""
        steps = (now_ns - self.boundary_ns) // self.epoch_ns if self.boundary_ns else 1
        self.boundary_ns = now_ns
        silent_ns = now_ns - self.columns * self.epoch_ns
        for _ in range(min(max(steps, 1), self.columns)):
            self.column = (self.column + 1) % self.columns
            if not self.filled[self.column]:
                continue
            self.filled[self.column] = False
            calm = self.shaken_ns < silent_ns
            teach(self.used, self.column, silent_ns, self.kept, self.linked, calm, *self._taught)

    def clear(self, slot: int) -> None:
        """Begins the window of `slot`, or of several, anew: what was seen in it is explained, or another's."""
        for ring in (self.sums, self.usual, self.counts, self.hits, self.hit_values, self.hit_usual):
            ring[slot] = 0
        self.exponents[slot] = np.nan

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "column": self.column,
            "boundary_ns": self.boundary_ns,
            "shaken_ns": self.shaken_ns,
            "overflowed": self.overflowed,
            "memory": self.memory[: self.used].copy(),
            **{name: getattr(self, name)[: self.used].copy() for name, _, _ in self.PER_SLOT},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot. A ring of another length starts empty."""
        self.used = 0
        used, size = int(state["key"].size), FIRST_SLOTS
        while size < used:
            size *= 2
        self._allocate(size)
        self.used = used
        self.column, self.boundary_ns = int(state["column"]), int(state["boundary_ns"])
        self.shaken_ns = int(state.get("shaken_ns", NEVER))
        self.overflowed = int(state["overflowed"])
        self.memory[:used, : state["memory"].shape[1]] = state["memory"]  # earlier versions kept less
        same = state["sums"].shape[1] == self.columns
        for name, _, ring in self.PER_SLOT:
            if same or not ring:
                getattr(self, name)[:used] = state[name]
        if not same:
            self.column = 0
        self.filled = self.counts.any(0).tolist()
        self._look_up_all()
