"""Where the spans of a request stand in its bytes, and what they are called: for whoever edits a request in place.

How it works. Requests of traces and of logs have the same outer fields: groups (by resource), scopes, records. `locate`
hops from length to length through them and reads of each record what tells a span from another: trace id, span id and
kind; of a log record these are without meaning, and only the number of rows is. A field that is not known is stepped
over; what cannot be read ends its group.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.jit import helper, inlined, kernel
from collector_processor.kernels.wire import big64, chunk, skip, varint

# Columns of a row. *_TAG, *_BODY, *_END: where the field begins, its content begins, and it ends.
TRACE_HI, TRACE_LO, SPAN_ID, KIND, GROUP_TAG, GROUP_BODY, GROUP_END = 0, 1, 2, 3, 4, 5, 6
SCOPE_TAG, SCOPE_BODY, SCOPE_END, SPAN_TAG, SPAN_BODY, SPAN_END = 7, 8, 9, 10, 11, 12
COLUMNS = 13
INNER = (1, 2, 2)  # number of the repeated field in a request, a group, a scope


@inlined
def inner(buf, p, end, wanted):
    """(tag, body, end) of the next length-delimited field `wanted` of the message that goes on at p; -1 for none."""
    while p < end:
        at = p
        tag, p = varint(buf, p, end)
        if p < 0:
            break
        wire = int64(tag & uint64(7))
        if wire != 2:
            p = skip(buf, p, end, wire)
            if p < 0:
                break
            continue
        body, stop = chunk(buf, p, end)
        if stop < 0:
            break
        if tag >> uint64(3) == uint64(wanted):
            return int64(at), body, stop
        p = stop
    return int64(-1), int64(-1), int64(-1)


@helper
def read_ids(buf, p, end, row):
    """Writes trace id, span id and kind of the span buf[p:end] to the first columns of `row`; the last of each wins."""
    while p < end:
        tag, p = varint(buf, p, end)
        if p < 0:
            return
        field = int64(tag >> uint64(3))
        wire = int64(tag & uint64(7))
        if field == 6 and wire == 0:
            row[KIND], p = varint(buf, p, end)
        elif field <= 2 and wire == 2:
            body, p = chunk(buf, p, end)
            if p < 0:
                return
            if field == 1 and p - body == 16:
                row[TRACE_HI] = big64(buf, body)
                row[TRACE_LO] = big64(buf, body + 8)
            elif field == 2 and p - body == 8:
                row[SPAN_ID] = big64(buf, body)
        else:
            p = skip(buf, p, end, wire)
        if p < 0:
            return


@kernel
def locate(buf, rows):
    """Fills the first rows (zeroed uint64[n, COLUMNS]) with the records of the request, in its order; how many there
    are, which may be more than there are rows."""
    found = 0
    at = int64(0)
    while True:
        group_tag, group_body, group_end = inner(buf, at, int64(buf.size), 1)
        if group_tag < 0:
            return found
        at = group_end
        scope_end = group_body
        while True:
            scope_tag, scope_body, scope_end = inner(buf, scope_end, group_end, 2)
            if scope_tag < 0:
                break
            span_end = scope_body
            while True:
                span_tag, span_body, span_end = inner(buf, span_end, scope_end, 2)
                if span_tag < 0:
                    break
                if found < rows.shape[0]:
                    row = rows[found]
                    read_ids(buf, span_body, span_end, row)
                    row[GROUP_TAG], row[GROUP_BODY], row[GROUP_END] = group_tag, group_body, group_end
                    row[SCOPE_TAG], row[SCOPE_BODY], row[SCOPE_END] = scope_tag, scope_body, scope_end
                    row[SPAN_TAG], row[SPAN_BODY], row[SPAN_END] = span_tag, span_body, span_end
                found += 1


def records_in(data: bytes) -> int:
    """How many spans or log records a request holds."""
    return int(locate(np.frombuffer(data, np.uint8), np.zeros((0, COLUMNS), np.uint64)))


def rows_of(data: bytes) -> np.ndarray:
    """uint64[n, COLUMNS]: the spans of a request, in its order."""
    rows = np.zeros((records_in(data), COLUMNS), np.uint64)
    locate(np.frombuffer(data, np.uint8), rows)
    return rows
