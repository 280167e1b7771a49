"""Which observations of a chain become findings: the strongest, and less is asked where an alarm is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.kernels.windows import strongest

LEAST, HOLD, HIT = np.float32(6.0), np.float32(5.0), np.float32(2.0)
LEVEL = np.array([0.0, 9.0], np.float32)  # slot 1 is in alarm
CHAINS = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 1)), max_size=8), max_size=4)


def picked(chains: list[list[tuple[int, int]]], most: int) -> list[int]:
    first = np.cumsum([0] + [len(chain) for chain in chains])
    surprise = np.array([u for chain in chains for u, _ in chain], np.float32)
    slot = np.array([s for chain in chains for _, s in chain], np.int32)
    out = np.empty(min(surprise.size, len(chains) * most), np.int64)
    return out[: strongest(first, surprise, slot, LEVEL, LEAST, HOLD, HIT, most, out)].tolist()


def test_less_is_asked_of_elements_in_alarm() -> None:
    assert picked([[(5, 0), (3, 1), (6, -1), (1, 1), (3, -1)]], most=9) == [2, 1]


@given(CHAINS, st.integers(0, 4))
def test_each_chain_gives_its_strongest_in_order(chains: list[list[tuple[int, int]]], most: int) -> None:
    expected, at = [], 0
    for chain in chains:
        fitting = [i for i, (u, s) in enumerate(chain) if u >= LEAST or (u >= HIT and s == 1)]
        expected += [at + i for i in sorted(fitting, key=lambda i: -chain[i][0])[:most]]
        at += len(chain)
    assert picked(chains, most) == expected
