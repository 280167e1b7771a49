"""Keys of the n-gram model: no context is taken for another one, nor for what follows one."""

from __future__ import annotations

import numpy as np

from collector_processor.kernels import lanes as kernels

EVENTS = range(kernels.BEGIN, 40)


def test_contexts_of_all_orders_are_different() -> None:
    keys = [kernels.context(4, 0, kind, 0, 0) for kind in (0, 1)]
    for kind in (0, 1):
        for event in EVENTS:
            keys.append(kernels.context(2, event, kind, 0, 0))
            keys.append(kernels.context(3, 0, kind, 0, event))
            keys += [kernels.context(1, event, kind, 0, last) for last in EVENTS]
            keys += [kernels.context(0, 3, kind, event, last) for last in EVENTS]
    following = [kernels.follower(np.uint64(key), event) for key in keys[::20] for event in EVENTS]
    every = np.array(keys + following, np.uint64)
    assert np.unique(every).size == every.size


class Model:
    """An n-gram table and what it says."""

    def __init__(self) -> None:
        self.table = (np.zeros(4096, np.uint64), np.zeros(4096), np.zeros(4096))

    def learn(self, *lane: int, weight: float = 1.0) -> None:
        used = np.array([np.count_nonzero(self.table[0])], np.int64)
        kernels.learn_lane(np.array(lane, np.int32), 0, len(lane), 0, kernels.LOGS, weight, *self.table, used)

    def nats(self, *lane: int) -> np.ndarray:
        out = np.empty(len(lane) + 1)
        events = np.array(lane, np.int32)
        kernels.surprisals(events, 0, len(lane), 0, kernels.LOGS, 0.1, np.full(len(lane) + 1, -1.0), *self.table, out)
        return out


def test_what_never_came_at_a_place_is_as_improbable_as_that_place_has_been_seen() -> None:
    """Once in a thousand times, and then one of ten events: not a thousand times a thousand against it."""
    model = Model()
    model.learn(1, 2, 3, weight=1000.0)
    model.learn(4, weight=10.0)
    surprise = model.nats(1, 2, 4)[2]
    assert np.log(1000.0) < surprise < np.log(1000.0) + np.log(50.0)


def test_forgetting_makes_the_usual_no_less_usual() -> None:
    model = Model()
    model.learn(1, 2, 3, weight=1000.0)
    before = model.nats(1, 2, 3)
    kernels.fade_counts(model.table[0], model.table[1], 0.5)
    np.testing.assert_allclose(model.nats(1, 2, 3), before, atol=0.01)
    assert model.nats(1, 2, 9)[2] > 4.0
