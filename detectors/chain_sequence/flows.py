"""What is normal for a flow as a whole: how many chains, how often a new path, a late one, and how odd new ones were.

How it works. Columns by flow id. `total` counts normal chains; `mass[flow, bucket]` is how many of them ran on paths of
a frequency in that half-octave, so that "the share of chains on paths at most as frequent as this one" is a short sum.
`recent` and `fresh` count the last thousand or so chains and those whose path was new then: their quotient is the
chance of a new path now (Good and Turing's estimate, made to follow the present). `oddity` keeps the surprise of the
last new normal paths: how odd new paths of this flow usually are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector_processor.kernels.sequence import BUCKETS
from detectors.chain_sequence.paths import grown

MEMORY = 1000.0  # chains over which a rate per flow is averaged
ODDITIES = 32  # new normal paths remembered
COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "total": (np.float64, ()),
    "recent": (np.float64, ()),
    "fresh": (np.float64, ()),
    "late": (np.float64, ()),
    "mass": (np.float64, (BUCKETS,)),
    "oddity": (np.float64, (ODDITIES,)),
    "oddities": (np.int64, ()),
}


class FlowTable:
    """Columns by flow id, grown as flows appear (their number is bounded by `Symbols`)."""

    def __init__(self) -> None:
        self.column: dict[str, Any] = {name: np.zeros((16, *shape), kind) for name, (kind, shape) in COLUMNS.items()}

    def reserve(self, flows: int) -> None:
        """Makes room for flow ids below `flows`."""
        if flows > self.column["total"].size:
            self.column = {name: grown(values, flows) for name, values in self.column.items()}

    def new_path_rate(self, flow: int) -> float:
        """The chance that a normal chain of the flow runs on a path never seen before; half a chain for the unknown."""
        return float((self.column["fresh"][flow] + 0.5) / (self.column["recent"][flow] + 1.0))

    def late_rate(self, flow: int) -> float:
        """The chance that a normal chain of the flow is closed without its root."""
        return float((self.column["late"][flow] + 0.5) / (self.column["recent"][flow] + 1.0))

    def odder_share(self, flow: int, surprise: float) -> float:
        """Among normal paths that were new, the share at least as surprising: rank with one for itself."""
        known = int(min(self.column["oddities"][flow], ODDITIES))
        odder = int((self.column["oddity"][flow, :known] >= surprise - 1e-9).sum())
        return (odder + 1) / (known + 1)

    def recount(self, flow: Any, effective: Any) -> None:
        """Sets `mass` anew from the effective counts of all rows (after decay, adoption, or a new slice)."""
        self.column["mass"][:] = 0.0
        exponent = np.log2(np.maximum(effective, 2.0**-8))
        buckets = np.minimum(BUCKETS - 1, (2.0 * exponent + 16.0).astype(np.int64))
        np.add.at(self.column["mass"], (flow, buckets), effective)

    def snapshot(self) -> dict[str, Any]:
        return {name: values.copy() for name, values in self.column.items()}

    def restore(self, state: dict[str, Any]) -> None:
        self.column = {name: np.array(state[name], kind) for name, (kind, _) in COLUMNS.items()}
