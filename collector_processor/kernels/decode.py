"""One OTLP export request (https://opentelemetry.io/docs/specs/otlp) -> one row per span or log record.

How it works. `scan` walks resource -> scope -> record once, front to back. Strings are not decoded: their bytes are
hashed, and the hash is looked up (`kernels/resolve.py`) in a table that Python fills on first sight. What is malformed
or unusual (truncated, overlong, groups, ids of a wrong length on a span) makes `scan` give up on the request with -1;
the caller then repairs it. Fields may come in any order and more than once, as the protobuf specification allows: the
last one wins.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.jit import inlined, kernel
from collector_processor.kernels.wire import (
    big64,
    chunk,
    fixed64,
    hash_bytes,
    hash_long,
    hash_masked,
    hex64,
    hex_digit,
    skip,
    varint,
)

# Columns of a row (uint64).
RESOURCE = 0  # index in the request's resources; after `resolve` the instance id
TRACE_HI = 1
TRACE_LO = 2
SPAN = 3  # span id; of the emitting span for a log
PARENT = 4  # parent span id; for a log: its identity (hash of the whole record), so that a copy is known as a copy
TIME = 5
END = 6
KIND = 7  # 0 log, else span kind + 1
STATUS = 8  # span: status code. log: severity number
EVENT = 9  # hash of the span name or of the masked body; after `resolve` the event id
TEXT = 10  # where the name or body stands: start << 32 | end
COLUMNS = 11

# What `scan` returns in place of a row count.
UNUSUAL = -1
FULL = -2

# The meaning of a cell's key column: index in `wanted`, or
BODY_WORD = -1  # a word of an unlinked log's body that may be a business key

OWN_SCOPE = np.frombuffer(b"spanchain", np.uint8).copy()
WORD_MIN = 6  # shorter words are never taken for a business key


@inlined
def is_own_scope(buf, p, end, own):
    """Whether the InstrumentationScope at buf[p:end] bears our own name (loop guard)."""
    while p < end:
        tag, p = varint(buf, p, end)
        if p < 0:
            return False
        if tag == 10:
            a, b = chunk(buf, p, end)
            if b < 0 or b - a != own.size:
                return False
            for i in range(own.size):
                if buf[uint64(a + i)] != own[i]:
                    return False
            return True
        p = skip(buf, p, end, int64(tag & uint64(7)))
        if p < 0:
            return False
    return False


@inlined
def attribute(buf, a, b, seed, wanted, lengths):
    """(index in wanted or -1, value start, value end) of the KeyValue buf[a:b]. Value end -1: malformed."""
    if a < b and buf[uint64(a)] == 10:
        k, ke = chunk(buf, a + 1, b)
        if ke < 0:
            return -1, int64(0), int64(-1)
        n = ke - k
        if n < 64 and (lengths >> uint64(n)) & uint64(1) and ke < b and buf[uint64(ke)] == 18:
            h = hash_bytes(buf, k, ke, seed)
            for i in range(wanted.size):
                if h == wanted[i]:
                    v, ve = chunk(buf, ke + 1, b)
                    return i, v, ve
    return -1, int64(0), int64(0)


@inlined
def read_status(buf, p, end):
    """Status code of a span's Status message; -1 when malformed."""
    code = int64(0)
    while p < end:
        tag, p = varint(buf, p, end)
        if p < 0:
            return int64(-1)
        if tag == 24:
            value, p = varint(buf, p, end)
            code = int64(value & uint64(255))
        else:
            p = skip(buf, p, end, int64(tag & uint64(7)))
        if p < 0:
            return int64(-1)
    return code


