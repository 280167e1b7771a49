"""OTLP JSON (https://opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding") -> OTLP protobuf bytes, one pass.

How it works. `transcode` walks the JSON text once with an explicit stack of open objects and arrays and writes protobuf
as it goes; what a key means is looked up in tables that `decode/otlp_json.py` makes from the official descriptors.
A message's length is not known when it opens: one byte is left for it, and on closing the content moves up when the
length needs more (deep inside, five bytes are left and padded, so that hostile nesting costs no quadratic time).
Every read is checked against the end of the text and every write against the end of `out`. Nothing raises: a negative
status says what was expected at which byte, and the caller takes an exact, slow path or reports it. Strings are read in
`json_text.py`, numbers in `json_numbers.py`.

`_nrt=False`: no kernel here makes an array, and numba's counting of references to the arrays that pass through the
helpers took three quarters of the time.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint8, uint64

from collector_processor.kernels.jit import helper, inlined, kernel
from collector_processor.kernels.json_numbers import read_double, read_integer
from collector_processor.kernels.json_text import (
    byte_at,
    copy,
    quoted_end,
    string_end,
    unescape,
    write_base64,
    write_fixed,
    write_id,
)
from collector_processor.kernels.wire import MULTIPLIER, finish, fixed64, mix

# What a field holds.
STRING, HEX, BASE64, INT, UINT, BOOL, ENUM, DOUBLE, FIXED64, SFIXED64, FIXED32, SINT, MESSAGE = range(1, 14)

# Columns of `fields`.
TAG, KIND, CHILD, REPEATED = range(4)

# Columns of the stack.
FRAME, FIELD, START, STATE = range(4)
OBJECT, ARRAY = 0, 1
UNKNOWN = -1  # the message type, or the field, of what is skipped
FRESH, AFTER_VALUE, AFTER_COMMA = range(3)

PADDED_FROM = 24  # depth from which lengths are padded
PAD = 5
ROOM = 32  # bytes that any scalar with its tag fits into

# Status below zero; the text of each is in `decode/otlp_json.py`.
FULL, DEEP, WANT_OBJECT, WANT_ARRAY, WANT_KEY, WANT_COLON, WANT_COMMA, WANT_STRING, WANT_INTEGER = range(-1, -10, -1)
WANT_NUMBER, WANT_BOOL, WANT_VALUE, BAD_ESCAPE, BAD_CONTROL, BAD_BASE64, TRAILING, TWO_SIGNALS = range(-10, -18, -1)

TRUE = np.frombuffer(b"true", np.uint8).copy()
FALSE = np.frombuffer(b"false", np.uint8).copy()
NULL = np.frombuffer(b"null", np.uint8).copy()
NAN = np.frombuffer(b'"NaN"', np.uint8).copy()
INFINITY = np.frombuffer(b'"Infinity"', np.uint8).copy()
MINUS_INFINITY = np.frombuffer(b'"-Infinity"', np.uint8).copy()


@inlined
def blank(buf, p):
    """Position of the next byte that is no white space."""
    while p < buf.size:
        c = buf[uint64(p)]
        if c > 32 or not (c == 32 or c == 10 or c == 13 or c == 9):
            break
        p += 1
    return p


@inlined
def write_varint(out, o, value):
    """Writes the uint64 `value`; returns the position after it."""
    while value >= uint64(128):
        out[uint64(o)] = uint8((value & uint64(127)) | uint64(128))
        value >>= uint64(7)
        o += 1
    out[uint64(o)] = uint8(value)
    return o + 1


@inlined
def varint_size(value):
    """Bytes that the varint of a non-negative int64 takes."""
    size = 1
    while value >= 128:
        value >>= 7
        size += 1
    return size


@inlined
def same(buf, p, text):
    """Whether the bytes `text` stand at p."""
    if p + text.size > buf.size:
        return False
    for i in range(text.size):
        if buf[uint64(p + i)] != text[i]:
            return False
    return True


@inlined
def hash_name(buf, a, b, scope):
    """Hash of the name buf[a:b] in `scope`.

    The tables are fixed and small, and a name that collided would only be read as another field of its sender's own, so
    hashes alone are compared. The scope is mixed in by itself: xored with the name's first bytes it would cancel them.
    """
    h = mix(mix(uint64(MULTIPLIER), uint64(scope + 1)), uint64(b - a))
    while b - a >= 8:
        h = mix(h, fixed64(buf, a))
        a += 8
    tail = uint64(0)
    if b > a:
        if a + 8 <= buf.size:
            tail = fixed64(buf, a) & (uint64(0xFFFFFFFFFFFFFFFF) >> uint64(64 - 8 * (b - a)))
        else:
            for i in range(b - a):
                tail |= uint64(buf[uint64(a + i)]) << uint64(8 * i)
    return finish(mix(h, tail))


@inlined
def look_up(buf, a, b, scope, slots, targets):
    """What the name buf[a:b] means in `scope`, -1 when it is not known there."""
    h = hash_name(buf, a, b, scope)
    mask = uint64(slots.size - 1)
    i = h & mask
    while slots[i] != h:
        if slots[i] == uint64(0):
            return int64(-1)
        i = (i + uint64(1)) & mask
    return int64(targets[i])


@kernel
def name_hash(name, scope):
    """The hash that `look_up` looks for: for Python, to fill the table."""
    return hash_name(name, 0, name.size, scope)


@inlined
def settle(out, o, room, done):
    """Puts the length of out[o + room:done] before it, where `room` bytes were left for it. Returns the new end."""
    n = done - o - room
    size = varint_size(n)
    if size < room:
        for i in range(n):
            out[uint64(o + size + i)] = out[uint64(o + room + i)]
    write_varint(out, o, uint64(n))
    return o + size + n


@inlined
def write_string(buf, p, out, o):
    """Writes length and UTF-8 of the string whose inside starts at p. Returns (position after the quote, new end)."""
    e = string_end(buf, p)
    if byte_at(buf, e) == 0x5C:
        e = quoted_end(buf, e)
        if e >= 0:
            if o + e - p + ROOM > out.size:
                return -1 - p, int64(FULL)
            room = varint_size(e - p)
            done = unescape(buf, p, e, out, o + room)
            if done < 0:
                return done, int64(BAD_ESCAPE)
            return e + 1, settle(out, o, room, done)
    elif byte_at(buf, e) == 0x22:
        n = e - p
        if o + n + ROOM > out.size:
            return -1 - p, int64(FULL)
        o = write_varint(out, o, uint64(n))
        copy(buf, p, out, o, n)
        return e + 1, o + n
    else:
        e = -1 - e
    return e, int64(BAD_CONTROL)


@kernel
def write_bytes(buf, p, out, o, kind):
    """Writes length and bytes of the HEX or BASE64 string whose inside starts at p. Returns as `write_string` does."""
    e = string_end(buf, p)
    if byte_at(buf, e) != 0x22:
        return -1 - e, int64(BAD_ESCAPE)
    if o + e - p + ROOM > out.size:
        return -1 - p, int64(FULL)
    room = varint_size(e - p)
    done = write_id(buf, p, e, out, o + room) if kind == HEX else write_base64(buf, p, e, out, o + room)
    if done < 0:
        return -1 - p, int64(BAD_BASE64)
    return e + 1, settle(out, o, room, done)


@helper
def write_integer(buf, p, out, o, kind, tag, bits):
    """Writes tag and value of the integer at p, plain or in quotes. Returns (position after it, new end)."""
    first = p
    quoted = byte_at(buf, p) == 0x22
    if quoted:
        p += 1
    value, negative, p = read_integer(buf, p)
    if p < 0 or (quoted and byte_at(buf, p) != 0x22):
        return -1 - first, int64(WANT_INTEGER)
    if quoted:
        p += 1
    signed = kind == INT or kind == SFIXED64 or kind == SINT or kind == ENUM
    limit = (uint64(1) << uint64(bits - 1)) - uint64(0 if negative else 1)
    if not signed:
        limit = uint64(0xFFFFFFFFFFFFFFFF) >> uint64(64 - bits)
    if value > limit or (negative and not signed and value > uint64(0)):
        return -1 - first, int64(WANT_INTEGER)
    negative &= value > uint64(0)
    if negative:
        value = ~value + uint64(1)
    o = write_varint(out, o, uint64(tag))
    if kind == FIXED64 or kind == SFIXED64:
        return p, write_fixed(out, o, value, 8)
    if kind == FIXED32:
        return p, write_fixed(out, o, value, 4)
    if kind == SINT:
        value = (value << uint64(1)) ^ (uint64(0xFFFFFFFFFFFFFFFF) if negative else uint64(0))
    return p, write_varint(out, o, value)


@helper
def write_double(buf, p, out, o, tag, powers):
    """Writes tag and value of the number at p, plain or in quotes, or NaN or an infinity in quotes."""
    first = p
    if same(buf, p, NAN):
        p += NAN.size
        bits = uint64(0x7FF8000000000000)
    elif same(buf, p, INFINITY):
        p += INFINITY.size
        bits = uint64(0x7FF0000000000000)
    elif same(buf, p, MINUS_INFINITY):
        p += MINUS_INFINITY.size
        bits = uint64(0xFFF0000000000000)
    else:
        quoted = byte_at(buf, p) == 0x22
        bits, p = read_double(buf, p + 1 if quoted else p, powers)
        if p < 0 or (quoted and byte_at(buf, p) != 0x22):
            return -1 - first, int64(WANT_NUMBER)
        if quoted:
            p += 1
    o = write_varint(out, o, uint64(tag))
    return p, write_fixed(out, o, bits, 8)


@inlined
def write_scalar(buf, p, out, o, fields, field, slots, targets, powers):
    """Writes the value at p of `field`, tag and all. Returns (position after it, new end); a
    position below zero is -1 - the position of the fault, with its status in place of the end."""
    kind = fields[field, KIND]
    tag = fields[field, TAG]
    if o + ROOM > out.size:
        return -1 - p, int64(FULL)
    if kind <= BASE64:
        if byte_at(buf, p) != 0x22:
            return -1 - p, int64(WANT_STRING)
        o = write_varint(out, o, uint64(tag))
        if kind == STRING:
            return write_string(buf, p + 1, out, o)
        return write_bytes(buf, p + 1, out, o, kind)
    if kind == DOUBLE:
        return write_double(buf, p, out, o, tag, powers)
    if kind == BOOL:
        true = same(buf, p, TRUE)
        if not true and not same(buf, p, FALSE):
            return -1 - p, int64(WANT_BOOL)
        o = write_varint(out, o, uint64(tag))
        out[uint64(o)] = uint8(true)
        return p + (4 if true else 5), o + 1
    if kind == ENUM and byte_at(buf, p) == 0x22 and byte_at(buf, p + 1) >= 65:
        e = string_end(buf, p + 1)
        if byte_at(buf, e) != 0x22:
            return -1 - e, int64(BAD_ESCAPE)
        value = look_up(buf, p + 1, e, fields[field, CHILD], slots, targets)
        if value >= 0:  # a name that is not known is ignored, like an unknown field
            o = write_varint(out, o, uint64(tag))
            o = write_varint(out, o, uint64(value))
        return e + 1, o
    return write_integer(buf, p, out, o, kind, tag, 32 if kind == ENUM else fields[field, CHILD])


@helper
def skip_scalar(buf, p):
    """Position after the string, number or literal at p that nobody reads; below zero: -1 - the fault's position."""
    c = byte_at(buf, p)
    if c == 0x22:
        e = quoted_end(buf, p + 1)
        return e + 1 if e >= 0 else e
    if same(buf, p, TRUE) or same(buf, p, NULL):
        return p + 4
    if same(buf, p, FALSE):
        return p + 5
    first = p
    while 48 <= c <= 57 or c == 43 or c == 45 or c == 46 or c == 101 or c == 69:
        p += 1
        c = byte_at(buf, p)
    return p if p > first else -1 - p


