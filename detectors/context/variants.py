"""The variants of each operation: what its spans have written or called so far, how often, and of which events each is.

How it works. `kernels/variants.py` counts variants by a hash and keeps how surprising each is. Here are its arrays, and
the events behind each hash, so that somebody can be told which variant is usual and what another one has more or less
of. A slot is the logs or the calls of one operation (a row of the detector's windows); its variants are a linked list
of rows, from the slot's `first` on.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest
from typing import Any

import numpy as np

from collector_processor.config import ContextConfig
from collector_processor.kernels import variants as kernel
from collector_processor.kernels.table import find_many, move, put
from collector_processor.model import I64, NONE

EDIT_NATS = 3.0  # what one event more or less weighs, where the variant is sought that another one comes closest to
COMPARED_MAX = 32  # variants among which it is sought
ROOM = 4096  # for new variants of one epoch; with less, those of a large system's first epoch would only be counted
NEVER = -(2**62)  # before all times; half of what there is, so that a difference fits
MEMBERS_MAX = 16  # events of one variant that are kept
SLOTS = {
    "first": np.int32,
    "asks": np.int32,  # the one service that the operation calls and does nothing else, NONE, MANY or NOT_ASKING
    "distinct": np.int32,
    "seen": np.float32,
    "fresh": np.float32,  # observations that the surprises do not know yet
    "excess": np.float32,
    "new_nats": np.float32,
    "usual_nats": np.float32,  # mean surprise of the history
    "audited_ns": np.int64,
}
ROWS = {"count": np.float32, "following": np.int32, "nats": np.float32}


class Variants:
    """The variants of all slots. `slots` and `rows` are columns by name; `keys` and `found` the table from a variant's
    key to its row; `members` int32[rows, MEMBERS_MAX], NONE-padded."""

    def __init__(self, config: ContextConfig) -> None:
        self.config = config
        self.slots = {name: np.zeros(64, dtype) for name, dtype in SLOTS.items()}
        self._forget_met(64)
        room = min(ROOM, config.variants_max)
        self.rows = {name: np.zeros(room, dtype) for name, dtype in ROWS.items()}
        self.used = 0  # rows
        self.keys, self.found = np.zeros(4 * room, np.uint64), np.zeros(4 * room, np.int32)
        self.members = np.full((room, MEMBERS_MAX), NONE, np.int32)
        self.novelty = np.zeros(2)  # how often anything new is seen; see `kernels.variants.novelty_rate`

    def _forget_met(self, slots: int) -> None:
        """What the kernels looked up last, by slot; see `kernels.variants.row_of`."""
        self.met, self.met_row = np.zeros(slots, np.uint64), np.full(slots, NONE, np.int32)

    def begin(self, slot: int, size: int) -> None:
        """A new slot; `size` of them must fit."""
        have = self.slots["first"].size
        if have < size:
            for name, array in self.slots.items():
                self.slots[name] = np.concatenate([array, np.zeros(size - have, array.dtype)])
            self._forget_met(size)
        self.slots["first"][slot] = NONE
        self.slots["asks"][slot] = NONE
        self.slots["audited_ns"][slot] = NEVER

    def of(self, slot: int) -> list[int]:
        """The rows of the slot's variants."""
        following, rows, row = self.rows["following"], [], int(self.slots["first"][slot])
        while row >= 0:
            rows.append(row)
            row = int(following[row])
        return rows

    def events(self, row: int) -> list[int]:
        """The events of a variant, in order."""
        return [e for e in self.members[row].tolist() if e != NONE]

    def most_frequent(self, slot: int) -> int:
        """The row of the slot's most frequent variant; NONE when it has none."""
        return max(self.of(slot), key=self.rows["count"].item, default=NONE)

    def usual(self, slot: int) -> list[int]:
        """The events of the slot's most frequent variant."""
        best = self.most_frequent(slot)
        return self.events(best) if best != NONE else []

    def differs(self, slot: int, seen: list[int]) -> tuple[list[int], list[int]]:
        """The events that `seen` has more of, and less of, than the known variant that it comes closest to: of the most
        frequent ones that which needs the fewest nats to be described, its own rarity and EDIT_NATS for each event that
        differs."""
        count, total = self.rows["count"], max(float(self.slots["seen"][slot]), 1.0)
        best, closest = np.inf, (seen, list[int]())
        for row in nlargest(COMPARED_MAX, self.of(slot), key=count.item):
            more, less = seen.copy(), []
            for event in self.events(row):
                if event in more:
                    more.remove(event)
                else:
                    less.append(event)
            nats = EDIT_NATS * len(more + less) - float(np.log((count[row] + 1e-9) / total))
            if (more or less) and nats < best:
                best, closest = nats, (more, less)
        return closest

    def rarest(self, slot: int, events: Iterable[int]) -> int:
        """Of `events`, the one that spans of the slot have had least often; NONE when there is none."""
        rows = self.of(slot)
        counts = {e: sum(float(self.rows["count"][row]) for row in rows if e in self.members[row]) for e in events}
        return min(counts, key=lambda e: (counts[e], e), default=NONE)

    def never_so_often(self, slot: int, seen: list[int]) -> list[int]:
        """The events that no known variant has as often as `seen`, in its order."""
        known = [self.members[row].tolist() for row in self.of(slot)]
        return [e for e in dict.fromkeys(seen) if all(seen.count(e) > variant.count(e) for variant in known)]

    def share_without(self, slot: int, event: int) -> float:
        """The share of spans that are known to go without `event`, half a span believed beforehand."""
        without = [row for row in self.of(slot) if event not in self.members[row]]
        absent = float(self.rows["count"][without].sum()) + float(self.slots["excess"][slot])
        return (absent + 0.5) / (float(self.slots["seen"][slot]) + 1.0)

    def take_over(self, slot: int, key: int, members: list[int]) -> bool:
        """Gives the variant with `key` the history of the most frequent one; False when there is no room for it."""
        at = np.empty(1, np.int32)
        find_many(self.keys, self.found, np.array([key], np.uint64), at)
        row, replaced = int(at[0]), self.most_frequent(slot)
        s, v = self.slots, self.rows
        if row < 0:
            if self.used >= self.config.variants_max or s["distinct"][slot] >= kernel.VARIANTS_MAX:
                return False
            row = self.used
            put(self.keys, self.found, np.uint64(key), row)
            v["count"][row], v["following"][row], s["first"][slot] = 0.0, s["first"][slot], row
            s["distinct"][slot] += 1
            self.members[row, : len(members)] = members
            self.entered(1)
        history = float(self.rows["count"][replaced])
        self.rows["count"][row] += history
        s["seen"][slot] += history
        self.refresh(np.array([slot]))
        return True

    def refresh(self, slots: I64) -> None:
        """Brings the surprises of the variants of `slots` up to date."""
        s, v = self.slots, self.rows
        kernel.refresh(
            *(slots, s["first"], v["following"], v["count"], s["seen"], s["fresh"], s["excess"]),
            kernel.novelty_rate(self.novelty),
            *(self.config.shrink, np.float32(self.config.least), np.float32(self.config.hit)),
            *(v["nats"], s["new_nats"], s["usual_nats"]),
        )

    def entered(self, rows: int) -> None:
        """So many rows more are in use. Keeps room for new ones, and the table at most a quarter full."""
        self.used += rows
        size = self.rows["count"].size
        while self.used + ROOM > size and size < self.config.variants_max:
            for name, array in self.rows.items():
                self.rows[name] = np.concatenate([array, np.zeros_like(array)])
            self.members = np.concatenate([self.members, np.full_like(self.members, NONE)])
            size *= 2
        while 4 * size > self.keys.size:
            keys, found = self.keys, self.found
            self.keys, self.found = np.zeros(2 * keys.size, np.uint64), np.zeros(2 * keys.size, np.int32)
            move(keys, found, self.keys, self.found)

    def snapshot(self, slots: int) -> dict[str, Any]:
        """All of it, `slots` being in use."""
        return {
            "slots": {name: array[:slots].copy() for name, array in self.slots.items()},
            "rows": {name: array[: self.used].copy() for name, array in self.rows.items()},
            "members": self.members[: self.used].copy(),
            "variant_keys": self.keys.copy(),
            "variant_rows": self.found.copy(),
            "novelty": self.novelty.copy(),
        }

    def restore(self, state: dict[str, Any], slots: int, size: int) -> None:
        """Takes back a snapshot with room for `size` slots."""
        for name, dtype in SLOTS.items():
            self.slots[name] = np.zeros(size, dtype)
            self.slots[name][:slots] = state["slots"].get(name, kernel.NOT_ASKING)
        self._forget_met(size)
        self.used = int(state["rows"]["count"].size)
        room = min(ROOM, self.config.variants_max)
        while room < self.used:
            room *= 2
        for name, array in state["rows"].items():
            self.rows[name] = np.zeros(room, array.dtype)
            self.rows[name][: self.used] = array
        self.members = np.full((room, MEMBERS_MAX), NONE, np.int32)
        self.members[: self.used] = state["members"]
        self.keys = np.array(state["variant_keys"], np.uint64)
        self.found = np.array(state["variant_rows"], np.int32)
        self.novelty = np.array(state["novelty"])
        self.entered(0)
