"""What counts of paths and flows are worth: rare paths come in clumps, and some flows come and go by design."""

from __future__ import annotations

import numpy as np
import pytest

from collector_processor.model import F64
from detectors.chain_sequence.distribution import NS, Distribution, Excess, Known

SLICE_S, EPOCH_S = 300.0, 10.0
EPOCHS = int(SLICE_S / EPOCH_S)
OPENING = 5 * 86_400 // 300  # the slice that tests begin in
SHARE = np.array([0.999, 0.001])


class Bench:
    """One flow with two paths, the second one rare."""

    def __init__(self) -> None:
        self.distribution = Distribution(SLICE_S, EPOCH_S)
        self.distribution.reserve(2, 1)
        self.flow = np.zeros(2, np.int32)
        self.slice = OPENING

    def pass_slice(self, usual: int, rare: int = 0, clumped: float = 1.0, share: F64 = SHARE) -> list[Excess]:
        """Chains spread over a slice, the rare ones in its last minute; what is out of range at its last boundary."""
        found: list[Excess] = []
        for epoch in range(1, EPOCHS + 1):
            now_ns = int((self.slice * SLICE_S + epoch * EPOCH_S) * NS)
            counts = np.array([usual // EPOCHS, rare if epoch == EPOCHS - 1 else 0])
            known = Known(np.ones(1), 1.0, np.zeros(2, np.bool_), share, np.zeros(2), np.ones(2), np.empty(2))
            ended = self.distribution.end_epoch(now_ns, counts, self.flow, known)
            found = ended.excess
            if ended.is_slice:
                self.distribution.end_slice(now_ns, share, self.flow, clumped)
        self.slice += 1
        return found


def worst(found: list[Excess], subject: str) -> float:
    """Nats of the most unusual count of `subject`."""
    return max((abs(excess.nats) for excess in found if excess.subject == subject), default=0.0)


def test_a_clump_on_a_rare_path_says_less_where_rare_paths_come_in_clumps() -> None:
    single, clumped = Bench(), Bench()
    for _ in range(6):
        single.pass_slice(300)
        clumped.pass_slice(300, clumped=4.0)
    alone = worst(single.pass_slice(300, rare=9), "row")
    among_clumps = worst(clumped.pass_slice(300, rare=9, clumped=4.0), "row")
    assert alone > 20.0
    assert among_clumps < alone / 2


def test_what_is_known_of_a_frequent_path_is_not_blurred_by_rare_ones() -> None:
    bench = Bench()
    for _ in range(24):
        bench.pass_slice(600, 150, clumped=10.0, share=np.array([0.8, 0.2]))
    assert bench.distribution.dispersion[0] == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("hours_away", [0, 1])
def test_the_end_of_what_began_before_our_eyes_is_no_drop_in_traffic(hours_away: int) -> None:
    """A session that opened an hour after the start may close; a flow that was always there may not fall silent."""
    bench = Bench()
    for _ in range(12 * hours_away):
        bench.pass_slice(0)
    for _ in range(24):
        bench.pass_slice(300)
    drop = worst(bench.pass_slice(0), "flow")
    assert drop == 0.0 if hours_away else drop > 20.0


def test_a_flow_that_came_back_after_hours_may_go_again() -> None:
    bench = Bench()
    for chains in [300] * 24 + [0] * 24 + [300] * 24:
        bench.pass_slice(chains)
    assert worst(bench.pass_slice(0), "flow") == 0.0


@pytest.mark.slow
def test_a_session_that_stays_away_is_a_drop_once_its_hours_are_known() -> None:
    bench = Bench()
    day = 288
    for slices in range(3 * day):
        bench.pass_slice(300 if 108 <= slices % day < 180 else 0)
    for _ in range(120):
        bench.pass_slice(0)
    assert worst(bench.pass_slice(0), "flow") > 20.0


def test_a_restored_one_goes_on_the_same() -> None:
    bench = Bench()
    for chains in [0] * 12 + [300] * 24:
        bench.pass_slice(chains, clumped=3.0)
    state, found = bench.distribution.snapshot(), bench.pass_slice(0, rare=5)
    bench.distribution = Distribution(SLICE_S, EPOCH_S)
    bench.distribution.restore(state)
    bench.slice -= 1
    assert bench.pass_slice(0, rare=5) == found