@kernel
def read_span(buf, p, end, out, row, seed, wanted, lengths, cells, n_cells):
    """Reads the Span buf[p:end] into `out`, row number `row`. Returns the number of cells used, UNUSUAL or FULL."""
    seen_trace = False
    seen_span = False
    out[KIND] = 1
    while p < end:
        tag, p = varint(buf, p, end)
        if p < 0:
            return UNUSUAL
        wire = int64(tag & uint64(7))
        field = int64(tag >> uint64(3))
        if wire == 2:
            a, b = chunk(buf, p, end)
            if b < 0:
                return UNUSUAL
            p = b
            if field == 9:
                which, v, ve = attribute(buf, a, b, seed, wanted, lengths)
                if ve < 0:
                    return UNUSUAL
                if which >= 0:
                    if n_cells >= cells.shape[0]:
                        return FULL
                    cells[n_cells, 0] = row
                    cells[n_cells, 1] = which
                    cells[n_cells, 2] = v
                    cells[n_cells, 3] = ve
                    n_cells += 1
            elif field == 1:
                if b - a != 16:
                    return UNUSUAL
                out[TRACE_HI] = big64(buf, a)
                out[TRACE_LO] = big64(buf, a + 8)
                seen_trace = (out[TRACE_HI] | out[TRACE_LO]) != 0
            elif field == 2:
                if b - a != 8:
                    return UNUSUAL
                out[SPAN] = big64(buf, a)
                seen_span = out[SPAN] != 0
            elif field == 4:
                if b - a == 8:
                    out[PARENT] = big64(buf, a)
                elif b > a:
                    return UNUSUAL
                else:
                    out[PARENT] = 0
            elif field == 5:
                out[EVENT] = hash_bytes(buf, a, b, seed)
                out[TEXT] = uint64(a) << uint64(32) | uint64(b)
            elif field == 15:
                code = read_status(buf, a, b)
                if code < 0:
                    return UNUSUAL
                out[STATUS] = uint64(code)
        elif wire == 1:
            if p + 8 > end:
                return UNUSUAL
            if field == 7:
                out[TIME] = fixed64(buf, p)
            elif field == 8:
                out[END] = fixed64(buf, p)
            p += 8
        elif wire == 0:
            value, p = varint(buf, p, end)
            if p < 0:
                return UNUSUAL
            if field == 6:
                out[KIND] = uint64(1) + (value if value < 6 else uint64(0))
        else:
            p = skip(buf, p, end, wire)
            if p < 0:
                return UNUSUAL
    if not seen_trace or not seen_span:
        return UNUSUAL
    return n_cells


