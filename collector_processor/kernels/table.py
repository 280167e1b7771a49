"""Open-addressing tables that kernels can read: `keys` (uint64), and columns beside them with what belongs to each.

How it works. Linear probing, a power of two in size, at most half full; key 0 is "empty", so callers make keys
non-zero. Whoever owns the arrays keeps them at most half full, and moves them to larger ones. `LookupTable` does so for
uint64 -> int32, the dictionary behind first sights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import uint64

from collector_processor.kernels.jit import kernel
from collector_processor.kernels.wire import finish


@kernel
def slot_of(keys, key):
    """Index of `key` in an open-addressing table, or of the empty slot where it would go."""
    mask = uint64(keys.size - 1)
    i = finish(key) & mask
    while keys[i] != 0 and keys[i] != key:
        i = (i + uint64(1)) & mask
    return i


@kernel
def put(keys, values, key, value):
    """Sets key -> value."""
    i = slot_of(keys, key)
    keys[i] = key
    values[i] = value


@kernel
def find(keys, values, key):
    """Value of `key` (int32), -1 when it is not there."""
    i = slot_of(keys, key)
    return values[i] if keys[i] != 0 else np.int32(-1)


@kernel
def find_many(keys, values, wanted, out):
    """out[i] = values of wanted[i], -1 where it is not in the table. Returns how many are not."""
    missing = 0
    for k in range(wanted.size):
        i = slot_of(keys, wanted[k])
        if keys[i] == 0:
            out[k] = -1
            missing += 1
        else:
            out[k] = values[i]
    return missing


@kernel
def take(values, index, out):
    """out[i] = values[index[i]]. Returns how many of them are negative."""
    negative = 0
    for i in range(index.size):
        out[i] = values[index[i]]
        negative += out[i] < 0
    return negative


@kernel
def put_many(keys, values, new_keys, new_values):
    """Sets new_keys[i] -> new_values[i]; a key that is there keeps its value, which new_values[i] becomes. Returns how
    many were not there."""
    missing = 0
    for k in range(new_keys.size):
        i = slot_of(keys, new_keys[k])
        if keys[i] == 0:
            keys[i] = new_keys[k]
            values[i] = new_values[k]
            missing += 1
        else:
            new_values[k] = values[i]
    return missing


@kernel
def move(keys, values, new_keys, new_values):
    """Enters every key of one table in another, larger one."""
    for i in range(keys.size):
        if keys[i] != 0:
            put(new_keys, new_values, keys[i], values[i])


@kernel
def move_two(keys, first, second, new_keys, new_first, new_second):
    """The same of a table with two columns."""
    for i in range(keys.size):
        if keys[i] != 0:
            j = slot_of(new_keys, keys[i])
            new_keys[j] = keys[i]
            new_first[j] = first[i]
            new_second[j] = second[i]


@kernel
def move_keys(keys, new_keys):
    """The same of a table without columns: a set."""
    for i in range(keys.size):
        if keys[i] != 0:
            new_keys[slot_of(new_keys, keys[i])] = keys[i]


class LookupTable:
    """A growing table, emptied (counted in `emptied`) when it holds `limit` keys: a cache of what can be had again."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.emptied = 0
        self.clear()

    def clear(self) -> None:
        """Forgets every key."""
        self.used = 0
        self.keys = np.zeros(1024, np.uint64)
        self.values = np.zeros(1024, np.int32)

    def put(self, key: int, value: int) -> None:
        """Sets key -> value; key must not be 0 nor already there."""
        self.make_room(1)
        put(self.keys, self.values, np.uint64(key), value)
        self.used += 1

    def put_many(self, keys: npt.NDArray[np.uint64], values: npt.NDArray[np.int32]) -> None:
        """The same of several, none of them 0; see the kernel for those that are there or come twice."""
        self.make_room(keys.size)
        self.used += put_many(self.keys, self.values, keys, values)

    def make_room(self, more: int) -> None:
        """Sees to it that so many more keys fit."""
        if self.used + more > self.limit and self.used:
            self.emptied += 1
            self.clear()
        if 2 * (self.used + more) > self.keys.size:
            keys, values = self.keys, self.values
            size = 2 * keys.size
            while 2 * (self.used + more) > size:
                size *= 2
            self.keys = np.zeros(size, np.uint64)
            self.values = np.zeros(size, np.int32)
            move(keys, values, self.keys, self.values)
