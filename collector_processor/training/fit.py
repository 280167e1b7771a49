"""Fits the network to systems of lanes, against two kinds of imbalance.

How it works. A step takes one system, draws lanes by the square root of their counts, and lowers the cross-entropy of
each next event among all events of the system. Rare events weigh more in the loss, and in the input frequent events are
masked more often than rare ones, so that the network cannot live on what always comes (frequency masking, LogSD). The
last tenth of the lanes, chosen by hash, is held out; `held_out_nats` judges a model or an n-gram table on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import nn

from collector_processor.kernels.lanes import TOP
from collector_processor.model import F32, F64, I64, Bool
from collector_processor.training.network import Network
from collector_processor.training.synthetic import System
from detectors.sequence_transformer.tokens import FEATURES, LENGTH, end_features, head_features, text_features

BATCH = 64
CANDIDATES_MAX = 512
MASK = 0.25  # share of the most frequent events that is masked
RARE_POWER = 0.3  # weight of an event in the loss: frequency to the minus this
SMOOTHING = 0.1  # of the targets: the model must not be sure of what it has seen elsewhere only
HELD_OUT = 10  # one lane in so many


@dataclass(slots=True)
class Prepared:
    """A system as arrays. Row `events` of `features` is the end."""

    features: F32  # [events + 1, FEATURES]
    heads: F32  # [lanes, FEATURES]
    lanes: list[I64]
    weight: F64  # [lanes] chance of being drawn
    rarity: F32  # [events + 1] weight in the loss
    masked: F32  # [events] chance of being masked in the input
    held_out: Bool  # [lanes]


def prepare(system: System) -> Prepared:
    """Arrays of a system; lanes longer than the model sees are cut."""
    features = np.array(
        [text_features(text, is_log=is_log) for text, is_log in zip(system.texts, system.is_log, strict=True)]
        + [end_features()]
    )
    lanes = [np.array(events[: LENGTH - 1], np.int64) for _, _, events, _ in system.lanes]
    heads = np.array([head_features(None if h == TOP else features[h], kind) for h, kind, _, _ in system.lanes])
    count = np.array([weight for *_, weight in system.lanes])
    frequency = np.ones(len(features))
    for lane, times in zip(lanes, count, strict=True):
        np.add.at(frequency, lane, math.sqrt(times))
        frequency[-1] += math.sqrt(times)
    share = frequency / frequency.max()
    held_out = np.array([crc32(repr(lane[:3]).encode()) % HELD_OUT == 0 for lane in system.lanes])
    return Prepared(
        features=features,
        heads=heads.reshape(-1, FEATURES),
        lanes=lanes,
        weight=np.sqrt(count),
        rarity=np.clip(share**-RARE_POWER, 1.0, 8.0).astype(np.float32),
        masked=(MASK * share[:-1]).astype(np.float32),
        held_out=held_out,
    )


def batch_of(part: Prepared, chosen: I64, rng: np.random.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [b, n, FEATURES], targets [b, n], -1 beyond the end) of lanes; masked when `rng` is given."""
    longest = max(part.lanes[i].size for i in chosen) + 1
    tokens = np.zeros((chosen.size, longest, FEATURES), np.float32)
    targets = np.full((chosen.size, longest), -1, np.int64)
    for row, i in enumerate(chosen.tolist()):
        lane = part.lanes[i]
        tokens[row, 0] = part.heads[i]
        tokens[row, 1 : lane.size + 1] = part.features[lane]
        if rng is not None:
            tokens[row, 1 : lane.size + 1][rng.random(lane.size) < part.masked[lane]] = 0.0
        targets[row, : lane.size], targets[row, lane.size] = lane, len(part.features) - 1
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def fit(
    systems: Sequence[Prepared],
    *,
    steps: int,
    seed: int,
    start: Network | None = None,
    rate: float = 2e-3,
    report: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Network:
    """A network trained for `steps` steps, from `start` or from noise; one thread, so that a seed gives one result."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    network = start or Network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps, pct_start=0.1)
    network.train()
    for step in range(steps):
        part = systems[int(rng.integers(len(systems)))]
        usable = np.flatnonzero(~part.held_out) if not part.held_out.all() else np.arange(len(part.lanes))
        weight = part.weight[usable] / part.weight[usable].sum()
        chosen = rng.choice(usable, min(BATCH, usable.size), p=weight)
        tokens, targets = batch_of(part, chosen, rng)
        loss = loss_of(network, part, tokens, targets, rng)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            report(step, float(loss.detach()))
    network.eval()
    return network


def loss_of(
    network: Network, part: Prepared, tokens: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """Weighted cross-entropy among all events of the system, or a sample of them with the batch's own."""
    size = len(part.features)
    candidates = np.arange(size)
    if size > CANDIDATES_MAX:
        own = np.unique(targets[targets >= 0].numpy())
        others = rng.choice(size - 1, CANDIDATES_MAX, replace=False)
        candidates = np.union1d(own, np.append(others, size - 1))
    place = np.full(size, -100)
    place[candidates] = np.arange(candidates.size)
    queries, vectors = network(tokens, torch.from_numpy(part.features[candidates]))
    flat = targets.flatten()
    known = flat >= 0
    logits = (queries @ vectors.T).flatten(0, 1)[known]
    wanted = torch.from_numpy(place)[flat[known]]
    weight = torch.from_numpy(part.rarity[candidates])
    return nn.functional.cross_entropy(logits, wanted, weight=weight, label_smoothing=SMOOTHING)


def held_out_nats(network: Network, systems: Sequence[Prepared]) -> float:
    """Mean -ln P per event over the held-out lanes, each distinct lane once; NaN when there are none."""
    total, count = 0.0, 0
    with torch.no_grad():
        for part in systems:
            held = np.flatnonzero(part.held_out)
            for lo in range(0, held.size, BATCH):
                tokens, targets = batch_of(part, held[lo : lo + BATCH], None)
                queries, vectors = network(tokens, torch.from_numpy(part.features))
                logits = (queries @ vectors.T).flatten(0, 1)
                total += float(nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="sum"))
                count += int((targets >= 0).sum())
    return total / count if count else math.nan
