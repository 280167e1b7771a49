"""The numbers of JSON: decimal digits to 64-bit integers and to the nearest double.

How it works. Both answer at which byte they stopped, or that they cannot say: not a number of that kind, too large, or
one of the few doubles whose rounding takes more than 128 bits. `_nrt=False` as in `json.py`.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.jit import helper, inlined, kernel
from collector_processor.kernels.json_text import byte_at

MIN_EXPONENT = -348
LAST_TENTH = 1844674407370955161  # (2**64 - 1) // 10


def powers_of_ten() -> np.ndarray:
    """uint64[696, 2]: high and low half of the 128-bit mantissa of 10**e, rounded down, for e from -348 to 347."""
    rows = []
    for exponent in range(MIN_EXPONENT, 348):
        if exponent >= 0:
            value = 10**exponent
            size = value.bit_length()
            mantissa = value << (128 - size) if size <= 128 else value >> (size - 128)
        else:
            divisor = 10**-exponent
            mantissa = (1 << (divisor.bit_length() + 127)) // divisor
            mantissa >>= mantissa.bit_length() - 128
        rows.append((mantissa >> 64, mantissa & (2**64 - 1)))
    return np.array(rows, np.uint64)


POWERS = powers_of_ten()


@inlined
def read_integer(buf, p):
    """(magnitude, negative, next position) of a decimal integer at p; position -1 when it is none that fits 64 bits."""
    negative = byte_at(buf, p) == 45
    if negative:
        p += 1
    first = p
    value = uint64(0)
    while True:
        digit = uint64(byte_at(buf, p)) - uint64(48)
        if digit > uint64(9):
            break
        if p - first > 18 and (value > uint64(LAST_TENTH) or (value == uint64(LAST_TENTH) and digit > uint64(5))):
            return value, negative, int64(-1)
        value = value * uint64(10) + digit
        p += 1
    if p == first or (p - first > 1 and buf[uint64(first)] == 48):
        return value, negative, int64(-1)
    c = byte_at(buf, p)
    if c == 46 or c == 101 or c == 69:  # a fraction or an exponent
        return value, negative, int64(-1)
    return value, negative, p


@inlined
def high_product(a, b):
    """(high, low) half of the 128-bit product of two uint64."""
    mask = uint64(0xFFFFFFFF)
    shift = uint64(32)
    low = (a & mask) * (b & mask)
    one = (a >> shift) * (b & mask)
    two = (a & mask) * (b >> shift)
    middle = (low >> shift) + (one & mask) + (two & mask)
    high = (a >> shift) * (b >> shift) + (one >> shift) + (two >> shift) + (middle >> shift)
    return high, a * b


@kernel
def double_bits(mantissa, exponent, powers):
    """(bits, ok) of the double nearest to mantissa * 10**exponent (Eisel and Lemire, 'Number parsing at a gigabyte per
    second', 2021, as in Go's strconv). Not ok: the few cases that 128 bits do not decide, subnormals and overflow."""
    one = uint64(1)
    low9 = uint64(0x1FF)
    if mantissa == uint64(0):
        return uint64(0), True
    if exponent < MIN_EXPONENT or exponent > 347:
        return uint64(0), False
    zeros = 0
    while mantissa >> uint64(63) == uint64(0):
        mantissa <<= one
        zeros += 1
    binary = ((217706 * exponent) >> 16) + 64 + 1023 - zeros
    row = exponent - MIN_EXPONENT
    high, low = high_product(mantissa, powers[row, 0])
    if high & low9 == low9 and low + mantissa < mantissa:
        high2, low2 = high_product(mantissa, powers[row, 1])
        merged = low + high2
        if merged < low:
            high += one
        if high & low9 == low9 and merged + one == uint64(0) and low2 + mantissa < mantissa:
            return uint64(0), False
        low = merged
    top = high >> uint64(63)
    kept = high >> (top + uint64(9))
    binary -= int64(one ^ top)
    if low == uint64(0) and high & low9 == uint64(0) and kept & uint64(3) == one:
        return uint64(0), False
    kept = (kept + (kept & one)) >> one
    if kept >> uint64(53) > uint64(0):
        kept >>= one
        binary += 1
    if binary < 1 or binary >= 0x7FF:
        return uint64(0), False
    return (uint64(binary) << uint64(52)) | (kept & uint64(0x000FFFFFFFFFFFFF)), True


@helper
def read_double(buf, p, powers):
    """(bits, next position) of a JSON number at p; position -1 when it is none, or its rounding cannot be decided here.

    Nineteen digits are kept. When more follow, the number lies between the kept ones and the next: rounded alike, the
    rest does not matter.
    """
    negative = byte_at(buf, p) == 45
    if negative:
        p += 1
    mantissa = uint64(0)
    digits = 0
    dropped = False
    exponent = int64(0)
    first = p
    point = int64(-1)
    while True:
        c = byte_at(buf, p)
        if c == 46 and point < 0 and p > first:
            point = p + 1
        elif 48 <= c <= 57:
            if digits < 19:
                digits += digits > 0 or c != 48
                mantissa = mantissa * uint64(10) + uint64(c - 48)
                exponent -= point >= 0
            else:
                dropped = True
                exponent += point < 0
        else:
            break
        p += 1
    whole = (point - 1 if point >= 0 else p) - first
    if whole == 0 or point == p or (whole > 1 and buf[uint64(first)] == 48):
        return uint64(0), int64(-1)
    c = byte_at(buf, p)
    if c == 101 or c == 69:
        p += 1
        sign = byte_at(buf, p)
        if sign == 43 or sign == 45:
            p += 1
        value, too_large, p = read_integer_digits(buf, p)
        if too_large or p < 0:
            return uint64(0), int64(-1)
        exponent += -value if sign == 45 else value
    bits, ok = double_bits(mantissa, exponent, powers)
    if dropped and ok:
        above, ok = double_bits(mantissa + uint64(1), exponent, powers)
        ok &= above == bits
    if not ok:
        return uint64(0), int64(-1)
    return bits | (uint64(negative) << uint64(63)), p


@inlined
def read_integer_digits(buf, p):
    """(value, too large, next position) of the decimal digits at p; position -1 when there are none."""
    first = p
    value = int64(0)
    while 48 <= byte_at(buf, p) <= 57:
        if value < 100000:
            value = value * 10 + int64(buf[uint64(p)]) - 48
        p += 1
    return value, value >= 100000, p if p > first else int64(-1)
