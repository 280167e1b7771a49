"""Card numbers in bytes, and a request with its texts masked in place.

How it works. A card number is 13 to 19 digits, in groups that blanks, dashes and the like may part, whose last digit
checks the others (Luhn, ISO/IEC 7812-1 annex B). A group is a whole run of digits, so a card number is never found
inside a longer number, which would be by chance. `mask` walks a request by a small table of which field holds what, and
so alters texts and numbers of attributes only: ids and times are never read. What it hides it overwrites with as many
bytes, so that no length in the request changes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import int64, uint64

from collector_processor.kernels.jit import helper, inlined, kernel
from collector_processor.kernels.wire import chunk, fixed64, skip, varint

DIGITS_MIN, DIGITS_MAX = 13, 19
STAR = ord("*")
SEPARATORS_MAX = 3  # between two groups

# What a field is: nothing of interest, a text, or a message of the kind of that number.
OTHER, TEXT = 0, 1
REQUEST, OF_RESOURCE, RESOURCE, OF_SCOPE, SCOPE, SPAN, EVENT, LINK, STATUS, LOG = range(2, 12)
KEY_VALUE, ANY, ARRAY, LIST = range(12, 16)
_FIELDS = {
    REQUEST: {1: OF_RESOURCE},
    OF_RESOURCE: {1: RESOURCE, 2: OF_SCOPE},
    RESOURCE: {1: KEY_VALUE},
    OF_SCOPE: {1: SCOPE, 2: SPAN},
    SCOPE: {1: TEXT, 2: TEXT, 3: KEY_VALUE},
    SPAN: {3: TEXT, 5: TEXT, 9: KEY_VALUE, 11: EVENT, 13: LINK, 15: STATUS},
    EVENT: {2: TEXT, 3: KEY_VALUE},
    LINK: {3: TEXT, 4: KEY_VALUE},
    STATUS: {2: TEXT},
    LOG: {3: TEXT, 5: ANY, 6: KEY_VALUE, 12: TEXT},
    KEY_VALUE: {1: TEXT, 2: ANY},
    ANY: {1: TEXT, 5: ARRAY, 6: LIST},
    ARRAY: {1: ANY},
    LIST: {1: KEY_VALUE},
}


def _table(of_scope: int) -> npt.NDArray[np.int64]:
    out = np.zeros((16, 16), np.int64)
    for kind, fields in _FIELDS.items():
        for field, what in fields.items():
            out[kind, field] = what
    out[OF_SCOPE, 2] = of_scope
    return out


SPANS_TABLE, LOGS_TABLE = _table(SPAN), _table(LOG)
DEPTH = 256


@inlined
def separator(buf, p, end):
    """Bytes of the separator that stands at p, 0 when none does."""
    c = buf[uint64(p)]
    if c == 32 or c == 45 or c == 46 or c == 95 or c == 47 or c == 43:  # blank - . _ / +
        return 1
    if c == 37 and p + 3 <= end and buf[uint64(p + 1)] == 50:  # %20 and %2D of URLs
        last = buf[uint64(p + 2)] | 32
        return 3 if last == 48 or last == 100 else 0
    if c == 0xC2 and p + 2 <= end and buf[uint64(p + 1)] == 0xA0:  # no-break space
        return 2
    if c == 0xE2 and p + 3 <= end and (buf[uint64(p + 1)] == 0x80 or buf[uint64(p + 1)] == 0x88):  # blanks, dashes
        return 3
    return 0


@inlined
def is_issued(first, digits):
    """Whether a card number may begin so: 1 is of airlines and old JCB cards only, which have 15 digits."""
    return first > 1 or (first == 1 and digits == 15)


@helper
def card_from(buf, p, end):
    """End of the longest card number whose first digit stands at p, where a group begins; -1 for none."""
    first = int64(buf[uint64(p)]) - 48
    even = int64(0)  # sum with the digits of even index doubled, the index counted from 0 at p; `odd` the others
    odd = int64(0)
    digits = 0
    found = int64(-1)
    while True:
        while p < end and 48 <= buf[uint64(p)] <= 57:
            digit = int64(buf[uint64(p)]) - 48
            twice = 2 * digit - (9 if digit > 4 else 0)
            even += digit if digits & 1 else twice
            odd += twice if digits & 1 else digit
            digits += 1
            p += 1
            if digits > DIGITS_MAX:
                return found
        if digits >= DIGITS_MIN and (odd if digits & 1 else even) % 10 == 0 and is_issued(first, digits):
            found = p
        for _ in range(SEPARATORS_MAX):
            if p >= end:
                return found
            size = separator(buf, p, end)
            if size == 0:
                break
            p += size
        if p >= end or not 48 <= buf[uint64(p)] <= 57:
            return found


@kernel
def find_card(buf, p, end):
    """(start, end) of the first card number in the text buf[p:end]; start -1 when there is none."""
    while p < end:
        if not 48 <= buf[uint64(p)] <= 57:
            p += 1
            continue
        found = card_from(buf, p, end)
        if found >= 0:
            return int64(p), found
        while p < end and 48 <= buf[uint64(p)] <= 57:
            p += 1
    return int64(-1), int64(-1)


@inlined
def is_card(value):
    """Whether an integer, uint64, is a card number."""
    if value < uint64(10**12):
        return False
    rest = value
    digits = 0
    even = uint64(0)
    odd = uint64(0)
    digit = uint64(0)
    while rest > uint64(0):
        digit = rest % uint64(10)
        twice = uint64(2) * digit - (uint64(9) if digit > uint64(4) else uint64(0))
        even += digit if digits & 1 else twice
        odd += twice if digits & 1 else digit
        rest //= uint64(10)
        digits += 1
    return digits <= DIGITS_MAX and odd % uint64(10) == uint64(0) and is_issued(int64(digit), digits)


@inlined
def is_card_number(bits):
    """Whether a double, given as its bits, is a card number."""
    exponent = int64(bits >> uint64(52)) - 1023  # of a negative number it is too large
    if exponent < 39 or exponent > 63:
        return False
    mantissa = (bits & uint64(0xFFFFFFFFFFFFF)) | uint64(1 << 52)
    if exponent >= 52:
        return is_card(mantissa << uint64(exponent - 52))
    shift = uint64(52 - exponent)
    whole = mantissa >> shift
    return whole << shift == mantissa and is_card(whole)


@inlined
def has_stars(buf, p, end):
    """Whether the text buf[p:end] holds as many stars as `mask` leaves of a card number at least."""
    stars = 0
    for i in range(p, end):
        stars += buf[uint64(i)] == STAR
    return stars >= DIGITS_MIN


@inlined
def cover(buf, p, end):
    """Overwrites buf[p:end] with stars. Returns 1, or 0 when it is empty."""
    for i in range(p, end):
        buf[uint64(i)] = STAR
    return int64(end > p)


@helper
def cover_cards(buf, p, end):
    """Overwrites the digits of every card number in the text buf[p:end]. Returns how many there were."""
    n = 0
    while end - p >= DIGITS_MIN:
        start, p = find_card(buf, p, end)
        if start < 0:
            break
        for i in range(start, p):
            if 48 <= buf[uint64(i)] <= 57:
                buf[uint64(i)] = STAR
        n += 1
    return n


@kernel
def name_hash(buf, p, end):
    """Hash of an attribute's name, whichever case it is written in, and with `-` or `_` (FNV-1a)."""
    h = uint64(0xCBF29CE484222325)
    for i in range(p, end):
        c = uint64(buf[uint64(i)])
        if 65 <= c <= 90:
            c |= uint64(32)
        elif c == 45:
            c = uint64(95)
        h = (h ^ c) * uint64(0x100000001B3)
    return h