@inlined
def read_key(buf, p, scope, slots, targets):
    """(position of the value, field or UNKNOWN) of the member at p; faults as in `write_scalar`."""
    if byte_at(buf, p) != 0x22:
        return -1 - p, int64(WANT_KEY)
    e = string_end(buf, p + 1)
    field = int64(UNKNOWN)
    if byte_at(buf, e) != 0x22:  # an escape; no key that we know holds one that is needed
        e = quoted_end(buf, e)
        if e < 0:
            return e, int64(BAD_CONTROL)
    elif scope != UNKNOWN:
        field = look_up(buf, p + 1, e, scope, slots, targets)
    p = blank(buf, e + 1)
    if byte_at(buf, p) != 0x3A:
        return -1 - p, int64(WANT_COLON)
    return blank(buf, p + 1), field


@inlined
def close(out, o, start, depth):
    """Puts the length of out[start:o], the message closed at `depth`, before it. Returns the new end, -1 when full."""
    n = o - start
    if depth >= PADDED_FROM:
        for i in range(PAD - 1):
            out[uint64(start - PAD + i)] = uint8(((n >> (7 * i)) & 127) | 128)
        out[uint64(start - 1)] = uint8((n >> (7 * (PAD - 1))) & 127)
        return o
    more = varint_size(n) - 1
    if more > 0:
        if o + more + 8 > out.size:
            return int64(-1)
        q = o
        while q - start >= 8:  # from the end, eight bytes at a time: what is overwritten has been read
            q -= 8
            write_fixed(out, q + more, fixed64(out, q), 8)
        while q > start:
            q -= 1
            out[uint64(q + more)] = out[uint64(q)]
    write_varint(out, start - 1, uint64(n))
    return o + more


