"""Open-addressing table uint64 -> int32 that kernels can read: the dictionary behind first sights.

How it works. Linear probing, a power of two in size, at most half full; key 0 is "empty", so callers make keys
non-zero. `LookupTable` owns the arrays; kernels get `keys` and `values`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from collector_processor.kernels.wire import finish


@njit(nogil=True, cache=True)
def put(keys, values, key, value):
    """Sets key -> value in the open-addressing table; the caller keeps it at most half full."""
    mask = uint64(keys.size - 1)
    i = finish(key) & mask
    while keys[i] != 0 and keys[i] != key:
        i = (i + uint64(1)) & mask
    keys[i] = key
    values[i] = value


@njit(nogil=True, cache=True)
def find_many(keys, values, wanted, out):
    """out[i] = values of wanted[i], -1 where it is not in the table. Returns how many are not."""
    mask = uint64(keys.size - 1)
    missing = 0
    for k in range(wanted.size):
        key = wanted[k]
        i = finish(key) & mask
        while keys[i] != 0 and keys[i] != key:
            i = (i + uint64(1)) & mask
        if keys[i] == 0:
            out[k] = -1
            missing += 1
        else:
            out[k] = values[i]
    return missing


@njit(nogil=True, cache=True)
def move(keys, values, new_keys, new_values):
    """Enters every key of one table in another, larger one."""
    for i in range(keys.size):
        if keys[i] != 0:
            put(new_keys, new_values, keys[i], values[i])


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
        if self.used >= self.limit:
            self.emptied += 1
            self.clear()
        if 2 * (self.used + 1) > self.keys.size:
            keys, values = self.keys, self.values
            self.keys = np.zeros(2 * keys.size, np.uint64)
            self.values = np.zeros(2 * keys.size, np.int32)
            move(keys, values, self.keys, self.values)
        put(self.keys, self.values, np.uint64(key), value)
        self.used += 1
