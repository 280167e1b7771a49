"""What was acknowledged is not lost, nothing is told twice or in two ways, whatever happens: seeds of a simulation.

A failing seed is run again, with all that happened in it, by the command in the failure's text.
"""

from __future__ import annotations

import os
from itertools import product

import pytest

from collector_processor.model import Payload
from tests.simulation.world import CALM, TROUBLES, Outcome, Trouble, broken_promises, simulate

SEEDS = 2  # of each kind of world
SECONDS = (16, 40)  # of traffic: what ends early leaves a silence in which chains are told
SOAK_SEEDS = 2000  # of all kinds together


def command(name: str, seed: int, seconds: int) -> str:
    return f"python -m tests.simulation --trouble '{name}' --seed {seed} --seconds {seconds}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLES)
def test_every_promise_is_kept_in_every_world(name: str) -> None:
    for seed, seconds in product(range(SEEDS), SECONDS):
        assert broken_promises(seed, TROUBLES[name], seconds) == [], command(name, seed, seconds)


@pytest.mark.soak
@pytest.mark.parametrize("name", TROUBLES)
def test_every_promise_is_kept_in_very_many_worlds(name: str) -> None:
    if not os.environ.get("SPANCHAIN_SOAK"):
        pytest.skip("part of make soak")
    for seed in range(SEEDS, SEEDS + SOAK_SEEDS // len(TROUBLES)):
        seconds = SECONDS[seed % len(SECONDS)]
        assert broken_promises(seed, TROUBLES[name], seconds) == [], command(name, seed, seconds)


@pytest.mark.slow
def test_the_world_is_as_bad_as_it_says() -> None:
    """A simulation in which nothing happens shows nothing."""
    outcome, requests = simulate(3, Trouble())
    happened = " ".join(outcome.trace)
    assert outcome.crashes >= 5
    assert outcome.checkpoints >= 5
    for what in ("lost", "refused", "unheard", "checkpoint at"):
        assert what in happened, what
    assert len(received(outcome)) > len(requests)
    assert sum(b"interrupted_sequence" in line for line in outcome.verdicts.values()) > 0
    quiet, requests = simulate(3, CALM)
    assert quiet.crashes == quiet.checkpoints == 0
    assert len(received(quiet)) == len(requests)


def received(outcome: Outcome) -> list[Payload]:
    """What the engine got from senders: marks of time are empty."""
    return [payload for payload in outcome.processed.values() if payload.data]
