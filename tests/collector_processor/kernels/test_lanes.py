"""Keys of the n-gram model: no context is taken for another one, nor for what follows one."""

from __future__ import annotations

import numpy as np

from collector_processor.kernels import lanes as kernels
from collector_processor.kernels.wire import mix

EVENTS = range(kernels.BEGIN, 40)


def test_contexts_of_all_orders_are_different() -> None:
    keys = [kernels.context(4, 0, kind, 0, 0) for kind in (0, 1)]
    for kind in (0, 1):
        for event in EVENTS:
            keys.append(kernels.context(2, event, kind, 0, 0))
            keys.append(kernels.context(3, 0, kind, 0, event))
            keys += [kernels.context(1, event, kind, 0, last) for last in EVENTS]
            keys += [kernels.context(0, 3, kind, event, last) for last in EVENTS]
    following = [mix(np.uint64(key), np.uint64(event + 4)) | np.uint64(1) for key in keys[::20] for event in EVENTS]
    every = np.array(keys + following, np.uint64)
    assert np.unique(every).size == every.size
