"""Kernels behind `decide/incidents.py`: what of a batch of verdicts open incidents may want to know later."""

from __future__ import annotations

import numpy as np

from collector_processor.kernels.jit import allocating_kernel, kernel


@allocating_kernel
def calls_of(offsets, path, event, parent, service, known_paths):
    """(int64[k], int64[k]): caller and callee, both services, of the calls between services in chains that go a way
    not seen before. Marks the ways in `known_paths` bool[paths]."""
    new = np.zeros(path.size, np.bool_)
    records = 0
    for c in range(path.size):
        if not known_paths[path[c]]:
            new[c] = True
            records += offsets[c + 1] - offsets[c]
    caller, callee = np.empty(records, np.int64), np.empty(records, np.int64)
    n = 0
    for c in range(path.size):
        if not new[c]:
            continue
        known_paths[path[c]] = True
        for r in range(offsets[c], offsets[c + 1]):
            if parent[r] >= 0 and service[event[parent[r]]] != service[event[r]]:
                caller[n], callee[n] = service[event[parent[r]]], service[event[r]]
                n += 1
    return caller[:n], callee[:n]


@kernel
def note(findings, severity, repeated, p_max, flow, hi, lo, seen, again):
    """Fills `seen` with the findings up to `p_max`, and `again` with the rows of those in chains with a severity that
    are of a kind that is `repeated` (bool[kinds]), which are not seen elsewhere. Gives the number of each."""
    n = m = 0
    for i in range(findings.size):
        c = findings[i]["chain"]
        if repeated[findings[i]["kind"]]:
            if severity[c] == 0:
                continue
            again[m] = i
            m += 1
        if findings[i]["p"] <= p_max:
            seen[n]["service"], seen[n]["instance"] = findings[i]["service"], findings[i]["instance"]
            seen[n]["flow"], seen[n]["hi"], seen[n]["lo"] = flow[c], hi[c], lo[c]
            n += 1
    return n, m


@kernel
def about(seen, services, root, first, flows, instances):
    """Of the rows of `seen` that are about one of `services`: fills `first` with the first one of each chain, whose
    rows are neighbours, and `flows` with its flow; `instances` with those of the service `root`, row by row. Gives the
    number of chains and of instances."""
    n, m, last = 0, 0, -1
    for i in range(seen.size):
        is_about = False
        for service in services:
            is_about |= seen[i]["service"] == service
        if not is_about:
            continue
        if last < 0 or seen[i]["lo"] != seen[last]["lo"] or seen[i]["hi"] != seen[last]["hi"]:
            first[n], flows[n] = i, seen[i]["flow"]
            n += 1
        last = i
        if seen[i]["service"] == root and seen[i]["instance"] >= 0:
            instances[m] = seen[i]["instance"]
            m += 1
    return n, m
