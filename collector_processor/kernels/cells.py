"""Values of the attributes that somebody asked for: as a number, and as a hash that is equal for equal values."""

from __future__ import annotations

import numpy as np
from numba import uint64

from collector_processor.kernels.decode import BODY_WORD
from collector_processor.kernels.jit import allocating_kernel, kernel
from collector_processor.kernels.redact import find_card, has_stars, is_card, is_card_number
from collector_processor.kernels.wire import chunk, fixed64, hash_bytes, mix, varint


@allocating_kernel
def read_cells(buf, cells, n, seed, no_cards, is_masked, numbers, hashes):
    """Values of the cells: numbers float64[n] (NaN when not a number), hashes uint64[n] (keyed, of the text or the raw
    value, so that equal values have equal hashes whatever record they stand in). With `no_cards`, card numbers are no
    numbers. With `is_masked`, a value that was masked has hash 0, any other never: such a cell is not to be kept."""
    for c in range(n):
        v, ve = cells[c, 2], cells[c, 3]
        numbers[c] = np.nan
        if cells[c, 1] == BODY_WORD:
            hashes[c] = hash_bytes(buf, v, ve, seed) | uint64(1)  # never of stars: they are no part of a word
            continue
        hashes[c] = uint64(1)
        if v >= ve:
            continue
        tag = buf[uint64(v)]
        if tag == 10:
            s, se = chunk(buf, v + 1, ve)
            if se >= 0 and is_masked and has_stars(buf, s, se):
                hashes[c] = uint64(0)
            elif se >= 0:
                hashes[c] = hash_bytes(buf, s, se, seed) | uint64(1)
                numbers[c] = decimal(buf, s, se)
                if no_cards and numbers[c] >= 1e12 and find_card(buf, s, se)[1] >= 0:
                    numbers[c] = np.nan
        elif tag == 24 or tag == 16:
            value, end = varint(buf, v + 1, ve)
            is_zero = is_masked and value == uint64(0) and end > v + 2  # longer than a zero needs to be
            hashes[c] = uint64(0) if is_zero else mix(seed, value) | uint64(1)
            numbers[c] = np.nan if no_cards and is_card(value) else float(np.int64(value))
        elif tag == 33 and v + 9 <= ve:
            bits = np.empty(1, np.uint64)
            bits[0] = fixed64(buf, v + 1)
            numbers[c] = bits.view(np.float64)[0]
            hashes[c] = uint64(0) if is_masked and np.isnan(numbers[c]) else mix(~seed, bits[0]) | uint64(1)
            if no_cards and is_card_number(bits[0]):
                numbers[c] = np.nan
        else:
            hashes[c] = hash_bytes(buf, v, ve, seed) | uint64(1)


@kernel
def decimal(buf, p, end):
    """A plain decimal number (sign, digits, point); NaN for any other text or more than 18 digits."""
    if end - p > 20 or p >= end:
        return np.nan
    negative = buf[uint64(p)] == 45
    if negative or buf[uint64(p)] == 43:
        p += 1
    value = 0.0
    scale = 0.0
    digits = 0
    while p < end:
        if buf[uint64(p)] == 46 and scale == 0.0:
            scale = 1.0
        elif 48 <= buf[uint64(p)] <= 57 and digits < 18:
            value = value * 10.0 + float(buf[uint64(p)] - 48)
            scale *= 10.0
            digits += 1
        else:
            return np.nan
        p += 1
    if digits == 0:
        return np.nan
    if scale > 1.0:
        value /= scale
    return -value if negative else value