@inlined
def push(stack, depth, frame, field, start):
    """Opens a frame at `depth`."""
    stack[depth, FRAME] = frame
    stack[depth, FIELD] = field
    stack[depth, START] = start
    stack[depth, STATE] = FRESH


@inlined
def value(buf, p, out, o, field, in_object, depth, fields, slots, targets, powers, stack):
    """The value of `field` at p: scalars are written, objects and arrays opened. Returns (position, new end, depth);
    faults as in `write_scalar`."""
    c = byte_at(buf, p)
    opens_array = c == 0x5B
    if field >= 0 and in_object and fields[field, REPEATED]:
        if not opens_array:
            return -1 - p, int64(WANT_ARRAY), depth
    elif field >= 0 and fields[field, KIND] != MESSAGE:
        p, o = write_scalar(buf, p, out, o, fields, field, slots, targets, powers)
        return p, o, depth
    elif field >= 0 and c != 0x7B:
        return -1 - p, int64(WANT_OBJECT), depth
    elif c != 0x7B and not opens_array:
        p = skip_scalar(buf, p)
        return p, int64(WANT_VALUE) if p < 0 else o, depth
    if depth >= stack.shape[0]:
        return -1 - p, int64(DEEP), depth
    if opens_array:
        push(stack, depth, ARRAY, field, 0)
    elif field < 0:
        push(stack, depth, OBJECT, UNKNOWN, 0)
    else:
        if o + ROOM > out.size:
            return -1 - p, int64(FULL), depth
        o = write_varint(out, o, uint64(fields[field, TAG]))
        o += PAD if depth >= PADDED_FROM else 1
        push(stack, depth, OBJECT, fields[field, CHILD], o)
    return p + 1, o, depth + 1


