"""The memory of closed chains: a record that comes for one of them is late, and makes no second chain.

How it works. Chains are remembered by a hash, in generations (kernels/closed.py). A generation ends at the end of an
epoch, when it is old or large enough; it is forgotten when `closed_remembered_s` have passed since, or earlier when
there would be no room for the next epoch within `closed_remembered_max`, which is counted. Since generations come and
go at boundaries of epochs only, how often anybody looks changes nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from collector_processor.kernels import closed as kernel
from collector_processor.model import U64

SLOTS_MIN = 1024
PAST = kernel.GENERATIONS - 1  # generations beside the present one


class Closed:
    """The table and its generations. `table`, `generation` and `held` are for the kernel that enters and looks up."""

    def __init__(self, most: int, remembered_ns: int) -> None:
        """most: chains; remembered_ns: how long each, where there are no more than that."""
        self._most = most
        self._share = max(1, most // kernel.GENERATIONS)
        self._remembered_ns = remembered_ns
        self._slots_max = 1 << max(SLOTS_MIN, 2 * most - 1).bit_length()
        self.table: U64 = np.zeros(SLOTS_MIN, np.uint64)
        self.generation = 1
        self.forgotten = 0  # before their time
        self._began_ns = 0
        self._past: deque[tuple[int, int, int]] = deque()  # (generation, hashes, when it ended), oldest first

    def reserve(self, held: int, more: int) -> None:
        """Room for so many more, within the bound."""
        size = self.table.size
        while 2 * (held + more) > size and size < self._slots_max:
            size *= 2
        if size > self.table.size:
            self._resize(self.table, size)

    def _resize(self, entries: U64, size: int) -> None:
        self.table = np.zeros(size, np.uint64)
        kernel.move(entries, self.table)

    def turn(self, held: int, now_ns: int) -> int:
        """The end of an epoch: ends the generation and forgets old ones, as above. `held`: hashes in the table; gives
        how many are left."""
        entered = held - sum(count for _, count, _ in self._past)
        if entered and (entered >= self._share or now_ns - self._began_ns >= -(-self._remembered_ns // PAST)):
            self._past.append((self.generation, entered, now_ns))
            self.generation = self.generation % kernel.GENERATIONS + 1
            self._began_ns = now_ns
        elif not entered:
            self._began_ns = now_ns
        while self._past:
            oldest, count, ended_ns = self._past[0]
            is_old = now_ns - ended_ns >= self._remembered_ns
            room = self._share if len(self._past) > 1 else 0
            if not (is_old or held > self._most - room or oldest == self.generation):
                break
            self._past.popleft()
            held -= kernel.forget(self.table, oldest)
            self.forgotten += 0 if is_old else count
        return held

    def snapshot(self) -> dict[str, Any]:
        return {
            "entries": self.table[self.table != 0],
            "generation": self.generation,
            "began_ns": self._began_ns,
            "past": [list(past) for past in self._past],
            "forgotten": self.forgotten,
        }

    def restore(self, state: dict[str, Any]) -> None:
        entries = np.array(state["entries"], np.uint64)
        self._resize(entries, max(SLOTS_MIN, 1 << (2 * entries.size).bit_length()))
        self.generation = int(state["generation"])
        self._began_ns = int(state["began_ns"])
        self._past = deque((int(number), int(count), int(ended_ns)) for number, count, ended_ns in state["past"])
        self.forgotten = int(state["forgotten"])
