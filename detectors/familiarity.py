"""How familiar things of a kind are to a flow: columns that several detectors keep, each for its own kind of thing.

How it works. A *row* is a distinct thing (a path, a set of events) of one flow. `good` and `bad` count its chains that
were normal and that were judged anomalous; a row is *known* while it has been normal at least as often. Per flow,
`total` counts normal chains, and `mass[flow, bucket]` how many of them had a row of a frequency in that half-octave, so
that "the share of chains whose row is at most as frequent as this one" is a short sum in a kernel. `recent` and `fresh`
count the last thousand or so chains and those whose row was new then: their quotient is the chance of a new row now
(Good and Turing's estimate, made to follow the present). `oddity` keeps how odd the last new normal rows were; what odd
means is the detector's own measure.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import numpy as np

from collector_processor.kernels import familiarity as kernels
from collector_processor.model import F64, I32, I64, U8, Bool, ChainBatch

MEMORY = 1000.0  # chains over which a rate per flow is averaged
ODDITIES = 32  # new normal rows remembered per flow
ODD_PRIOR = 4.0  # oddities that the scale believed beforehand counts for
BAD_MAX = 1000.0  # anomalous chains remembered per row: more would make a correction too slow
FLOW_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "total": (np.float64, ()),
    "recent": (np.float64, ()),
    "fresh": (np.float64, ()),
    "late": (np.float64, ()),
    "mass": (np.float64, (kernels.BUCKETS,)),
    "oddity": (np.float64, (ODDITIES,)),
    "oddities": (np.int64, ()),
}
ROW_COLUMNS: dict[str, type] = {
    "flow": np.int32,
    "good": np.float64,
    "bad": np.float64,
    "ratio": np.float64,  # how much more frequent than usual the row is at this time
    "first_ns": np.int64,
    "last_ns": np.int64,
    "seen": np.int64,  # chains scored since it was last taken
}


Oddities = tuple[int, list[float], float]  # of a flow: how many there were, those remembered ascending, their scale
NO_ODDITIES: Oddities = (-1, [], 0.0)


def grown(array: Any, size: int, fill: float = 0) -> Any:
    """`array` with room for `size` rows (doubling), new ones filled with `fill`."""
    if array.shape[0] >= size:
        return array
    room = max(size, 2 * array.shape[0])
    return np.concatenate([array, np.full((room - array.shape[0], *array.shape[1:]), fill, array.dtype)])


class Familiarity:
    """Rows and flows as above."""

    def __init__(self, young: int, odd_scale: float) -> None:
        """young: chains of a flow before anything is said of it; odd_scale: of a new row, before any was seen."""
        self.young = young
        self.odd_scale = odd_scale
        self.size = 0
        self.row: dict[str, Any] = {name: np.zeros(64, kind) for name, kind in ROW_COLUMNS.items()}
        self.flow: dict[str, Any] = {name: np.zeros((16, *shape), kind) for name, (kind, shape) in FLOW_COLUMNS.items()}
        self._oddities: dict[int, Oddities] = {}  # by flow, as last asked for

    def view(self, name: str) -> Any:
        """The row column `name` of all rows."""
        return self.row[name][: self.size]

    def add(self, flow: int, now_ns: int) -> int:
        """A new row of `flow`."""
        new = self.size
        self.size += 1
        if self.size > self.row["flow"].size:
            self.row = {name: grown(values, self.size) for name, values in self.row.items()}
        self.row["flow"][new], self.row["ratio"][new], self.row["first_ns"][new] = flow, 1.0, now_ns
        if flow >= self.flow["total"].size:
            self.flow = {name: grown(values, flow + 1) for name, values in self.flow.items()}
        return new

    def score(self, rows: I32, outcome: U8, trusted: float = math.inf) -> tuple[F64, U8, int]:
        """Per chain: value (-ln share of chains whose row is at most as frequent) and state flags of the kernel; and
        how many chains are neither plainly known nor plainly cold. See `kernels.familiarity.known_values`."""
        value, state = np.empty(rows.size), np.empty(rows.size, np.uint8)
        row, flow = self.row, self.flow
        odd = kernels.known_values(
            *(rows, outcome, float(self.young), trusted, row["flow"], row["good"], row["bad"], row["ratio"]),
            *(flow["mass"], flow["total"], row["seen"], value, state),
        )
        return value, state, odd

    def learn(self, rows: I32, batch: ChainBatch, normal: Bool, odd: F64) -> bool:
        """Counts chains in order; `odd` is the oddity of each row. True when a row became known by it."""
        row, flow = self.row, self.flow
        return bool(
            kernels.learn_rows(
                *(rows, np.ascontiguousarray(normal, np.bool_), batch.outcome, batch.closed_ns, row["flow"]),
                *(row["good"], row["bad"], row["ratio"], row["last_ns"], flow["mass"], flow["total"], flow["recent"]),
                *(
                    flow["fresh"],
                    flow["late"],
                    MEMORY,
                    float(self.young),
                    flow["oddity"],
                    flow["oddities"],
                    odd,
                    BAD_MAX,
                ),
            )
        )

    def chains(self) -> float:
        """Normal chains of all flows."""
        return float(np.add.reduce(self.flow["total"]))

    def known(self) -> Bool:
        """bool[rows]: normal at least as often as anomalous."""
        return np.asarray((self.view("good") > 0) & (self.view("bad") <= self.view("good")))

    def new_rate(self, flow: int) -> float:
        """The chance that a normal chain of the flow has a row never seen before; half a chain for the unknown."""
        return float((self.flow["fresh"][flow] + 0.5) / (self.flow["recent"][flow] + 1.0))

    def late_rate(self, flow: int) -> float:
        """The chance that a normal chain of the flow is closed without its root."""
        return float((self.flow["late"][flow] + 0.5) / (self.flow["recent"][flow] + 1.0))

    def odder_share(self, flow: int, odd: float) -> float:
        """Among normal rows that were new, the share at least as odd; beyond the oddest an exponential tail goes on."""
        count, values, scale = self._oddities.get(flow, NO_ODDITIES)
        if count != self.flow["oddities"].item(flow):
            count, values, scale = self._oddities[flow] = self._oddities_of(flow)
        rank = (len(values) - bisect_left(values, odd - 1e-9) + 1) / (len(values) + 1)
        excess = max(0.0, odd - (values[-1] if values else 0.0))
        return rank * math.exp(-excess / scale)

    def _oddities_of(self, flow: int) -> Oddities:
        count = self.flow["oddities"].item(flow)
        past = self.flow["oddity"][flow, :count]  # all of them when there were more
        scale = (ODD_PRIOR * self.odd_scale + float(np.add.reduce(past))) / (ODD_PRIOR + past.size)
        return count, sorted(past.tolist()), scale

    def adopt(self, age_s: float, repeats: int) -> bool:
        """Makes known what was judged anomalous and yet kept coming for `age_s` (an intended release). True if any."""
        good, bad = self.view("good"), self.view("bad")
        waiting = np.flatnonzero(bad > good)
        age = self.view("last_ns")[waiting] - self.view("first_ns")[waiting]
        adopted = waiting[(age >= age_s * 1e9) & (bad[waiting] >= repeats)]
        if adopted.size == 0:
            return False
        self.flow["total"] += np.bincount(self.view("flow")[adopted], bad[adopted], self.flow["total"].size)
        good[adopted] += bad[adopted]
        bad[adopted] = 0.0
        self.recount()
        return True

    def fade(self, factor: float) -> None:
        """Forgets a little of what was counted; a row once seen stays known."""
        good = self.view("good")
        good[good > 0] = np.maximum(good[good > 0] * factor, 0.5)
        self.view("bad")[:] *= factor
        self.flow["total"][:] = np.bincount(self.view("flow"), good, self.flow["total"].size)
        self.recount()

    def recount(self) -> None:
        """Sets `mass` anew from the counts of all rows."""
        effective = self.view("good") * self.view("ratio")
        self.flow["mass"][:] = 0.0
        exponent = np.log2(np.maximum(effective, 2.0**-8))
        buckets = np.minimum(kernels.BUCKETS - 1, (2.0 * exponent + 16.0).astype(np.int64))
        np.add.at(self.flow["mass"], (self.view("flow"), buckets), effective)

    def keep(self, kept: I64) -> None:
        """Only the rows `kept`, in that order."""
        self.row = {name: values[: self.size][kept] for name, values in self.row.items()}
        self.size = kept.size
        self.recount()

    def snapshot(self) -> dict[str, Any]:
        return {
            "rows": {name: self.view(name).copy() for name in self.row},
            "flows": {name: values.copy() for name, values in self.flow.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.row = {name: np.array(state["rows"][name], kind) for name, kind in ROW_COLUMNS.items()}
        self.size = int(self.row["flow"].size)
        self.flow = {name: np.array(state["flows"][name], kind) for name, (kind, _) in FLOW_COLUMNS.items()}
        self._oddities.clear()


def describe_young(total: F64, least: int, flows: list[str], what: str) -> str | None:
    """Which flows are too young for `what` to be judged, by the chains learned of each, `total`; None when none is."""
    total = total[: len(flows)]
    young = np.flatnonzero((total > 0) & (total < least)).tolist()
    if not total.any():
        return f"no chain learned yet; {what} are judged from {least} chains of a flow on"
    if not young:
        return None
    named = ", ".join(f"{flows[flow]} ({int(total[flow])} of {least} chains)" for flow in young[:5])
    more = f" and {len(young) - 5} more" if len(young) > 5 else ""
    return f"{what} are not judged yet in: {named}{more}"