@kernel
def read_log(buf, p, end, out, row, seed, wanted, lengths, links, cells, n_cells, classes, body_max):
    """Reads the LogRecord buf[p:end] into `out`, row number `row`. Returns the number of cells used, UNUSUAL or FULL.

    links: how many entries at the front of `wanted` are not for cells but name a trace id (0 trace_id, 1 traceId,
    2 traceparent) or a span id (3 span_id, 4 spanId); they matter only where the record's own field is empty."""
    begin = p
    first_cell = n_cells
    body = int64(0)
    body_end = int64(0)
    name = int64(0)
    name_end = int64(0)
    is_text = True
    while p < end:
        tag, p = varint(buf, p, end)
        if p < 0:
            return UNUSUAL
        wire = int64(tag & uint64(7))
        field = int64(tag >> uint64(3))
        if wire == 2:
            a, b = chunk(buf, p, end)
            if b < 0:
                return UNUSUAL
            p = b
            if field == 5:
                is_text = a < b and buf[uint64(a)] == 10
                if is_text:
                    body, body_end = chunk(buf, a + 1, b)
                    if body_end < 0:
                        return UNUSUAL
                else:
                    body, body_end = a, b
            elif field == 6:
                which, v, ve = attribute(buf, a, b, seed, wanted, lengths)
                if ve < 0:
                    return UNUSUAL
                if which >= 0:
                    if n_cells >= cells.shape[0]:
                        return FULL
                    cells[n_cells, 0] = row
                    cells[n_cells, 1] = which
                    cells[n_cells, 2] = v
                    cells[n_cells, 3] = ve
                    n_cells += 1
            elif field == 9:
                is_id = b - a == 16  # of another length: as if there were none
                out[TRACE_HI] = big64(buf, a) if is_id else uint64(0)
                out[TRACE_LO] = big64(buf, a + 8) if is_id else uint64(0)
            elif field == 10:
                out[SPAN] = big64(buf, a) if b - a == 8 else uint64(0)
            elif field == 12:
                name, name_end = a, b
        elif wire == 1:
            if p + 8 > end:
                return UNUSUAL
            if field == 1:
                out[TIME] = fixed64(buf, p)
            elif field == 11:
                out[END] = fixed64(buf, p)
            p += 8
        elif wire == 0:
            value, p = varint(buf, p, end)
            if p < 0:
                return UNUSUAL
            if field == 2:
                out[STATUS] = value if value < 25 else uint64(0)
        else:
            p = skip(buf, p, end, wire)
            if p < 0:
                return UNUSUAL
    if out[TIME] == 0:
        out[TIME] = out[END]
    out[END] = out[TIME]
    out[PARENT] = hash_long(buf, begin, end, seed)
    if name_end > name:  # an event: its name is its template
        out[EVENT] = hash_bytes(buf, name, name_end, ~seed) & ~uint64(1)
        out[TEXT] = uint64(name) << uint64(32) | uint64(name_end)
    else:
        shown = min(body_end, body + body_max)
        # A body that is not text is hashed as it stands on the wire; the lowest bit tells the two kinds apart.
        out[EVENT] = (hash_masked(buf, body, shown, seed, classes) & ~uint64(1)) | uint64(not is_text)
        out[TEXT] = uint64(body) << uint64(32) | uint64(body_end)
    unlinked = out[TRACE_HI] == 0 and out[TRACE_LO] == 0
    kept = first_cell
    for c in range(first_cell, n_cells):
        which = cells[c, 1]
        if which >= links:
            for k in range(4):
                cells[kept, k] = cells[c, k]
            kept += 1
        elif unlinked:
            v, ve = cells[c, 2], cells[c, 3]
            if v < ve and buf[uint64(v)] == 10:  # AnyValue.string_value
                s, se = chunk(buf, v + 1, ve)
                if se >= 0:
                    link(buf, s, se, which, out)
    if out[TRACE_HI] == 0 and out[TRACE_LO] == 0 and is_text:
        kept = words(buf, body, min(body_end, body + body_max), out, row, seed, classes, cells, kept)
    return kept


@kernel
def link(buf, s, e, which, out):
    """Takes a trace or span id from an attribute's text: hex digits, or a W3C traceparent."""
    if which <= 1 and e - s == 32:
        hi, ok1 = hex64(buf, s)
        lo, ok2 = hex64(buf, s + 16)
        if ok1 and ok2:
            out[TRACE_HI] = hi
            out[TRACE_LO] = lo
    elif which == 2 and e - s == 55:
        hi, ok1 = hex64(buf, s + 3)
        lo, ok2 = hex64(buf, s + 19)
        span, ok3 = hex64(buf, s + 36)
        if ok1 and ok2 and ok3:
            out[TRACE_HI] = hi
            out[TRACE_LO] = lo
            if out[SPAN] == 0:
                out[SPAN] = span
    elif which >= 3 and e - s == 16 and out[SPAN] == 0:
        span, ok = hex64(buf, s)
        if ok:
            out[SPAN] = span


@kernel
def words(buf, p, end, out, row, seed, classes, cells, n_cells):
    """Looks through the body of a log without a trace id: 32 hex digits in a row are its trace id; else each word that
    holds a digit (up to 8, of at least WORD_MIN bytes, `-` inside a word allowed) becomes a BODY_WORD cell."""
    found = 0
    while p < end:
        if classes[buf[uint64(p)]] == 0:
            p += 1
            continue
        start = p
        variable = False
        is_hex = True
        while p < end and (classes[buf[uint64(p)]] != 0 or buf[uint64(p)] == 45):
            variable |= classes[buf[uint64(p)]] == 2
            is_hex &= hex_digit(buf[uint64(p)]) >= 0
            p += 1
        if is_hex and p - start == 32:
            hi, _ = hex64(buf, start)
            lo, _ = hex64(buf, start + 16)
            out[TRACE_HI] = hi
            out[TRACE_LO] = lo
            return n_cells - found
        if variable and p - start >= WORD_MIN and found < 8 and n_cells < cells.shape[0]:
            cells[n_cells, 0] = row
            cells[n_cells, 1] = BODY_WORD
            cells[n_cells, 2] = start
            cells[n_cells, 3] = p
            n_cells += 1
            found += 1
    return n_cells