@helper
def has_name(buf, p, end, names):
    """Whether the KeyValue buf[p:end] has one of `names`, uint64[n] of `name_hash`, or ends in one behind a dot."""
    while p < end:
        tag, p = varint(buf, p, end)
        if p < 0:
            return False
        if tag == 10:
            p, b = chunk(buf, p, end)
            if b < 0:
                return False
            last = b
            while last > p and buf[uint64(last - 1)] != 46:
                last -= 1
            whole, part = name_hash(buf, p, b), name_hash(buf, last, b)
            for i in range(names.size):
                if names[i] == whole or names[i] == part:
                    return True
            p = b
            continue
        p = skip(buf, p, end, int64(tag & uint64(7)))
        if p < 0:
            return False
    return False


@inlined
def place_of_hint(four):
    """Where four bytes stand in the table of hints, of 4096."""
    return ((four * uint64(0x9E3779B1)) & uint64(0xFFFFFFFF)) >> uint64(20)


@helper
def has_hint(buf, p, end, table, hints):
    """Whether any four characters in a row, quotes and blanks left out and in lower case, are one of `hints` uint64[n]
    (big-endian), or an `@` stands behind `://`. table uint8[4096]: at which `place_of_hint` there is a hint."""
    four = uint64(0)
    is_url = False
    for i in range(p, end):
        c = uint64(buf[uint64(i)])
        if c == 32 or c == 34 or c == 39 or c == 92:
            continue
        if 65 <= c <= 90:
            c |= uint64(32)
        four = ((four << uint64(8)) | c) & uint64(0xFFFFFFFF)
        is_url |= four & uint64(0xFFFFFF) == uint64(0x3A2F2F)
        if is_url and c == 64:
            return True
        if table[place_of_hint(four)]:
            for k in range(hints.size):
                if hints[k] == four:
                    return True
    return False


