"""The engine's promises: same bytes out for same bytes in, whoever looks when; snapshots; every record counted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import orjson
import pytest
from otlp import MS, T0, log, logs, span, traces
from snapshots import digest

from collector_processor.config import Config
from collector_processor.decide.verdicts import incident_row, verdict_rows
from collector_processor.engine import Engine, Output
from collector_processor.model import ChainBatch, Payload, Signal

SECOND = 1_000_000_000
SERVICES = ("gateway", "order", "risk", "ledger")


def config(**join: Any) -> Config:
    limits = {"chains_max": 5000, "records_max": 50_000, "closed_remembered_max": 10_000}
    return Config.model_validate({"join": limits | join})


def payment(trace: int, at_ms: float, steps: int = 4, slow: float = 1.0) -> tuple[list[Any], list[Any]]:
    """A payment through `steps` services: spans and logs."""
    spans, lines = [], []
    for step, service in enumerate(SERVICES[:steps]):
        ms = (40 - 10 * step) * slow
        spans.append(span(trace, step + 1, step, name=f"{service} work", service=service, start_ms=at_ms + step, ms=ms))
        lines.append(
            log(f"{service} did {trace} in {ms} ms", trace, step + 1, service=service, at_ms=at_ms + step + 0.5)
        )
    return spans, lines


@cache
def traffic(seconds: int, seed: int = 1, broken_from: int | None = None, begin: int = 0) -> tuple[Payload, ...]:
    """Four payments a second, a payload of each signal a second, from second `begin` on; from second `broken_from` on
    they stop half way."""
    out, chance = [], random.Random(seed)
    for second in range(begin, begin + seconds):
        spans, lines = [], []
        for n in range(4):
            steps = 2 if broken_from is not None and second >= broken_from and n else 4
            more = payment(1 + second * 4 + n, second * 1000 + 200 * n, steps, chance.uniform(0.8, 1.3))
            spans += more[0]
            lines += more[1]
        now = T0 + (second + 1) * SECOND
        out.append(Payload(Signal.TRACES, "default", traces(*spans), now))
        out.append(Payload(Signal.LOGS, "default", logs(*lines), now))
    return tuple(out)


@dataclass
class Run:
    """What an engine said, as the lines that would be written."""

    lines: list[bytes] = field(default_factory=list)

    def take(self, output: Output) -> None:
        for verdicts in output.verdicts:
            rows = verdict_rows(verdicts, np.arange(len(verdicts)))
            self.lines += [orjson.dumps(row, option=orjson.OPT_SORT_KEYS) for row in rows]
        self.lines += [
            orjson.dumps(incident_row(incident), option=orjson.OPT_SORT_KEYS) for incident in output.incidents
        ]


def run(
    payloads: Sequence[Payload], seed: int = 0, tick_s: float | None = None, restart_at: int | None = None
) -> list[bytes]:
    engine, said = Engine(config(), seed), Run()
    for number, payload in enumerate(payloads):
        if tick_s is not None:
            now = engine.now_ns or payload.arrival_ns
            while now < payload.arrival_ns:
                said.take(engine.tick(now))
                now += int(tick_s * SECOND)
        said.take(engine.process((payload,), payload.arrival_ns))
        if number == restart_at:
            state, engine = engine.snapshot(), Engine(config(), seed)
            engine.restore(state)
    said.take(engine.flush())
    return said.lines


@pytest.mark.slow
def test_two_runs_give_the_same_bytes_whatever_the_seed() -> None:
    payloads = traffic(240, broken_from=200)
    first = run(payloads)
    assert len(first) >= 960
    assert run(payloads) == first
    assert run(payloads, seed=99) == first


@pytest.mark.slow
def test_how_often_anybody_ticks_changes_no_verdict() -> None:
    payloads = traffic(90, broken_from=60)
    assert sorted(run(payloads, tick_s=0.3)) == sorted(run(payloads))


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 137, 330, 470])
def test_a_restored_engine_goes_on_as_if_nothing_had_happened(at: int) -> None:
    assert run(traffic(240, broken_from=200), restart_at=at) == undisturbed()


@cache
def undisturbed() -> list[bytes]:
    return run(traffic(240, broken_from=200))


def test_duplicates_and_disorder_within_the_wait_change_no_verdict_id() -> None:
    payloads = traffic(60)
    chaos = random.Random(5)
    mixed = []
    for first in range(0, len(payloads), 4):
        now = payloads[min(first + 3, len(payloads) - 1)].arrival_ns
        group = [*payloads[first : first + 4], *chaos.sample(payloads[first : first + 4], 2)]
        chaos.shuffle(group)
        mixed += [Payload(p.signal, p.tenant, p.data, now) for p in group]
    assert ids(run(mixed)) == ids(run(payloads))


def ids(lines: list[bytes]) -> list[str]:
    rows = [orjson.loads(line) for line in lines]
    return sorted(row["verdict_id"] for row in rows if "verdict_id" in row)


def test_every_record_is_in_a_chain_or_counted() -> None:
    engine = Engine(config(chains_max=300, records_max=2000))
    chaos = random.Random(3)
    sent = 0
    closed = 0
    for payload in traffic(120):
        data = payload.data if chaos.random() > 0.1 else payload.data[: len(payload.data) // 2]
        repeat = 2 if chaos.random() < 0.2 else 1
        for _ in range(repeat):
            engine.process((Payload(payload.signal, "default", data, payload.arrival_ns),), payload.arrival_ns)
    engine.flush()
    counted = engine.joiner.counters()
    sent = sum(engine.received.values())
    lost = sum(engine.rejected.values()) + sum(
        counted[name]
        for name in ("late_spans", "late_logs", "oversize", "orphans", "duplicate_spans", "duplicate_logs")
    )
    closed = engine.records_closed
    assert sent == closed + lost
    assert counted["duplicate_spans"] + counted["late_spans"] > 0
    assert sum(engine.rejected.values()) > 0


def test_time_may_jump_by_years_without_work_for_every_epoch() -> None:
    engine = Engine(config())
    (spans, lines) = traces(*payment(1, 0)[0]), logs(*payment(1, 0)[1])
    engine.process((Payload(Signal.TRACES, "default", spans, T0), Payload(Signal.LOGS, "default", lines, T0)), T0)
    later = T0 + 10 * 365 * 86_400 * SECOND
    output = engine.tick(later)
    assert sum(len(verdicts) for verdicts in output.verdicts) == 1
    assert engine.now_ns == later


def silence(hours: float, tick_s: float | None, restored: Sequence[float] = ()) -> tuple[list[str], str]:
    """What is said, sorted, of traffic with so long a silence in it, when time is told every `tick_s` seconds in it or
    not at all, and the engine exchanged for a restored one at `restored`, shares of it; and a digest of the end."""
    engine, said = Engine(config()), Run()
    seconds, silent_s = 150, int(hours * 3600)
    for payload in traffic(seconds, broken_from=120):
        said.take(engine.process((payload,), payload.arrival_ns))
    begun = engine.now_ns
    ticks = np.arange(0, silent_s, tick_s or silent_s).tolist()
    for after_s in sorted([*ticks, *(share * silent_s for share in restored)]):
        said.take(engine.tick(begun + int(after_s * SECOND)))
        if after_s not in ticks:
            state, engine = engine.snapshot(), Engine(config())
            engine.restore(state)
    for payload in traffic(90, seed=2, begin=seconds + silent_s):
        said.take(engine.process((payload,), payload.arrival_ns))
    said.take(engine.flush())
    return sorted(line.decode() for line in said.lines), digest(engine.snapshot())


@pytest.mark.slow
@pytest.mark.parametrize("hours", [0.1, pytest.param(0.9, marks=pytest.mark.slow), 1.5])  # it sleeps after one
def test_how_time_is_told_in_a_silence_changes_nothing(hours: float) -> None:
    """Neither what is said nor what is known: told every second or ten, not at all, or to engines restored in it."""
    lines, state = silence(hours, None)
    assert sum('"state":"opened"' in line for line in lines) > 0
    for tick_s, restored in ((1.0, ()), (7.3, (0.5,)), (10.0, (0.02, 0.5, 0.99)), (None, (0.02, 0.5, 0.99))):
        assert silence(hours, tick_s, restored) == (lines, state), (tick_s, restored)


def test_an_engine_that_sleeps_wants_nothing_until_a_record_comes() -> None:
    engine = Engine(config())
    first, late = traffic(1)[0], traffic(1, begin=90_000)[0]
    engine.process((first,), first.arrival_ns)
    engine.tick(first.arrival_ns + 3 * 3600 * SECOND)
    assert not engine.is_due(first.arrival_ns + 20 * 3600 * SECOND)
    engine.process((late,), late.arrival_ns)
    assert engine.is_due(late.arrival_ns + 10 * SECOND)
    assert sum(len(verdicts) for verdicts in engine.flush().verdicts) == 4


def test_a_verdict_has_the_time_its_chain_was_due_not_when_somebody_looked() -> None:
    engine = Engine(config(wait_initial_s=6))
    engine.process((Payload(Signal.TRACES, "default", traces(*payment(1, 0)[0]), T0),), T0)
    (verdicts,) = engine.tick(T0 + 8 * SECOND).verdicts
    assert verdicts.chains.closed_ns.tolist() == [T0 + 6 * SECOND]
    assert verdicts.chains.end_ns.tolist() == [T0 + 40 * MS]


def test_after_a_silence_all_is_learned_in_one_go_or_epoch_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, learned = Engine(config()), {"online": list[int](), "retrieval": list[int]()}
    for name, sizes in learned.items():
        detector = engine.detectors[name]

        def learn(chains: ChainBatch, normal: Any, sizes: list[int] = sizes, learn: Any = detector.learn) -> None:
            sizes.append(len(chains))
            learn(chains, normal)

        monkeypatch.setattr(detector, "learn", learn)
    for payload in traffic(60):
        engine.process((payload,), payload.arrival_ns)
    engine.tick(engine.now_ns + 200 * SECOND)
    assert learned == {"online": [], "retrieval": []}
    late = traffic(1, begin=300)[0]
    engine.process((late,), late.arrival_ns)
    engine.flush()
    assert sum(learned["online"]) == sum(learned["retrieval"]) == 60 * 4
    assert learned["retrieval"] == [240]
    assert len(learned["online"]) >= 6, "in epochs of ten seconds"


def bounded(records_max: int) -> Engine:
    """An engine whose epochs may have a tenth of `records_max` wait each."""
    limits = {"chains_max": 5000, "records_max": 50_000, "closed_remembered_max": 10_000}
    return Engine(Config.model_validate({"join": limits, "engine": {"quarantine_records_max": records_max}}))


def waiting(engine: Engine) -> list[tuple[int, list[str], int]]:
    """(boundary, trace ids, records) of each epoch in quarantine."""
    return [
        (boundary, [chains.trace_id(c) for c in range(len(chains))], chains.records)
        for boundary, (chains, _) in engine._quarantine
    ]


def test_of_too_many_chains_a_sample_waits_that_depends_on_no_grouping_and_the_rest_is_counted() -> None:
    payloads = traffic(60)
    whole, alone, ticked = bounded(10_000), bounded(1_500), bounded(1_500)
    for payload in payloads:
        for engine in (whole, alone):
            engine.process((payload,), payload.arrival_ns)
        for part in range(1, 10):
            ticked.tick(payload.arrival_ns - SECOND + part * SECOND // 10)
        ticked.process((payload,), payload.arrival_ns)
    assert whole.chains_not_learned == 0
    assert waiting(ticked) == waiting(alone)
    assert ticked.chains_not_learned == alone.chains_not_learned > 0
    for (_, chosen, records), (_, every, _) in zip(waiting(alone), waiting(whole), strict=True):
        assert records <= 150
        assert chosen == [trace for trace in every if trace in chosen]  # in the order in which they were closed
        assert len(chosen) <= 150 // 8
        assert len(chosen) == len(every) or len(chosen) >= 150 // 8 // 2  # a draw: about as many as have room
    left = sum(len(every) for _, every, _ in waiting(whole)) - sum(len(chosen) for _, chosen, _ in waiting(alone))
    assert alone.chains_not_learned == left


def test_a_bounded_quarantine_goes_through_a_snapshot() -> None:
    first, second = bounded(1_500), bounded(1_500)
    said, restored = Run(), Run()
    payloads = traffic(200, broken_from=160)
    for number, payload in enumerate(payloads):
        said.take(first.process((payload,), payload.arrival_ns))
        restored.take(second.process((payload,), payload.arrival_ns))
        if number in (90, 301):
            state, second = second.snapshot(), bounded(1_500)
            second.restore(state)
            assert second.chains_not_learned == first.chains_not_learned > 0
            assert waiting(second) == waiting(first)
    assert restored.lines == said.lines
