"""One pass over chains: judged before they are learned, and the same however they come in batches."""

from __future__ import annotations

import numpy as np

from collector_processor.config import Config
from collector_processor.evaluation.baselines import UnseenEvent, baselines
from collector_processor.evaluation.prequential import Prequential
from collector_processor.model import ChainBatch, Symbols, VerdictBatch
from tests.builders import Node, chains, log, span


def normal(number: int) -> Node:
    return span("gateway:pay", 20 + number % 7, span("risk:check", 5, log("checked")), span("ledger:book", 3))


def odd() -> Node:
    return span("gateway:pay", 900, span("risk:check", 5, log("denied", severity=17)), span("fraud:hold", 3))


def stream(n: int = 400, symbols: Symbols | None = None) -> ChainBatch:
    roots = [odd() if number in {350, 380} else normal(number) for number in range(n)]
    return chains(symbols or Symbols(), roots)


def one(config: Config, batch: ChainBatch) -> Prequential:
    return Prequential(config, batch.symbols, {"unseen template": UnseenEvent()}, {"unseen template": "rec"})


def scores(verdicts: list[VerdictBatch]) -> np.ndarray:
    return np.concatenate([part.score for part in verdicts])


def test_any_grouping_gives_the_same_scores() -> None:
    batch = stream()
    whole = list(one(Config(), batch).feed(batch))
    judge = one(Config(), batch)
    parts = [v for cut in np.array_split(np.arange(len(batch)), 23) for v in judge.feed(batch.take(cut))]
    assert scores(whole).tobytes() == scores(parts).tobytes()


def test_a_chain_is_judged_before_it_is_learned_and_learned_after_its_quarantine() -> None:
    batch = stream()
    judge = one(Config(), batch)
    raw = np.concatenate([v.training["value"][:, 0] for v in judge.feed(batch)])
    quarantine = Config().decide.quarantine_s
    assert (raw[: int(quarantine)] > 0).all()
    assert (raw[int(quarantine) + 30 : 340] == 0).all()
    assert raw[[350, 380]].min() > 0


def test_trained_once_it_stands_still() -> None:
    batch = stream()
    judge = one(Config(), batch)
    judge.train(batch.take(np.arange(300)))
    odd_ones = batch.take(np.array([350, 350, 380]))
    first, again = judge.score(odd_ones), judge.score(odd_ones)
    assert first.score.tobytes() == again.score.tobytes()
    assert first.score.min() > judge.score(batch.take(np.arange(300, 340))).score.max()


def test_every_baseline_sees_what_it_is_made_to_see() -> None:
    batch = stream()
    for name, judge in baselines(Config(), batch.symbols).items():
        judge.train(batch.take(np.arange(300)))
        found = judge.score(batch.take(np.arange(300, 400)))
        high = set(np.argsort(-found.score)[:2].tolist())
        assert high == {50, 80}, name


def test_a_long_silence_is_crossed_at_once() -> None:
    batch = stream()
    late = chains(batch.symbols, [normal(1)], start_s=1_800_000_000, first_trace=9999)
    judge = one(Config(), batch)
    list(judge.feed(batch))
    assert len(next(judge.feed(late))) == 1
