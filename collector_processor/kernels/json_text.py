"""The strings of JSON, which are text, bytes or ids: where one ends, and its content as protobuf holds it.

How it works. Reads are checked against the end of the text; whoever calls has made room in `out`, where no content is
longer than it was in JSON. `_nrt=False` as in `json.py`.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint8, uint64

from collector_processor.kernels.jit import helper, inlined
from collector_processor.kernels.wire import fixed64, hex_digit

HEX_DIGITS = np.full(256, 255, np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    HEX_DIGITS[_digit] = HEX_DIGITS[ord(chr(_digit).upper())] = _value

ONES = 0x0101010101010101
HIGHS = 0x8080808080808080


@inlined
def byte_at(buf, p):
    """The byte at p, 0 beyond the end: a byte that no rule below accepts."""
    if p < buf.size:
        return buf[uint64(p)]
    return uint8(0)


@inlined
def write_fixed(out, o, value, width):
    """Writes the low `width` bytes of the uint64 `value`, little-endian."""
    for i in range(width):
        out[uint64(o + i)] = uint8((value >> uint64(8 * i)) & uint64(255))
    return o + width


@inlined
def string_end(buf, p):
    """Position of the first quote, backslash or control character from p on; the size of `buf` when there is none."""
    end = buf.size
    while end - p >= 8:
        x = fixed64(buf, p)
        quote = x ^ uint64(ONES * 0x22)
        slash = x ^ uint64(ONES * 0x5C)
        hit = ((quote - uint64(ONES)) & ~quote) | ((slash - uint64(ONES)) & ~slash) | ((x - uint64(ONES * 0x20)) & ~x)
        hit &= uint64(HIGHS)
        if hit != uint64(0):
            below = ((hit & (~hit + uint64(1))) - uint64(1)) & uint64(ONES)  # a one for each byte up to the first hit
            return p + int64((below * uint64(ONES)) >> uint64(56)) - 1
        p += 8
    while p < end:
        c = buf[uint64(p)]
        if c == 0x22 or c == 0x5C or c < 0x20:
            break
        p += 1
    return p


@inlined
def copy(buf, p, out, o, n):
    """Copies buf[p:p + n] to out[o:]; may write up to seven bytes more, which the caller has room for."""
    i = 0
    while i < n and p + i + 8 <= buf.size:
        write_fixed(out, o + i, fixed64(buf, p + i), 8)
        i += 8
    while i < n:
        out[uint64(o + i)] = buf[uint64(p + i)]
        i += 1


@inlined
def quoted_end(buf, p):
    """Position of the closing quote of the string whose inside starts at p; below zero: -1 - the fault's position."""
    while True:
        p = string_end(buf, p)
        c = byte_at(buf, p)
        if c == 0x22:
            return p
        if c != 0x5C or p + 1 >= buf.size:
            return -1 - p
        p += 2


@inlined
def hex4(buf, p):
    """Value of the four hexadecimal digits at p, -1 when there are none."""
    value = int64(0)
    for i in range(4):
        digit = hex_digit(byte_at(buf, p + i))
        if digit < 0:
            return int64(-1)
        value = value * 16 + digit
    return value


@helper
def unescape(buf, p, end, out, o):
    """Writes the string inside buf[p:end], which holds escapes, as UTF-8; a lone surrogate becomes U+FFFD.

    Returns the new end, or -1 - the position of a bad escape.
    """
    while p < end:
        c = buf[uint64(p)]
        if c != 0x5C:
            out[uint64(o)] = c
            o += 1
            p += 1
            continue
        c = byte_at(buf, p + 1)
        code = int64(c)
        if c == 0x75:  # u
            code = hex4(buf, p + 2)
            if code < 0 or p + 6 > end:
                return -1 - p
            p += 4
            if 0xD800 <= code < 0xE000:
                low = int64(-1)
                if code < 0xDC00 and byte_at(buf, p + 2) == 0x5C and byte_at(buf, p + 3) == 0x75 and p + 8 <= end:
                    low = hex4(buf, p + 4)
                if 0xDC00 <= low < 0xE000:
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                    p += 6
                else:
                    code = 0xFFFD
        elif c == 0x6E:  # n
            code = 10
        elif c == 0x74:  # t
            code = 9
        elif c == 0x72:  # r
            code = 13
        elif c == 0x62:  # b
            code = 8
        elif c == 0x66:  # f
            code = 12
        elif c != 0x22 and c != 0x5C and c != 0x2F:
            return -1 - p
        p += 2
        o = write_utf8(out, o, code)
    return o


@inlined
def write_utf8(out, o, code):
    """Writes the code point `code`; returns the position after it."""
    if code < 0x80:
        out[uint64(o)] = uint8(code)
        return o + 1
    if code < 0x800:
        out[uint64(o)] = uint8(0xC0 | (code >> 6))
        out[uint64(o + 1)] = uint8(0x80 | (code & 0x3F))
        return o + 2
    if code < 0x10000:
        out[uint64(o)] = uint8(0xE0 | (code >> 12))
        out[uint64(o + 1)] = uint8(0x80 | ((code >> 6) & 0x3F))
        out[uint64(o + 2)] = uint8(0x80 | (code & 0x3F))
        return o + 3
    out[uint64(o)] = uint8(0xF0 | (code >> 18))
    out[uint64(o + 1)] = uint8(0x80 | ((code >> 12) & 0x3F))
    out[uint64(o + 2)] = uint8(0x80 | ((code >> 6) & 0x3F))
    out[uint64(o + 3)] = uint8(0x80 | (code & 0x3F))
    return o + 4


@inlined
def base64_digit(c):
    """Value of a base64 digit of either alphabet, -1 for any other byte."""
    if 65 <= c <= 90:
        return int64(c) - 65
    if 97 <= c <= 122:
        return int64(c) - 71
    if 48 <= c <= 57:
        return int64(c) + 4
    if c == 43 or c == 45:
        return int64(62)
    if c == 47 or c == 95:
        return int64(63)
    return int64(-1)


@helper
def write_base64(buf, p, end, out, o):
    """Writes what the base64 text buf[p:end] encodes, padding optional. Returns the new end, -1 when it is none."""
    while end > p and buf[uint64(end - 1)] == 61:
        end -= 1
    if (end - p) % 4 == 1:
        return int64(-1)
    bits = int64(0)
    held = 0
    while p < end:
        digit = base64_digit(buf[uint64(p)])
        if digit < 0:
            return int64(-1)
        bits = ((bits << 6) | digit) & 0xFFFF
        held += 6
        if held >= 8:
            held -= 8
            out[uint64(o)] = uint8((bits >> held) & 255)
            o += 1
        p += 1
    return o


@inlined
def write_id(buf, p, end, out, o):
    """Writes the bytes of the hexadecimal id buf[p:end]; returns the new end.

    An id in base64 with padding, as protobuf's own JSON mapping has it, is read too; anything else becomes one byte,
    which no reader takes for an id, so that one bad span does not cost the request.
    """
    n = end - p
    if (n == 24 or n == 12) and buf[uint64(end - 1)] == 61:
        done = write_base64(buf, p, end, out, o)
        if done - o == (16 if n == 24 else 8):
            return done
    wrong = uint8(0)
    for i in range(n // 2):
        high = HEX_DIGITS[buf[uint64(p + 2 * i)]]
        low = HEX_DIGITS[buf[uint64(p + 2 * i + 1)]]
        wrong |= high | low
        out[uint64(o + i)] = (high << uint8(4)) | low
    if n % 2 == 0 and wrong < 128:
        return o + n // 2
    out[uint64(o)] = uint8(255)
    return o + 1
