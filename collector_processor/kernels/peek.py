"""A light look into an OTLP request of unknown kind: which signal it is, how many records it holds, and of what time.

How it works. Trace, log and metric requests have the same outer fields: resource, scope, record. So the records are
counted by hopping from length to length, and a sample of them is read: which fields they have, of which wire types,
tells spans, log records and metrics apart. The time is the median over the sample, so that no single crazy one counts.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from collector_processor.kernels.jit import inlined, kernel
from collector_processor.kernels.wire import find_chunk, fixed64, skip, varint

SAMPLE = 64
FIELDS = 17  # of a Span; LogRecord and Metric have fewer
VARINT, FIXED64, LEN, FIXED32 = 0, 1, 2, 5
ANY = -1
RESOURCES, SCOPES, RECORDS = 10, 18, 18  # tags of the fields by which requests, resources and scopes hold their parts

# Wire type of each field by number (opentelemetry/proto: trace/v1 Span, logs/v1 LogRecord, metrics/v1 Metric).
SPAN = np.array([ANY, 2, 2, 2, 2, 2, 0, 1, 1, 2, 0, 2, 0, 2, 0, 2, 5], np.int8)
LOG = np.array([ANY, 1, 0, 2, ANY, 2, 2, 0, 5, 2, 2, 1, 2, ANY, ANY, ANY, ANY], np.int8)
METRIC = np.array([ANY, 2, 2, 2, ANY, 2, ANY, 2, ANY, 2, 2, 2, 2, ANY, ANY, ANY, ANY], np.int8)


@inlined
def bit(seen, field):
    return (seen >> uint64(field)) & uint64(1) == uint64(1)


@inlined
def is_text(buf, p, end):
    """Whether buf[p:end] is printable ASCII, as a metric's name may be and an id is not."""
    while p < end and 32 <= buf[uint64(p)] < 127:
        p += 1
    return p == end


@kernel
def examine(buf, p, end, votes):
    """Adds to `votes` (int64[3]: spans, logs, metrics) what the record buf[p:end] looks like, the surest signs most.
    Returns its time if it is a span, and if it is a log record; 0 when it has none."""
    seen = uint64(0)
    is_span = True
    is_log = True
    is_metric = True
    ids = 0
    log_ids = 0
    first = uint64(0)
    start = uint64(0)
    stop = uint64(0)
    observed = uint64(0)
    while p < end:
        tag, p = varint(buf, p, end)
        wire = int64(tag & uint64(7))
        field = int64(tag >> uint64(3))
        if p < 0 or field == 0:
            return uint64(0), uint64(0)
        if wire == FIXED64 and p + 8 <= end:
            value = fixed64(buf, p)
            if field == 1:
                first = value
            elif field == 7:
                start = value
            elif field == 8:
                stop = value
            elif field == 11:
                observed = value
        at = p
        p = skip(buf, p, end, wire)
        if p < 0:
            return uint64(0), uint64(0)
        if field < FIELDS:
            seen |= uint64(1) << uint64(field)
            is_span &= SPAN[field] == wire
            is_log &= LOG[field] == ANY or LOG[field] == wire
            is_metric &= METRIC[field] == ANY or METRIC[field] == wire
            if wire == LEN:
                n = p - at - 1
                ids += ((field == 1 and n == 16) or (field == 2 and n == 8)) and not is_text(buf, p - n, p)
                log_ids += (field == 9 and n == 16) or (field == 10 and n == 8)
    if is_span:
        votes[0] += 9 if start | stop else (5 if ids == 2 else 1)
    if is_log:
        votes[1] += 9 if first | observed else (5 if log_ids == 2 else (3 if bit(seen, 2) or bit(seen, 5) else 1))
    if is_metric:
        data = bit(seen, 5) or bit(seen, 7) or bit(seen, 9) or bit(seen, 10) or bit(seen, 11)
        votes[2] += 4 if data and bit(seen, 1) else 1
    return stop if stop > uint64(0) else start, first if first > uint64(0) else observed


@kernel
def walk(buf, stride, votes, times):
    """Counts the records of the request `buf`; every `stride`-th is examined (none when 0), its times put into `times`
    (int64[2, SAMPLE]). Returns (records, times found as span, as log). Stops where the bytes are malformed; then, when
    there was no record yet, records is -1."""
    records = 0
    spans = 0
    logs = 0
    p = int64(0)
    while p >= 0:
        resource, p = find_chunk(buf, p, buf.size, RESOURCES)
        if resource < 0:
            break
        q = resource
        while q >= 0:
            scope, q = find_chunk(buf, q, p, SCOPES)
            if scope < 0:
                break
            r = scope
            while r >= 0:
                record, r = find_chunk(buf, r, q, RECORDS)
                if record < 0:
                    break
                records += 1
                if stride > 0 and records % stride == 0:
                    span_time, log_time = examine(buf, record, r, votes)
                    if spans < SAMPLE and uint64(0) < span_time < uint64(1 << 63):
                        times[0, spans] = int64(span_time)
                        spans += 1
                    if logs < SAMPLE and uint64(0) < log_time < uint64(1 << 63):
                        times[1, logs] = int64(log_time)
                        logs += 1
            q = q if r >= 0 else r
        p = p if q >= 0 else q
    return (-1 if p < 0 and records == 0 else records), spans, logs


@kernel
def median(times, row, n):
    """The lower median of times[row, :n], which is sorted in place; -1 when there is none."""
    for i in range(1, n):
        value = times[row, i]
        j = i - 1
        while j >= 0 and times[row, j] > value:
            times[row, j + 1] = times[row, j]
            j -= 1
        times[row, j + 1] = value
    return times[row, (n - 1) // 2] if n > 0 else int64(-1)


@kernel
def peek(buf, votes, times):
    """(signal, records, time) of the request in the uint8 array `buf`.

    The signal is as in `model.Signal`, -1 when its records are of none; records -1 when it is no request at all; the
    time in ns, -1 unknown. votes: int64[3], times: int64[2, SAMPLE], both scratch.
    """
    votes[:] = 0
    records, _, _ = walk(buf, 0, votes, times)
    _, spans, logs = walk(buf, max(1, records // SAMPLE), votes, times)
    signal = 0
    for other in range(1, 3):
        if votes[other] > votes[signal]:
            signal = other
    if votes[signal] == 0:
        return -1, records, int64(-1)
    time = int64(-1)
    if signal < 2:
        time = median(times, signal, spans if signal == 0 else logs)
    return signal, records, time
