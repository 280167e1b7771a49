"""How improbable the sum of a window's surprises is: for the young, and where the detector knows what to expect."""

from __future__ import annotations

import pytest

from collector_processor.kernels.windows import Windows, exponent

NS = 1_000_000_000
COLUMNS = 9
PRIORS = {"bounded": (5.0, (0.05, 30.0, 0.2, 30.0)), "unbounded": (0.0, (0.6, 20.0, 0.6, 150.0))}


@pytest.mark.parametrize("piece", [0.0, 5.0])
def test_the_less_is_known_the_more_it_takes_to_be_unusual(piece: float) -> None:
    nats = [exponent(60.0, 80.0, 0.1, 0.3, piece, known) for known in (40.0, 400.0, 1e9)]
    assert nats[0] < nats[1] < nats[2]
    assert nats[2] > 1.5 * nats[0]
    assert exponent(8.0, 80.0, 0.1, 0.3, piece, 40.0) == 0.0


@pytest.mark.parametrize("kind", PRIORS)
def test_what_the_detector_expects_is_not_unusual(kind: str) -> None:
    """A batch whose chains weigh delays more than payments do: more surprise a call than ever, and none unexpected."""
    piece, prior = PRIORS[kind]
    windows = Windows(8, COLUMNS, 10 * NS, prior, 0.995, piece)
    slot = windows.add(7, 0, -1)
    now_ns = 0
    for _ in range(60):
        now_ns += 10 * NS
        windows.counts[slot, windows.column] = 30
        windows.sums[slot, windows.column] = 30 * 0.05
        windows.judge(now_ns, 5.0)
        windows.turn(now_ns)
    for column in range(COLUMNS):
        windows.counts[slot, column] = 30
        windows.sums[slot, column] = 30 * 0.5
    unexpected = float(windows.judge(now_ns, 5.0)[slot])
    windows.usual[slot] = 30 * 0.5
    expected = float(windows.judge(now_ns, 5.0)[slot])
    assert unexpected > 6.0
    assert expected == 0.0
