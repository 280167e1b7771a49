"""The protobuf wire format (https://protobuf.dev/programming-guides/encoding) and hashing, byte by byte, in kernels.

How it works. A position is an int64 into a uint8 array; every read is checked against the `end` of the enclosing
message, and a function that cannot go on answers position -1. Nothing raises. Bytes are read as `buf[uint64(p)]`: an
unsigned index spares numba's test for a negative one at each byte, which halves the time of a scan. Hashes are keyed by
a secret seed: they are cache keys of one process, never ids; ids come from `model.content_hash` on first sight.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.jit import helper, inlined, kernel

MULTIPLIER = 0x9E3779B97F4A7C15
MULTIPLIER_2 = 0xD6E8FEB86659FD93

# Byte classes for masking: 0 separator, 1 word, 2 digit. A word that holds a digit is a variable.
CLASSES = np.zeros(256, np.uint8)
CLASSES[ord("0") : ord("9") + 1] = 2
CLASSES[ord("A") : ord("Z") + 1] = 1
CLASSES[ord("a") : ord("z") + 1] = 1
CLASSES[ord("_")] = 1
CLASSES[128:] = 1


@inlined
def mix(h, x):
    """One round of a multiply-xorshift hash; both are uint64."""
    h = (h ^ x) * uint64(MULTIPLIER)
    return h ^ (h >> uint64(29))


@inlined
def finish(h):
    """Spreads the entropy of `h` over all bits, for use as a table index."""
    h = (h ^ (h >> uint64(32))) * uint64(MULTIPLIER_2)
    return h ^ (h >> uint64(32))


@inlined
def fixed64(buf, p):
    """Little-endian uint64 at p; the caller has checked that 8 bytes are there."""
    q = uint64(p)
    return (
        uint64(buf[q])
        | uint64(buf[q + uint64(1)]) << uint64(8)
        | uint64(buf[q + uint64(2)]) << uint64(16)
        | uint64(buf[q + uint64(3)]) << uint64(24)
        | uint64(buf[q + uint64(4)]) << uint64(32)
        | uint64(buf[q + uint64(5)]) << uint64(40)
        | uint64(buf[q + uint64(6)]) << uint64(48)
        | uint64(buf[q + uint64(7)]) << uint64(56)
    )


@inlined
def big64(buf, p):
    """Big-endian uint64 at p, as ids are written; the caller has checked that 8 bytes are there."""
    x = fixed64(buf, p)
    x = ((x & uint64(0x00FF00FF00FF00FF)) << uint64(8)) | ((x >> uint64(8)) & uint64(0x00FF00FF00FF00FF))
    x = ((x & uint64(0x0000FFFF0000FFFF)) << uint64(16)) | ((x >> uint64(16)) & uint64(0x0000FFFF0000FFFF))
    return (x << uint64(32)) | (x >> uint64(32))


@inlined
def varint(buf, p, end):
    """(value, next position); position -1 when truncated or longer than 10 bytes."""
    if p >= end:
        return uint64(0), int64(-1)
    byte = buf[uint64(p)]
    p += 1
    if byte < 128:
        return uint64(byte), p
    value = uint64(byte & 0x7F)
    shift = 7
    while p < end and shift < 70:
        byte = buf[uint64(p)]
        p += 1
        value |= uint64(byte & 0x7F) << uint64(shift)
        if byte < 128:
            return value, p
        shift += 7
    return value, int64(-1)


@inlined
def chunk(buf, p, end):
    """(start, end) of a length-delimited field whose length stands at p; end -1 when it does not fit."""
    n, p = varint(buf, p, end)
    if p < 0 or n > uint64(end - p):
        return int64(0), int64(-1)
    return p, p + int64(n)


@inlined
def skip(buf, p, end, wire):
    """Position after a field of wire type `wire` whose value stands at p; -1 when it does not fit or is a group."""
    if wire == 0:
        _, p = varint(buf, p, end)
        return p
    if wire == 2:
        _, p = chunk(buf, p, end)
        return p
    if wire != 1 and wire != 5:
        return int64(-1)
    p += 8 if wire == 1 else 4
    if p > end:
        return int64(-1)
    return p


@helper
def find_chunk(buf, p, end, tag):
    """(begin, end) of the content of the next field in buf[p:end] whose tag, of a length-delimited field, is `tag`.

    (-1, end) when there is none; (-1, -1) where the bytes before it are malformed."""
    while p < end:
        found, p = varint(buf, p, end)
        if p < 0:
            break
        if found == tag:
            a, b = chunk(buf, p, end)
            return (a, b) if b >= 0 else (int64(-1), int64(-1))
        p = skip(buf, p, end, int64(found & uint64(7)))
        if p < 0:
            break
    return int64(-1), p


@inlined
def hash_bytes(buf, p, end, seed):
    """Keyed hash of buf[p:end]. The last word says how many bytes it has, so zero bytes at the end count too."""
    h = seed
    while end - p >= 8:
        h = mix(h, fixed64(buf, p))
        p += 8
    tail = uint64(end - p + 1) << uint64(56)
    for i in range(end - p):
        tail |= uint64(buf[uint64(p + i)]) << uint64(8 * i)
    return mix(h, tail)


@inlined
def hash_long(buf, p, end, seed):
    """`hash_bytes` in two strands, whose multiplications need not wait for each other: another hash, sooner done."""
    h = seed
    g = mix(seed, uint64(MULTIPLIER_2))
    while end - p >= 16:
        h = mix(h, fixed64(buf, p))
        g = mix(g, fixed64(buf, p + 8))
        p += 16
    return hash_bytes(buf, p, end, mix(h, g))


@inlined
def has_digit(x):
    """Whether one of the 8 bytes of `x` is an ASCII digit."""
    x ^= uint64(0x3030303030303030)  # a digit is now 0 to 9
    beyond = ((x & uint64(0x7F7F7F7F7F7F7F7F)) + uint64(0x7676767676767676)) | x
    return (beyond & uint64(0x8080808080808080)) != uint64(0x8080808080808080)


@inlined
def find_digit(buf, p, end):
    """Where the next digit in buf[p:end] stands; `end` when there is none."""
    while end - p >= 8 and not has_digit(fixed64(buf, p)):
        p += 8
    while p < end and (buf[uint64(p)] < 48 or buf[uint64(p)] > 57):
        p += 1
    return p


@inlined
def hash_masked(buf, p, end, seed, classes):
    """Keyed hash of the text buf[p:end] in which every word that holds a digit counts as the same variable.

    What stands between two variables is hashed as a whole, with its length."""
    h = seed
    while True:
        digit = find_digit(buf, p, end)
        if digit == end:
            return hash_bytes(buf, p, end, h)
        word = digit
        while word > p and classes[buf[uint64(word - 1)]] != 0:
            word -= 1
        h = mix(hash_bytes(buf, p, word, h), uint64(1))
        p = digit + 1
        while p < end and classes[buf[uint64(p)]] != 0:
            p += 1


@inlined
def hex_digit(byte):
    """Value of a hexadecimal digit, -1 for any other byte."""
    if 48 <= byte <= 57:
        return int64(byte) - 48
    if 97 <= byte <= 102:
        return int64(byte) - 87
    if 65 <= byte <= 70:
        return int64(byte) - 55
    return int64(-1)


@inlined
def hex64(buf, p):
    """(value, ok) of 16 hexadecimal digits at p; the caller has checked that they are there."""
    value = uint64(0)
    for i in range(16):
        digit = hex_digit(buf[uint64(p + i)])
        if digit < 0:
            return uint64(0), False
        value = (value << uint64(4)) | uint64(digit)
    return value, True


@kernel
def hash_one(buf, seed):
    """Keyed hash of a whole array: for Python, to know a key's hash."""
    return hash_bytes(buf, 0, buf.size, seed)