@kernel
def transcode(buf, root, out, fields, slots, targets, powers, stack):
    """Writes the OTLP request of message type `root` that the JSON text `buf` holds into `out` as protobuf.

    buf, out: uint8. fields: int32[f, 4] (TAG, KIND, CHILD, REPEATED). slots: uint64[power of two], hashes of names, 0
    empty; targets: int32 beside them, the field or the value of an enum. powers: `POWERS`. stack: int64[depth, 4].
    Returns (bytes written, or a status below zero; position in `buf`; the member of `root` that was seen, or -1).
    """
    p = blank(buf, int64(0))
    o = int64(0)
    seen = int64(-1)
    if byte_at(buf, p) != 0x7B:
        return int64(WANT_OBJECT), p, seen
    push(stack, 0, OBJECT, root, 0)
    depth = 1
    p += 1
    while depth > 0:
        d = depth - 1
        p = blank(buf, p)
        c = byte_at(buf, p)
        in_object = stack[d, FRAME] == OBJECT
        state = stack[d, STATE]
        if state != AFTER_COMMA and c == (0x7D if in_object else 0x5D):
            p += 1
            if in_object and d > 0 and stack[d, FIELD] != UNKNOWN:
                o = close(out, o, stack[d, START], d)
                if o < 0:
                    return int64(FULL), p, seen
            depth = d
            if d > 0:
                stack[d - 1, STATE] = AFTER_VALUE
            continue
        if state == AFTER_VALUE:
            if c != 0x2C:
                return int64(WANT_COMMA), p, seen
            stack[d, STATE] = AFTER_COMMA
            p += 1
            continue
        field = stack[d, FIELD]
        if in_object:
            p, field = read_key(buf, p, field, slots, targets)
            if p < 0:
                return field, -1 - p, seen
            c = byte_at(buf, p)
            if d == 0 and field >= 0 and field != seen:
                if seen >= 0:
                    return int64(TWO_SIGNALS), p, seen
                seen = field
        stack[d, STATE] = AFTER_VALUE
        if c == 0x6E and same(buf, p, NULL):
            p += 4
            continue
        p, o, depth = value(buf, p, out, o, field, in_object, depth, fields, slots, targets, powers, stack)
        if p < 0:
            return o, -1 - p, seen
    p = blank(buf, p)
    if p < buf.size:
        return int64(TRAILING), p, seen
    return o, p, seen
