"""Drift that is too slow for everybody else, and what looks like it and is not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from collector_processor.config import Config
from collector_processor.decide import explain
from collector_processor.model import ChainBatch, Findings, Kind, Level, Symbols
from detectors.shadow import Shadow, build
from tests.builders import NS, chains, span

HOUR = 3600


class Bench:
    """A day-and-night load of 30 chains an hour; `hours` of it under a slowdown and an error share."""

    def __init__(self, **config: Any) -> None:
        self.symbols = Symbols()
        section = Config().detectors.shadow.model_copy(update=config)
        whole = Config()
        self.detector: Shadow = build(
            whole.model_copy(update={"detectors": whole.detectors.model_copy(update={"shadow": section})}), self.symbols
        )
        self.rng = np.random.default_rng(0)
        self.base = chains(self.symbols, [span("gateway:pay", 50, span("ledger:book", 20))] * 30)
        self.hour = 0
        self.found: list[tuple[int, Findings]] = []

    def batch(self, factor: float, errors: float) -> ChainBatch:
        daily = 1.0 + 0.3 * math.sin(2 * math.pi * self.hour / 24)
        noise = np.exp(self.rng.normal(0, 0.3, self.base.records)).astype(np.float32)
        ledger = self.base.event == self.base.event[1]
        slower = np.where(ledger, factor, 1.0).astype(np.float32)
        status = np.where(ledger & (self.rng.random(self.base.records) < errors), 2, 0).astype(np.uint8)
        closed = np.full(len(self.base), int((1_700_000_000 + self.hour * HOUR) * NS))
        return replace(
            self.base, self_time=self.base.self_time * noise * slower * daily, status=status, closed_ns=closed
        )

    def run(self, hours: int, factor: Any = 1.0, errors: Any = 0.0, normal: bool = True) -> list[int]:
        """The hours, from the beginning of this run, in which there were findings."""
        begun, told = self.hour, []
        for _ in range(hours):
            since = self.hour - begun
            batch = self.batch(
                factor(since) if callable(factor) else factor, errors(since) if callable(errors) else errors
            )
            found = self.detector.advance(int(batch.closed_ns[0]) + NS)
            self.detector.learn(batch, np.full(len(batch), normal))
            if found.size:
                told.append(since)
                self.found.append((since, found))
            self.hour += 1
        return told


def test_half_a_per_cent_an_hour_is_told_within_two_hundred_hours() -> None:
    bench = Bench()
    assert bench.run(48) == []
    told = bench.run(200, factor=lambda hour: 1.005**hour)
    assert told
    assert 60 < told[0] < 150
    _, found = bench.found[0]
    assert found.size == 1
    assert (found["kind"][0], found["level"][0]) == (Kind.DRIFT, Level.OPERATION)
    assert bench.symbols.services.text[found["service"][0]] == "ledger"
    assert found["actual"][0] > 1.4 * found["expected"][0]
    evidence = bench.detector.evidence(found[0])
    one = explain.said(bench.symbols, found[0], evidence)
    assert explain.sentence(one).startswith("Ledger book itself takes 1.4 times as long as")


def test_errors_that_creep_up_are_told() -> None:
    bench = Bench()
    bench.run(30)
    assert bench.run(200, errors=lambda hour: 0.001 * hour)
    found = bench.found[0][1]
    assert "fails in" in bench.detector.evidence(found[0])["text"]


@pytest.mark.slow
def test_day_and_night_and_a_year_of_noise_are_no_drift() -> None:
    assert Bench().run(24 * 60) == []


def test_an_outage_is_none_of_its_business() -> None:
    """What is not learned as normal does not count: other detectors speak about it."""
    bench = Bench()
    bench.run(48)
    assert bench.run(72, factor=5.0, normal=False) == []


def test_a_step_that_everybody_accepted_is_told_for_a_day_and_then_is_the_reference() -> None:
    bench = Bench()
    bench.run(48)
    told = bench.run(120, factor=2.0)
    assert 24 <= len(told) <= 50
    assert bench.run(48, factor=2.0) == []
    assert bench.run(48, factor=4.0) != []


def test_a_finding_lasts_between_the_hours() -> None:
    bench = Bench()
    bench.run(48)
    bench.run(20, factor=3.0)
    now = 1_700_000_000 * NS + bench.hour * HOUR * NS
    first = bench.detector.advance(now + NS)
    again = bench.detector.advance(now + 10 * NS)
    assert first.size
    assert first.tobytes() == again.tobytes()
    first["p"] = 1.0
    assert bench.detector.advance(now + 20 * NS).tobytes() == again.tobytes()


def test_it_says_why_it_is_quiet() -> None:
    bench = Bench()
    assert "24 h" in str(bench.detector.describe_state())
    bench.run(30)
    assert bench.detector.describe_state() is None


def test_a_rare_operation_is_not_compared() -> None:
    bench = Bench(learn_min=5000)
    bench.run(30)
    assert bench.run(30, factor=4.0) == []
