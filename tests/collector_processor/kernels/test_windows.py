"""Which observations of a chain become findings, and how far a window may deviate by what its past did.

The strongest become findings, and less is asked where an alarm is. Deviations that outlast an epoch again and again
widen what is usual; one of them does not. However many observations there are, a mean that is a little greater than
usual is no alarm.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.kernels.windows import Windows, strongest

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


EPOCH_NS = 10_000_000_000
SPANS = 50  # an epoch
PRIOR = (1.0, 20.0, 1.0, 30.0, 0.0, 10.0)


def dispersion(sums: list[float], *, shaken: bool = False) -> float:
    """What `Windows` learned from epochs of SPANS surprises whose sums deviate by `sums`, perhaps beside trouble."""
    windows = Windows(8, 9, EPOCH_NS, PRIOR, 0.995, 5.0)
    slot = windows.add(1, 0, -1)
    for epoch, deviation in enumerate(sums):
        windows.sums[slot, windows.open()] += SPANS + deviation
        windows.counts[slot, windows.open()] += SPANS
        windows.judge((epoch + 1) * EPOCH_NS, 8.0, 8.0)
        if shaken:
            windows.shaken_ns = (epoch + 1) * EPOCH_NS
        windows.turn((epoch + 1) * EPOCH_NS)
    return float(windows.dispersion[slot])


def test_deviations_that_outlast_an_epoch_again_and_again_widen_what_is_usual() -> None:
    rng = np.random.default_rng(1)
    single = rng.normal(0.0, np.sqrt(SPANS), 2000)
    swarms = np.repeat(rng.normal(0.0, np.sqrt(SPANS), 500), 4)
    assert dispersion(single.tolist()) < 1.15
    assert dispersion(swarms.tolist()) > 1.6
    assert dispersion(swarms.tolist(), shaken=True) < 1.15


def test_what_happened_once_teaches_no_swarm() -> None:
    rng = np.random.default_rng(2)
    usual = rng.normal(0.0, np.sqrt(SPANS), 400)
    once = usual.copy()
    once[200:212] += 1.5 * np.sqrt(SPANS)
    assert dispersion(once.tolist()) < 1.1 * dispersion(usual.tolist())


def level(per_epoch: float, spans: int, swing: float, piece: float) -> float:
    """The exponent of a window whose epochs sum up to `per_epoch` a span, after 200 that did to 0.5."""
    prior = (0.5, 20.0, 0.5, 30.0, swing, 10.0)
    windows = Windows(8, 9, EPOCH_NS, prior, 0.995, piece)
    slot = windows.add(1, 0, -1)
    out = 0.0
    for epoch in range(209):
        mean = 0.5 if epoch < 200 else per_epoch
        windows.sums[slot, windows.open()] += spans * mean
        windows.usual[slot, windows.open()] += spans * 0.5
        windows.counts[slot, windows.open()] += spans
        windows.judge((epoch + 1) * EPOCH_NS, 8.0, 0.0)
        out = float(windows.exponents[slot])
        if epoch < 208:
            windows.turn((epoch + 1) * EPOCH_NS)
    return out


def after_usual_times(excess: list[float]) -> float:
    """-ln of how improbable a window is whose last epochs deviate by `excess`, after a long usual time."""
    windows = Windows(8, 9, EPOCH_NS, PRIOR, 0.995, 5.0)
    slot = windows.add(1, 0, -1)
    for epoch, deviation in enumerate([0.0] * 60 + excess):
        windows.turn((epoch + 1) * EPOCH_NS)
        windows.sums[slot, windows.open()] += SPANS + deviation
        windows.counts[slot, windows.open()] += SPANS
    windows.judge((61 + len(excess)) * EPOCH_NS, 8.0, 8.0)
    return float(windows.level[slot])


def test_one_burst_is_no_alarm_and_what_lasts_counts_in_full() -> None:
    assert after_usual_times([500.0]) == 0.0
    assert after_usual_times([500.0, 30.0]) == after_usual_times([30.0, 30.0])
    assert (
        after_usual_times([500.0, 30.0, 30.0])
        == after_usual_times([30.0, 30.0, 30.0])
        > 2.0 * after_usual_times([30.0, 30.0])
        > 0.0
    )


@pytest.mark.parametrize("piece", [0.0, 5.0])
def test_no_number_of_observations_makes_what_is_slightly_more_than_usual_an_alarm(piece: float) -> None:
    assert level(0.8, 1000, 0.0, piece) > 50.0
    assert level(0.8, 1000, 0.5, piece) < 2.0
    assert level(8.0, 1000, 0.5, piece) > 20.0
    assert level(8.0, 4, 0.5, piece) > 10.0


def test_a_window_that_has_run_empty_is_quiet() -> None:
    windows = Windows(8, 9, EPOCH_NS, PRIOR, 0.995, 5.0)
    slot = windows.add(1, 0, -1)
    levels = []
    for epoch in range(20):
        if epoch < 5:
            windows.sums[slot, windows.open()] += 100.0 * SPANS
            windows.counts[slot, windows.open()] += SPANS
        reported = windows.judge((epoch + 1) * EPOCH_NS, 8.0, 8.0).tolist()
        levels.append(float(windows.level[slot]))
        assert reported == ([slot] if levels[-1] > 0.0 else [])
        windows.turn((epoch + 1) * EPOCH_NS)
        restored = Windows(8, 9, EPOCH_NS, PRIOR, 0.995, 5.0)
        restored.restore(windows.snapshot())
        assert restored.filled == windows.filled
    assert min(levels[4:11]) > 0.0
    assert levels[13:] == [0.0] * 7
    assert not any(windows.filled)
