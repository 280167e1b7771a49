"""The windows of chain_sequence: sums kept along the way are the sums of their epochs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.kernels.sequence import push

FLOW = np.array([0, 1, 1], np.int32)
EPOCHS = 6


@given(
    st.lists(st.tuples(st.integers(1, 8), st.lists(st.integers(0, 5), min_size=3, max_size=3)), max_size=12),
    st.integers(1, EPOCHS),
)
def test_sums_are_those_of_the_epochs(pushed: list[tuple[int, list[int]]], short: int) -> None:
    rows = [np.zeros((EPOCHS, 4), np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)]
    flows = [np.zeros((EPOCHS, 2), np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64)]
    at = 0
    history = np.zeros((EPOCHS, 3), np.int64)
    for epochs, seen in pushed:
        counts = np.array(seen)
        at = push(counts, FLOW, epochs, short, at, *rows, *flows)
        assert not counts.any()
        history = np.concatenate([history, np.zeros((epochs - 1, 3), np.int64), [seen]])
        for window, size in ((1, short), (2, EPOCHS)):
            by_row = history[-size:].sum(axis=0)
            assert rows[window].tolist() == [*by_row.tolist(), 0]
            assert flows[window].tolist() == [by_row[0], by_row[1] + by_row[2]]
    assert at == sum(epochs for epochs, _ in pushed)
