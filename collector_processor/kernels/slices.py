"""Kernels that sum chains up for the detectors of slow change: flows per slice, operations per epoch."""

from __future__ import annotations

import math

from collector_processor.kernels.jit import helper, kernel

SPAN_ERROR = 2  # status of a span from which on it is an error
LOG_ERROR = 17  # severity number of a log line from which on it is one
FINE = 1e6  # integer units of a sum


@kernel
def sum_flows(offsets, kind, status, flow, start_ns, end_ns, nats, sums):
    """Adds chains to `sums` int64[flows, 5]: chains, then in units of 1 / FINE those with an error, ln of the duration
    in ns, log lines, and `nats` float64[chains]. Integers, so that their order leaves no trace."""
    for c in range(offsets.size - 1):
        f = max(flow[c], 0)
        logs = 0
        broken = False
        for r in range(offsets[c], offsets[c + 1]):
            is_log = kind[r] == 0
            logs += is_log
            broken = broken or status[r] >= (LOG_ERROR if is_log else SPAN_ERROR)
        sums[f, 0] += 1
        sums[f, 1] += int(FINE) if broken else 0
        sums[f, 2] += round(math.log(max(float(end_ns[c] - start_ns[c]), 1e3)) * FINE)
        sums[f, 3] += logs * int(FINE)
        sums[f, 4] += round(nats[c] * FINE)


@helper
def sum_operations(offsets, kind, status, event, self_time, normal, shortest_ns, longest_ns, sums):
    """Adds the spans of normal chains to `sums` float64[events, 4]: spans, sum and squares of ln of self times in ns,
    errors."""
    for c in range(offsets.size - 1):
        if not normal[c]:
            continue
        for r in range(offsets[c], offsets[c + 1]):
            if kind[r] > 0:
                length = math.log(min(max(float(self_time[r]), shortest_ns), longest_ns))
                e = event[r]
                sums[e, 0] += 1.0
                sums[e, 1] += length
                sums[e, 2] += length * length
                sums[e, 3] += status[r] == SPAN_ERROR


@kernel
def creep(
    offsets, kind, status, event, self_time, normal, shortest_ns, longest_ns, sums, now_ns, memory_ns, reference_ns,
    learn_min, first_ns, last_ns, frozen, then, now,
):  # fmt: skip
    """Adds the chains of one epoch to both baselines of each operation; `sums` is zero before and after.

    `then` float64[events, 4] is what was normal first, until `frozen`; `now` float64[events, 3], no squares, fades.
    """
    sum_operations(offsets, kind, status, event, self_time, normal, shortest_ns, longest_ns, sums)
    for e in range(sums.shape[0]):
        if sums[e, 0] == 0.0:
            continue
        if first_ns[e] == 0:
            first_ns[e] = now_ns
        fade = math.exp(-(now_ns - last_ns[e]) / memory_ns)
        last_ns[e] = now_ns
        now[e, 0] = now[e, 0] * fade + sums[e, 0]
        now[e, 1] = now[e, 1] * fade + sums[e, 1]
        now[e, 2] = now[e, 2] * fade + sums[e, 3]
        if not frozen[e]:
            for i in range(sums.shape[1]):
                then[e, i] += sums[e, i]
            frozen[e] = now_ns - first_ns[e] >= reference_ns and then[e, 0] >= learn_min
        for i in range(sums.shape[1]):
            sums[e, i] = 0.0