@kernel
def scan(buf, is_log, rows, seed, wanted, lengths, links, cells, resources, classes, own, body_max):
    """Reads one Export{Trace,Logs}ServiceRequest into `rows`.

    buf uint8[size]; rows uint64[n, COLUMNS]; wanted uint64[k], keyed hashes of attribute keys, and `lengths`, a bit per
    key length; cells int64[m, 4]: row, index in wanted (or BODY_WORD), start and end of the AnyValue (of the word);
    resources int64[r, 2]: start and end of each Resource; own: name of our instrumentation scope.
    Returns (rows used, cells used, resources used, records of our own skipped); rows used is UNUSUAL or FULL when the
    request was not read."""
    end = int64(buf.size)
    p = int64(0)
    row = 0
    n_cells = 0
    resource = -1
    own_records = 0
    while p < end:
        tag, p = varint(buf, p, end)
        if p < 0:
            return UNUSUAL, 0, 0, 0
        if tag != 10:
            p = skip(buf, p, end, int64(tag & uint64(7)))
            if p < 0:
                return UNUSUAL, 0, 0, 0
            continue
        p, end1 = chunk(buf, p, end)
        if end1 < 0:
            return UNUSUAL, 0, 0, 0
        resource += 1
        if resource >= resources.shape[0]:
            return FULL, 0, 0, 0
        resources[resource, 0] = 0
        resources[resource, 1] = 0
        while p < end1:
            tag, p = varint(buf, p, end1)
            if p < 0:
                return UNUSUAL, 0, 0, 0
            if tag == 10:
                a, b = chunk(buf, p, end1)
                if b < 0:
                    return UNUSUAL, 0, 0, 0
                resources[resource, 0] = a
                resources[resource, 1] = b
                p = b
                continue
            if tag != 18:
                p = skip(buf, p, end1, int64(tag & uint64(7)))
                if p < 0:
                    return UNUSUAL, 0, 0, 0
                continue
            p, end2 = chunk(buf, p, end1)
            if end2 < 0:
                return UNUSUAL, 0, 0, 0
            ours = False
            while p < end2:
                tag, p = varint(buf, p, end2)
                if p < 0:
                    return UNUSUAL, 0, 0, 0
                if tag == 10:
                    a, b = chunk(buf, p, end2)
                    if b < 0:
                        return UNUSUAL, 0, 0, 0
                    ours = is_own_scope(buf, a, b, own)
                    p = b
                    continue
                if tag != 18:
                    p = skip(buf, p, end2, int64(tag & uint64(7)))
                    if p < 0:
                        return UNUSUAL, 0, 0, 0
                    continue
                p, end3 = chunk(buf, p, end2)
                if end3 < 0:
                    return UNUSUAL, 0, 0, 0
                if ours:
                    own_records += 1
                    p = end3
                    continue
                if row >= rows.shape[0]:
                    return FULL, 0, 0, 0
                out = rows[row]
                for c in range(COLUMNS):
                    out[c] = 0
                out[RESOURCE] = uint64(resource)
                if is_log:
                    n_cells = read_log(
                        buf, p, end3, out, row, seed, wanted, lengths, links, cells, n_cells, classes, body_max
                    )
                else:
                    n_cells = read_span(buf, p, end3, out, row, seed, wanted, lengths, cells, n_cells)
                if n_cells < 0:
                    return n_cells, 0, 0, 0
                p = end3
                row += 1
    return row, n_cells, resource + 1, own_records
