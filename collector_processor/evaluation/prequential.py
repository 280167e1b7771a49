"""Detectors and decide on closed chains alone, epoch by epoch as in the engine: for baselines and offline sets.

How it works. Chains are fed in closing order and cut at epoch boundaries. Within an epoch they are judged; at its end
windows advance, and chains are learned once their quarantine is over, as far as decide clears them. No incident is
opened here, so none lowers the threshold either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from collector_processor.config import Config
from collector_processor.decide.verdicts import Decider
from collector_processor.model import Bool, ChainBatch, Symbols, VerdictBatch
from detectors.protocol import Detector

NS = 1_000_000_000


class Prequential:
    """One pass over a stream of chains: judge first, learn later."""

    def __init__(
        self, config: Config, symbols: Symbols, detectors: Mapping[str, Detector], components: Mapping[str, str]
    ) -> None:
        """`components` as `detectors.registry.components` gives them."""
        self.detectors = dict(detectors)
        self.decider = Decider(config, symbols, detectors, components)
        self._epoch_ns = int(config.engine.epoch_s * NS)
        self._quarantine_ns = int(config.decide.quarantine_s * NS)
        self._boundary_ns = 0
        self._judged: list[tuple[ChainBatch, npt.NDArray[Any]]] = []
        self._waiting: deque[tuple[int, list[tuple[ChainBatch, npt.NDArray[Any]]]]] = deque()

    def feed(self, batch: ChainBatch) -> Iterator[VerdictBatch]:
        """The verdicts of `batch`, whose chains are in closing order and not before those fed earlier."""
        epoch = batch.closed_ns // self._epoch_ns
        cuts = np.flatnonzero(np.diff(epoch)) + 1
        for part in np.split(np.arange(len(batch)), cuts):
            if part.size:
                self._advance(int(batch.closed_ns[part[0]]))
                yield self._judge(batch if part.size == len(batch) else batch.take(part))

    def train(self, batch: ChainBatch, normal: Bool | None = None) -> None:
        """Learns chains known to be `normal` (all of them by default) at once: the training part of an offline set."""
        epoch = batch.closed_ns // self._epoch_ns
        cuts = np.flatnonzero(np.diff(epoch)) + 1
        every = np.ones(len(batch), np.bool_) if normal is None else normal
        for part in np.split(np.arange(len(batch)), cuts):
            if part.size:
                chains = batch.take(part)
                verdicts = self._judge(chains)
                self._judged = []
                self._boundary_ns = (int(chains.closed_ns[-1]) // self._epoch_ns + 1) * self._epoch_ns
                self._end_epoch(self._boundary_ns)
                self._learn([(chains, verdicts.training)], every[part])

    def score(self, batch: ChainBatch) -> VerdictBatch:
        """Verdicts by the present state; nothing is learned from them, now or later."""
        return self.decider.decide(batch, {name: d.score(batch) for name, d in self.detectors.items()})

    def _judge(self, batch: ChainBatch) -> VerdictBatch:
        verdicts = self.score(batch)
        self._judged.append((batch, verdicts.training))
        return verdicts

    def _advance(self, now_ns: int) -> None:
        if self._boundary_ns == 0:
            self._boundary_ns = (now_ns // self._epoch_ns + 1) * self._epoch_ns
        while self._boundary_ns <= now_ns:
            self._end_epoch(self._boundary_ns)
            if self._judged:
                self._waiting.append((self._boundary_ns, self._judged))
                self._judged = []
            while self._waiting and self._waiting[0][0] <= self._boundary_ns - self._quarantine_ns:
                self._learn(self._waiting.popleft()[1])
            idle = not self._judged and not self._waiting
            self._boundary_ns = (now_ns // self._epoch_ns + 1 if idle else self._boundary_ns // self._epoch_ns + 1) * (
                self._epoch_ns
            )

    def _end_epoch(self, boundary_ns: int) -> None:
        for detector in self.detectors.values():
            detector.advance(boundary_ns)
        self.decider.advance(boundary_ns)

    def _learn(self, epoch: list[tuple[ChainBatch, npt.NDArray[Any]]], normal: Bool | None = None) -> None:
        batch = ChainBatch.concat([chains for chains, _ in epoch])
        training = np.concatenate([state for _, state in epoch])
        if normal is None:
            normal = self.decider.clear(batch, training)
        for detector in self.detectors.values():
            detector.learn(batch, normal)
        self.decider.learn(batch, training, normal)
