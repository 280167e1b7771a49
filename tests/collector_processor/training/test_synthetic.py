"""Made-up systems: the same for the same seed, different for another, and fit to be learned from."""

from __future__ import annotations

from collector_processor.kernels.lanes import CALLS, LOGS, TOP
from collector_processor.training.synthetic import make_system


def test_a_seed_gives_one_system() -> None:
    assert make_system(3) == make_system(3)
    assert make_system(3) != make_system(4)


def test_lanes_are_of_the_systems_own_events_and_of_their_kind() -> None:
    for seed in range(20):
        system = make_system(seed)
        assert len(system.lanes) >= 20
        for head, kind, events, weight in system.lanes:
            assert weight > 0
            assert head == TOP or not system.is_log[head]
            assert kind in {LOGS, CALLS}
            assert all(system.is_log[event] == (kind == LOGS) for event in events)


def test_some_systems_speak_made_up_words() -> None:
    known = [any("received" in text for text in make_system(seed).texts) for seed in range(20)]
    assert any(known)
    assert not all(known)
