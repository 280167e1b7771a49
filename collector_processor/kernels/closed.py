"""A set of hashes with a generation each, in one array: which chains were closed lately.

How it works. `table` (uint64, a power of two in size) is open addressing with linear probing. A slot holds a hash whose
lowest bits are the number of the generation in which it was entered, from 1 on; 0 is empty. A generation is forgotten
in one pass over the table, which moves later hashes of a run back, so that no tombstones pile up.
"""

from __future__ import annotations

from numba import int64, uint64

from collector_processor.kernels.jit import expanded, kernel

GENERATION_BITS = 3
GENERATIONS = (1 << GENERATION_BITS) - 1
GENERATION_MASK = GENERATIONS


@expanded
def slot_of(table, h):
    """The slot of hash h, or the empty one in which it would be entered. There is an empty slot."""
    mask = uint64(table.size - 1)
    i = (h >> uint64(GENERATION_BITS)) & mask
    while table[i] != 0 and (table[i] ^ h) >> uint64(GENERATION_BITS) != 0:
        i = (i + uint64(1)) & mask
    return i


@expanded
def holds(table, h):
    """Whether hash h was entered and not forgotten."""
    return table[slot_of(table, h)] != 0


@expanded
def enter(table, held, generation, h):
    """Enters hash h. `held`: hashes in the table. Returns how many more there are now: none where it is there already,
    or where the table is three quarters full."""
    if 4 * (held + 1) > 3 * table.size:
        return 0
    i = slot_of(table, h)
    if table[i] != 0:
        return 0
    table[i] = (h & ~uint64(GENERATION_MASK)) | uint64(generation)
    return 1


@kernel
def move(entries, table):
    """Enters what is in `entries` (zeros are passed) in `table`, with its generations."""
    for entry in entries:
        if entry != 0:
            table[slot_of(table, entry)] = entry


@kernel
def forget(table, generation):
    """Takes the hashes of one generation out. Returns how many that were."""
    mask = int64(table.size - 1)
    gone = 0
    at = 0
    while at < table.size:
        if table[at] & uint64(GENERATION_MASK) != uint64(generation):
            at += 1
            continue
        gone += 1
        hole = at
        i = (at + 1) & mask
        while table[i] != 0:
            home = int64((table[i] >> uint64(GENERATION_BITS)) & uint64(mask))
            if ((i - home) & mask) >= ((i - hole) & mask):
                table[hole] = table[i]
                hole = i
            i = (i + 1) & mask
        table[hole] = 0  # and `at` is looked at again: another may have come here
    return gone
