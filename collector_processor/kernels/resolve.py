"""Hashes of resources, span names and log bodies -> ids, for what has been seen before.

How it works. `scan` (`kernels/decode.py`) leaves in each row which resource of the request it belongs to, and a hash of
its name. Two tables, which Python fills on first sight, lead from the hash of a resource to its instance, and from
service, kind and name to the event. `read` does both steps in one call; what is in no table is listed for Python.
"""

from __future__ import annotations

from numba import int64, uint64

from collector_processor.kernels.decode import EVENT, KIND, RESOURCE, scan
from collector_processor.kernels.jit import helper, inlined, kernel
from collector_processor.kernels.wire import finish, hash_bytes, mix


@kernel
def resolve_resources(buf, spans, n, salt, keys, values, ids):
    """Instance ids of the n Resources that stand at spans int64[n, 2], into ids int32[n]; -1 for one that the table of
    keyed hashes (keys uint64[t], values int32[t]) does not hold. Returns how many those are."""
    mask = uint64(keys.size - 1)
    missing = 0
    for r in range(n):
        key = resource_key(buf, spans[r, 0], spans[r, 1], salt)
        i = finish(key) & mask
        while keys[i] != key and keys[i] != 0:
            i = (i + uint64(1)) & mask
        ids[r] = values[i] if keys[i] != 0 else -1
        missing += keys[i] == 0
    return missing


@kernel
def resource_key(buf, start, end, salt):
    """Key of a serialised Resource in the lookup table; salt tells tenants apart. Never 0."""
    return hash_bytes(buf, start, end, salt) | uint64(1)


@kernel
def resolve(rows, todo, n_todo, instances, service_of, keys, values, unknown, unknown_keys):
    """Turns resource indices into instance ids and event hashes into event ids, for the rows todo[:n_todo].

    instances int32[r]: instance id per resource of the request; service_of int32[instances]. keys uint64[k], values
    int32[k]: open-addressing table (k a power of two, key 0 empty) from `event_key` to event id. A row whose key is not
    in the table keeps its columns and is listed with its key in unknown int64[n], unknown_keys uint64[n]; `todo` may be
    `unknown` itself. Returns how many are."""
    mask = uint64(keys.size - 1)
    missing = 0
    for t in range(n_todo):
        r = todo[t]
        instance = instances[rows[r, RESOURCE]]
        key = event_key(rows[r, EVENT], service_of[instance], rows[r, KIND])
        i = finish(key) & mask
        while keys[i] != key and keys[i] != 0:
            i = (i + uint64(1)) & mask
        if keys[i] == 0:
            unknown[missing] = r
            unknown_keys[missing] = key
            missing += 1
        else:
            rows[r, EVENT] = uint64(values[i])
            rows[r, RESOURCE] = uint64(instance)
    return missing


@helper
def resolve_all(
    buf, spans, salt, instances, resource_keys, resource_values, service_of, keys, values, rows, unknown, unknown_keys
):  # fmt: skip
    """`resolve_resources` and, when all are known, `resolve` for all rows, whose answer it gives; else -1."""
    if resolve_resources(buf, spans, instances.size, salt, resource_keys, resource_values, instances) > 0:
        return -1
    for r in range(rows.shape[0]):
        unknown[r] = r
    return resolve(rows, unknown, rows.shape[0], instances, service_of, keys, values, unknown, unknown_keys)


@kernel
def read(
    buf, is_log, secrets, rows, wanted, links, cells, resources, classes, own, body_max, instances, resource_keys,
    resource_values, service_of, keys, values, unknown, unknown_keys,
):  # fmt: skip
    """`scan`, then `resolve_all` for what it read; the answers of both, one after the other. `secrets` uint64[3]: seed,
    lengths and salt, which are slower to pass one by one."""
    seed, lengths, salt = secrets[0], secrets[1], secrets[2]
    n, n_cells, n_resources, skipped = scan(
        buf, is_log, rows, seed, wanted, lengths, links, cells, resources, classes, own, body_max
    )
    missing = int64(0)
    if n > 0:
        missing = resolve_all(
            buf, resources, salt, instances[:n_resources], resource_keys, resource_values, service_of, keys, values,
            rows[:n], unknown, unknown_keys,
        )  # fmt: skip
    return n, n_cells, n_resources, skipped, missing


@inlined
def event_key(event, service, kind):
    """Key of the table from first-sight hash to event id; never 0."""
    return mix(mix(event, uint64(service) + uint64(1)), kind) | uint64(1)
