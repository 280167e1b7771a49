"""Looks through an OTLP export request before anybody parses it: counts what is in it and marks what is damaged.

How it works. One pass over the wire format, driven by a schema table (message type x field number -> what the field
is) that `decode/repair.py` makes from the official descriptors. An export request is resource groups > scope groups >
records; a *piece* is what stands directly in a group: a record, the resource, the scope, a schema URL. A piece that
protobuf would refuse, or a span without proper ids, becomes one row in `edits`; a group whose length runs over its
end becomes a row as well, since its length has to be written anew. Nothing is copied and nothing is allocated per
record. The walk stops as soon as a limit is exceeded, so a request made of millions of empty records costs its bytes
and nothing more.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.jit import allocating_kernel, expanded, helper, kernel
from collector_processor.kernels.wire import fixed64, varint

# What a field is, in the schema table. Values from FIRST_TYPE on are message types, numbered by the maker of the table.
UNKNOWN, STRING, BYTES, FIRST_TYPE = 0, 1, 2, 3
FIELDS = 32  # field numbers of the table; OTLP has none above except a deprecated 1000

# Why a piece has a row in `edits`.
SOUND, MALFORMED, TRUNCATED, INVALID_UTF8, TOO_DEEP, TRACE_ID, SPAN_ID, PARENT_ID, LOG_ID, LENGTH, OWN = range(11)

# Columns of `edits`: where the piece begins (its tag), where its content begins and ends, why, how deep it stands (0:
# in the request, 1: in a resource group, 2: in a scope group), its message type, records in it; then tag, content and
# end of the resource group and of the scope group around it.
START, BODY, STOP, REASON, LEVEL, TYPE, RECORDS, GROUP, SCOPE, COLUMNS = 0, 1, 2, 3, 4, 5, 6, 7, 10, 13

# Columns of `totals`.
SEEN, ELEMENTS, EDITS, REFUSED, TOTALS = 0, 1, 2, 3, 4
TOO_MANY_RECORDS, TOO_MANY_ELEMENTS = 1, 2

DEPTH_MAX = 100  # nested messages that protobuf accepts (upb, and the C++ and Go implementations)
RECORD_DEPTH = 3  # resource group, scope group, record


@expanded
def continuation(buf, p, low, high):
    """Whether the byte at p is a continuation byte between low and high."""
    return low <= buf[p] <= high


@kernel
def is_utf8(buf, p, end):
    """Whether buf[p:end] is UTF-8 as RFC 3629 defines it: no overlong form, no surrogate, nothing above U+10FFFF."""
    while p < end:
        if p + 8 <= buf.size:  # eight bytes at a time; those behind the end do not count
            high = fixed64(buf, p) & uint64(0x8080808080808080)
            if end - p < 8:
                high &= (uint64(1) << uint64(8 * (end - p))) - uint64(1)
            if high == 0:
                p += 8
                continue
        lead = buf[p]
        if lead < 0x80:
            p += 1
            continue
        if 0xC2 <= lead <= 0xDF:
            more, low, top = 1, 0x80, 0xBF
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            low = 0xA0 if lead == 0xE0 else 0x80
            top = 0x9F if lead == 0xED else 0xBF
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            low = 0x90 if lead == 0xF0 else 0x80
            top = 0x8F if lead == 0xF4 else 0xBF
        else:
            return False
        if end - p <= more or not continuation(buf, p + 1, low, top):
            return False
        for i in range(2, more + 1):
            if not continuation(buf, p + i, 0x80, 0xBF):
                return False
        p += more + 1
    return True


@expanded
def is_id(buf, p, end, size):
    """Whether buf[p:end] is an id: `size` bytes that are not all zero."""
    if end - p != size:
        return False
    some = uint64(0)
    for i in range(0, size, 8):
        some |= fixed64(buf, p + i)
    return some != 0


@expanded
def read_tag(buf, p, end):
    """(field number, wire type, next position); position -1 where no field can begin."""
    if p < end and 8 <= buf[p] < 128:
        return int64(buf[p] >> 3), int64(buf[p] & 7), p + 1
    tag, p = varint(buf, p, end)
    if p < 0 or tag < 8 or tag > 0xFFFFFFFF:
        return int64(0), int64(0), int64(-1)
    return int64(tag >> uint64(3)), int64(tag & uint64(7)), p


@expanded
def after_scalar(buf, p, end, wire):
    """Position after a varint or fixed field; -1 when it does not fit, or is a group or no wire type at all."""
    if wire == 0:
        _, p = varint(buf, p, end)
        return p
    if wire == 1:
        p += 8
    elif wire == 5:
        p += 4
    else:
        return int64(-1)
    return p if p <= end else int64(-1)


@expanded
def id_reason(buf, body, stop, field, is_span):
    """What is wrong with the id field of a span or a log, SOUND when nothing is or it is no id."""
    if is_span:
        if field == 1:
            return SOUND if is_id(buf, body, stop, 16) else TRACE_ID
        if field == 2:
            return SOUND if is_id(buf, body, stop, 8) else SPAN_ID
        if field == 4:
            return SOUND if stop - body == 8 or stop == body else PARENT_ID
        return SOUND
    if field == 9:
        return SOUND if stop - body == 16 or stop == body else LOG_ID
    if field == 10:
        return SOUND if stop - body == 8 or stop == body else LOG_ID
    return SOUND


@expanded
def is_ascii(buf, p, end):
    """Whether no byte of buf[p:end] is above 127."""
    high = uint64(0)
    while end - p >= 8:
        high |= fixed64(buf, p)
        p += 8
    while p < end:
        high |= uint64(buf[p])
        p += 1
    return high & uint64(0x8080808080808080) == 0


@expanded
def is_plain_pair(buf, p, end):
    """Whether buf[p:end] is a KeyValue as nearly all are: a key and then a text, all ASCII and shorter than 128 bytes.

    False says nothing. Such a pair is sound: each length in it is one byte, since no byte is above 127.
    """
    if end - p < 6 or buf[p] != 0x0A or not is_ascii(buf, p, end):
        return False
    value = p + 2 + int64(buf[p + 1])
    if value + 4 > end or buf[value] != 0x12 or value + 2 + int64(buf[value + 1]) != end:
        return False
    return buf[value + 2] == 0x0A and value + 4 + int64(buf[value + 3]) == end


@kernel
def piece(buf, p, end, kind, depth, schema, span_type, log_type, pair_type, kinds, ends):
    """(why the message of type `kind` in buf[p:end], `depth` messages deep, cannot stay as it is, messages inside it).

    The reason is SOUND when it can stay. kinds, ends: int64[DEPTH_MAX + 1], working space.
    """
    is_span, is_log = kind == span_type, kind == log_type
    top, elements, ids = 0, 0, 0
    later = SOUND  # a reason that does not end the search, since a worse one may follow
    while True:
        while p == end:
            if top == 0:
                if is_span and later == SOUND and ids != 3:
                    later = SPAN_ID if ids & 1 else TRACE_ID
                return later, elements
            top -= 1
            kind, end = kinds[top], ends[top]
        field, wire, p = read_tag(buf, p, end)
        if p < 0:
            return MALFORMED, elements
        if wire != 2:
            p = after_scalar(buf, p, end, wire)
            if p < 0:
                return MALFORMED, elements
            continue
        size, body = varint(buf, p, end)
        if body < 0 or size > uint64(end - body):
            return TRUNCATED, elements
        p = body + int64(size)
        what = schema[kind, field] if field < FIELDS else UNKNOWN
        if what == STRING:
            if not is_utf8(buf, body, p):
                return INVALID_UTF8, elements
        elif what == BYTES:
            if top == 0 and (is_span or is_log):
                reason = id_reason(buf, body, p, field, is_span)
                if later == SOUND:
                    later = reason
                ids |= 1 if field == 1 else (2 if field == 2 else 0)
        elif what == pair_type and depth + top + 2 <= DEPTH_MAX and is_plain_pair(buf, body, p):
            elements += 2
        elif what >= FIRST_TYPE:
            elements += 1
            if depth + top + 1 > DEPTH_MAX:
                return TOO_DEEP, elements
            kinds[top], ends[top] = kind, end
            top += 1
            kind, end, p = what, p, body


@helper
def names_scope(buf, p, end, own):
    """Whether the sound InstrumentationScope in buf[p:end] has the name `own` (uint8[k])."""
    while p < end:
        field, wire, p = read_tag(buf, p, end)
        if wire != 2:
            p = after_scalar(buf, p, end, wire)
            continue
        size, body = varint(buf, p, end)
        p = body + int64(size)
        if field == 1 and size == own.size:
            same = True
            for i in range(own.size):
                same &= buf[body + i] == own[i]
            if same:
                return True
    return False


@expanded
def note(edits, totals, start, body, stop, reason, level, kind, records, around):
    """Adds a row to `edits` when there is room; counts it in any case."""
    row = totals[EDITS]
    totals[EDITS] += 1
    if row < edits.shape[0]:
        edits[row, START], edits[row, BODY], edits[row, STOP], edits[row, REASON] = start, body, stop, reason
        edits[row, LEVEL], edits[row, TYPE], edits[row, RECORDS] = level, kind, records
        for i in range(6):
            edits[row, GROUP + i] = around[1 + i // 3, i % 3] if i < 3 * level else -1


@expanded
def exceeded(totals, records_max, elements_max):
    """Which limit the counts so far exceed, 0 for none."""
    if totals[SEEN] > records_max:
        return TOO_MANY_RECORDS
    return TOO_MANY_ELEMENTS if totals[ELEMENTS] > elements_max else 0


@allocating_kernel
def examine(buf, schema, types, own, records_max, elements_max, edits, totals):
    """Walks the request in buf (uint8[n]); the damage comes out in `edits`, the counts in `totals`.

    schema: int64[types, FIELDS]. types: int64[8], the numbers of request, resource group, scope group, record, span,
    log, scope and key-value pair. own: uint8[k], the name of our own scope; a scope group of that name is one row of
    reason OWN. edits: int64[m, COLUMNS], in the order of the request except that a group's own row follows those of
    its content; totals[EDITS] rows are needed, which may be more than there is room for. totals: int64[TOTALS];
    REFUSED is set when a limit was exceeded.
    """
    totals[:] = 0
    kinds, ends = np.empty(DEPTH_MAX + 1, np.int64), np.empty(DEPTH_MAX + 1, np.int64)
    around = np.zeros((3, 3), np.int64)  # per level: tag, content and end of the group we are in
    around[0, 2] = buf.size
    level, p, records_before, edits_before, is_own = 0, 0, 0, 0, False
    while totals[REFUSED] == 0:
        end = around[level, 2]
        if p == end:
            if level == 0:
                return
            level -= 1
            if level == 1 and is_own:
                totals[EDITS] = edits_before
                start, body, stop = around[2, 0], around[2, 1], around[2, 2]
                note(edits, totals, start, body, stop, OWN, 1, types[2], totals[SEEN] - records_before, around)
                is_own = False
            continue
        start = p
        field, wire, p = read_tag(buf, p, end)
        if p >= 0 and wire != 2:
            p = after_scalar(buf, p, end, wire)
            if p >= 0:
                continue
        size, body = uint64(0), int64(-1)
        if p >= 0:
            size, body = varint(buf, p, end)
        if body < 0:  # nothing can be read from here to the end of the group
            note(edits, totals, start, end, end, MALFORMED, level, UNKNOWN, 1, around)
            totals[SEEN] += 1
            p = end
            continue
        whole = size <= uint64(end - body)
        p = body + int64(size) if whole else end
        what = schema[types[level], field] if field < FIELDS else UNKNOWN
        if level < 2 and what == types[level + 1]:
            level += 1
            around[level, 0], around[level, 1], around[level, 2] = start, body, p
            if level == 2:
                records_before, edits_before = totals[SEEN], totals[EDITS]
            if not whole:
                note(edits, totals, p, p, p, LENGTH, level, UNKNOWN, 0, around)
            totals[ELEMENTS] += 1
            p = body
        else:
            is_record = what == types[3]
            reason = SOUND if whole else TRUNCATED
            if whole and what == STRING and not is_utf8(buf, body, p):
                reason = INVALID_UTF8
            elif whole and what >= FIRST_TYPE:
                reason, elements = piece(
                    buf, body, p, what, level + 1, schema, types[4], types[5], types[7], kinds, ends
                )
                totals[ELEMENTS] += elements
                if what == types[6] and level == 2 and reason == SOUND and not is_own:
                    is_own = names_scope(buf, body, p, own)
            totals[SEEN] += 1 if is_record or not whole else 0
            if reason != SOUND:
                note(edits, totals, start, body, p, reason, level, what, 1 if is_record or not whole else 0, around)
        totals[REFUSED] = exceeded(totals, records_max, elements_max)