@inlined
def cover_varint(buf, p, end):
    """Makes the varint buf[p:end] a zero of the same length: protobuf reads it as 0, and `read_cells` knows it."""
    for i in range(p, end - 1):
        buf[uint64(i)] = 0x80
    buf[uint64(end - 1)] = 0
    return int64(1)


@inlined
def cover_double(buf, p):
    """Makes the double at p a NaN."""
    for i in range(6):
        buf[uint64(p + i)] = 0
    buf[uint64(p + 6)] = 0xF8
    buf[uint64(p + 7)] = 0x7F
    return int64(1)


@kernel
def mask(buf, table, names, cards, hint_table, hints, flagged, stack):
    """Masks an export request in place: the values of attributes that have one of `names` (uint64[n], `name_hash`), and
    with `cards` the card numbers in every text and number of an attribute or a body.

    table: SPANS_TABLE or LOGS_TABLE. flagged int64[k, 2]: start and end of the texts in which a secret may stand
    (hint_table, hints: as in `has_hint`). stack int64[DEPTH, 3]. Returns (values masked, texts flagged); more flagged
    than there is room for are counted only; (-1, 0) when the request is not well-formed."""
    depth = 0
    stack[0, 0], stack[0, 1], stack[0, 2] = REQUEST, buf.size, 0
    p = int64(0)
    masked = int64(0)
    n = 0
    while depth >= 0:
        kind, end, hidden = stack[depth, 0], stack[depth, 1], stack[depth, 2] != 0
        if p >= end:
            depth -= 1
            continue
        tag, p = varint(buf, p, end)
        if p < 0:
            return int64(-1), 0
        wire = int64(tag & uint64(7))
        field = int64(tag >> uint64(3)) if tag < 128 else int64(0)
        if wire == 2:
            what = table[kind, field]
            a, p = chunk(buf, p, end)
            if p < 0:
                return int64(-1), 0
            if what > TEXT and depth + 1 < stack.shape[0]:
                depth += 1
                hidden = hidden or (what == KEY_VALUE and has_name(buf, a, p, names))
                stack[depth, 0], stack[depth, 1], stack[depth, 2] = what, p, hidden
                p = a
            elif hidden and kind == ANY:
                masked += cover(buf, a, p)
            elif what == TEXT:
                if cards:
                    masked += cover_cards(buf, a, p)
                if has_hint(buf, a, p, hint_table, hints):
                    if n < flagged.shape[0]:
                        flagged[n, 0], flagged[n, 1] = a, p
                    n += 1
            continue
        start = p
        p = skip(buf, p, end, wire)
        if p < 0:
            return int64(-1), 0
        if kind == ANY and wire == 0 and field == 3:
            value, _ = varint(buf, start, p)
            if hidden or (cards and is_card(value)):
                masked += cover_varint(buf, start, p)
        elif kind == ANY and wire == 1 and field == 4:
            if hidden or (cards and is_card_number(fixed64(buf, start))):
                masked += cover_double(buf, start)
    return masked, n
