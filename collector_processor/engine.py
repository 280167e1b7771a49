"""The engine: payloads in, verdicts and incidents out. Pure: no I/O, no thread, no clock; time is an argument.

How it works. `process` decodes payloads and joins their records; `tick` closes the chains that are due and judges
them. Time is cut in epochs. Within one, the state of detectors and of decide stands still, so a chain's verdict does
not depend on which others are judged in the same call, nor on how often `tick` is called. At each boundary, in this
order: what is due is closed and judged; models announced for this boundary are taken into use; detectors look at their
windows (`advance`); incidents are judged; the joiner learns how long to wait; and it is settled which of the chains
whose quarantine is over are normal. Detectors learn those before the next chain is judged: what came up while there was
none, in one go, or epoch by epoch where that is better (`learns_by_epoch`). Of an epoch with more records than its
share of the quarantine, which is bounded, a sample by content waits there. How large a share is settled by the epoch
before, so that what is drawn is drawn as chains are judged, and at the boundary only where traffic grew. The same
payloads with the same times give the same output, byte for byte.

After a while without chains, and with no record open or come, only every sixth boundary is gone through; after
IDLE_EPOCHS_MAX epochs none, but for a change of model that is due, until a record comes: whether time goes on, stands
still or jumps then makes no difference. An incident that is still seen when the engine falls asleep stays open so long.

    bytes ─ decode ─ join ─ close ─ score ─ decide ─┬─ verdicts
                              │                     └─ quarantine ─ learn
                              └── windows ─ incidents
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from collector_processor.config import Config
from collector_processor.decide.calibrate import drawn_hash
from collector_processor.decide.incidents import Incidents
from collector_processor.decide.verdicts import Decider
from collector_processor.decode.decoder import Decoder
from collector_processor.join.joiner import Joiner
from collector_processor.model import (
    COLUMNS,
    Bool,
    ChainBatch,
    Incident,
    Payload,
    Signal,
    Symbols,
    VerdictBatch,
    all_findings,
    no_findings,
)
from detectors.protocol import Detector, Reloadable
from detectors.registry import build, components

SECOND = 1_000_000_000
SNAPSHOT_VERSION = 1
Judged = tuple[ChainBatch, npt.NDArray[Any]]  # chains, and what decide needs to learn from them
Lesson = tuple[ChainBatch, Bool]  # chains, and which of them are normal
IDLE_EPOCHS = 9  # epochs without any chain after which only every IDLE_STRIDE-th boundary is judged
IDLE_STRIDE = 6
IDLE_EPOCHS_MAX = 360  # epochs without any chain after which no boundary is judged: the engine sleeps
SAMPLED_SHORT = 0.95  # of its share is what an epoch is sampled down to, so that a little more traffic fits too


@dataclass(slots=True)
class Output:
    """What one call gave, in order."""

    verdicts: list[VerdictBatch] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)


class Engine:
    """One engine serves one shard of traces. Not thread-safe: its owner calls it from one thread."""

    def __init__(self, config: Config, seed: int = 0) -> None:
        """seed: keys the hashes of names that come from outside; choose it at random where input may be hostile."""
        self.config = config
        self.seed = seed
        self.symbols = Symbols(
            services_max=config.decode.services_max,
            instances_max=config.decode.instances_max,
            events_max=config.decode.events_max,
            flows_max=config.decode.flows_max,
            paths_max=config.decode.paths_max,
        )
        self.decoder = Decoder(config.decode, config.join, self.symbols, seed, config.redaction)
        self.joiner = Joiner(config.join, self.symbols, self.decoder.attributes, seed)
        self.detectors: dict[str, Detector] = build(config, self.symbols)
        self.decider = Decider(config, self.symbols, self.detectors, components(list(self.detectors)))
        self.incidents = Incidents(config.decide, self.symbols, self.detectors)
        self.now_ns = 0
        self.received = {Signal.TRACES: 0, Signal.LOGS: 0}
        self.rejected: dict[tuple[Signal, str], int] = {}
        self.chains_closed = [0, 0, 0]  # per Outcome
        self.records_closed = 0
        self.chains_not_learned = 0  # for their epoch had more records than its share of the quarantine
        self._epoch_ns = int(config.engine.epoch_s * SECOND)
        self._quarantine_ns = int(config.decide.quarantine_s * SECOND)
        epochs = self._quarantine_ns // self._epoch_ns + 1
        self._epoch_records_max = max(1, config.engine.quarantine_records_max // epochs)
        self._boundary_ns = 0  # the next one; 0 before the first call
        self._idle_epochs = 0
        self._is_stirred = False  # whether a record has come since the last boundary, or was open then
        self._judged: list[Judged] = []  # in the present epoch, as far as sampled
        self._epoch_chains = self._epoch_records = 0  # judged in it
        self._sampled = 1.0  # share of its chains that waits
        self._quarantine: deque[tuple[int, Judged]] = deque()  # the boundary at which each epoch ended, ascending
        self._lessons: list[Lesson] = []  # to be learned before the next chain is judged
        self._changes: deque[tuple[int, str, Any]] = deque()  # from which boundary on, which detector, which model

    # -- in ----------------------------------------------------------------------------------------------------------

    def process(self, payloads: Iterable[Payload], now_ns: int) -> Output:
        """Takes in payloads that arrived at `now_ns` (never before an earlier call's). An empty one only tells the
        time."""
        output = self._advance_to(now_ns)
        for payload in payloads:
            if not payload.data:
                continue
            batch = self.decoder.decode(payload)
            if batch.rejected:
                self._note_rejected(payload.signal, batch.rejected)
            records = len(batch.rows)
            if not records:
                continue
            self.received[payload.signal] += records
            self._is_stirred = True
            for chains in self.joiner.append(batch, self.now_ns):
                self._judge(chains, output)
        return output

    def _note_rejected(self, signal: Signal, rejected: dict[str, int]) -> None:
        for reason, count in rejected.items():
            self.rejected[signal, reason] = self.rejected.get((signal, reason), 0) + count
            self.received[signal] += count

    def tick(self, now_ns: int) -> Output:
        """Closes what is due at `now_ns`. How often it is called changes when verdicts come, never what they say."""
        output = self._advance_to(now_ns)
        for chains in self.joiner.close(self.now_ns):
            self._judge(chains, output)
        return output

    def is_due(self, now_ns: int) -> bool:
        """Whether `tick(now_ns)` would close a chain or end an epoch."""
        ends = self._boundary_ns > 0 and self._next_ns(now_ns) <= now_ns
        return ends or self.joiner.is_due(now_ns)

    def flush(self) -> Output:
        """The end of the input: goes on in time until the last open chain is due."""
        output = Output()
        deadline = self.joiner.next_deadline()
        while deadline is not None:
            step = self.tick(deadline)
            output.verdicts += step.verdicts
            output.incidents += step.incidents
            deadline = self.joiner.next_deadline()
        step = self._advance_to(self._boundary_ns)
        output.incidents += step.incidents
        return output

    def no_verdicts(self) -> VerdictBatch:
        """An empty batch: what goes to exporters with incidents that changed while no chain was closed."""
        none = np.zeros(0, np.uint8)
        chains = ChainBatch.empty(self.symbols)
        return VerdictBatch(chains, np.zeros(0), none, none, {}, no_findings(), np.zeros(1, np.int64), {})

    # -- models ------------------------------------------------------------------------------------------------------

    @property
    def boundary_ns(self) -> int:
        """The epoch boundary that comes next; 0 before the first call."""
        return self._boundary_ns

    def change_model(self, name: str, model: Any, from_ns: int) -> None:
        """From the epoch boundary `from_ns` on, which has not passed, detector `name` scores by `model`. 0: at once,
        in an engine that is new.

        Not part of a snapshot: who restores one announces the changes after it again, in the same order.
        """
        assert isinstance(self.detectors[name], Reloadable)
        assert from_ns >= self._boundary_ns
        assert not self._changes or from_ns >= self._changes[-1][0]
        self._changes.append((from_ns, name, model))
        self._change_models(0)

    def _change_models(self, boundary_ns: int) -> None:
        due: dict[str, Any] = {}  # of several that became due while nothing happened, only the last
        while self._is_change_due(boundary_ns):
            _, name, model = self._changes.popleft()
            due[name] = model
        for name, model in due.items():
            detector = self.detectors[name]
            assert isinstance(detector, Reloadable)
            detector.use(model)
            self.decider.note_reload()

    def _is_change_due(self, boundary_ns: int) -> bool:
        return bool(self._changes) and self._changes[0][0] <= boundary_ns

    # -- time --------------------------------------------------------------------------------------------------------

    def _advance_to(self, now_ns: int) -> Output:
        output = Output()
        self.now_ns = max(self.now_ns, now_ns)
        if self.now_ns < self._boundary_ns:
            return output
        if self._boundary_ns == 0:
            self._boundary_ns = (self.now_ns // self._epoch_ns + 1) * self._epoch_ns
            self._change_models(self._boundary_ns - self._epoch_ns)
        while (boundary_ns := self._next_ns(self.now_ns)) <= self.now_ns:
            is_strided = self._is_silent(IDLE_EPOCHS) and boundary_ns // self._epoch_ns % IDLE_STRIDE
            if is_strided and not self._is_change_due(boundary_ns):
                self._idle_epochs += 1
            else:
                self._end_epoch(boundary_ns, output)
            self._boundary_ns = boundary_ns + self._epoch_ns
        self._boundary_ns = boundary_ns
        return output

    def _is_silent(self, epochs: int) -> bool:
        """Whether there was no chain for so many epochs, and no record came. The answer is the same however often
        somebody looked for what is due meanwhile."""
        return self._idle_epochs >= epochs and not self._is_stirred

    def _next_ns(self, now_ns: int) -> int:
        """The boundary to go through next; in sleep the next change of model, or the first one after `now_ns`."""
        if not self._is_silent(IDLE_EPOCHS_MAX):
            return self._boundary_ns
        next_ns = (now_ns // self._epoch_ns + 1) * self._epoch_ns
        return max(self._boundary_ns, min(next_ns, self._changes[0][0]) if self._changes else next_ns)

    def _end_epoch(self, boundary_ns: int, output: Output) -> None:
        for chains in self.joiner.close(boundary_ns):
            self._judge(chains, output)
        self._is_stirred = self.joiner.open_records > 0
        self._idle_epochs = 0 if self._epoch_chains else self._idle_epochs + 1
        if self._changes:
            self._change_models(boundary_ns)
        windows = [detector.advance(boundary_ns) for detector in self.detectors.values()]
        for index, found in enumerate(windows):
            if found.size:
                found["detector"] = index
        output.incidents += self.incidents.judge(boundary_ns, all_findings(windows))
        self.joiner.learn()
        self.joiner.forget(boundary_ns)
        self.decider.advance(boundary_ns, self.incidents.suspected(), self.incidents.released())
        self._put_in_quarantine(boundary_ns)
        while self._quarantine and self._quarantine[0][0] <= boundary_ns - self._quarantine_ns:
            self._clear(*self._quarantine.popleft()[1])

    # -- judging and learning ----------------------------------------------------------------------------------------

    def _judge(self, chains: ChainBatch, output: Output) -> None:
        self._learn()
        scores = {name: detector.score(chains) for name, detector in self.detectors.items()}
        verdicts = self.decider.decide(chains, scores)
        self.incidents.observe(verdicts)
        self._epoch_chains += len(chains)
        self._epoch_records += chains.records
        output.verdicts.append(verdicts)
        self.records_closed += chains.records
        for outcome, count in enumerate(np.bincount(chains.outcome, minlength=3).tolist()):
            self.chains_closed[outcome] += count
        training = verdicts.training
        if self._sampled < 1:
            drawn = drawn_hash(chains) < self._sampled
            chains, training = chains.take(drawn), training[drawn]
        if len(chains):
            self._judged.append((chains, training))

    def _put_in_quarantine(self, boundary_ns: int) -> None:
        """What the epoch that ends judged, as far as it may wait; and how much of the next one may."""
        self.chains_not_learned += self._epoch_chains
        if self._judged:
            waiting = _joined(_sample(self._judged, self._epoch_records_max))
            self.chains_not_learned -= len(waiting[0])
            self._quarantine.append((boundary_ns, waiting))
        over = self._epoch_records / self._epoch_records_max
        self._sampled = SAMPLED_SHORT / over if over > 1 else 1.0
        self._judged, self._epoch_chains, self._epoch_records = [], 0, 0

    def _clear(self, batch: ChainBatch, training: npt.NDArray[Any]) -> None:
        """Settles which chains of an epoch, whose quarantine is over, are normal."""
        normal = self.decider.clear(batch, training)
        self.decider.learn(batch, training, normal)
        self._lessons.append((batch, normal))

    def _learn(self) -> None:
        """All that there is to learn at once, so that how chains were grouped for judging leaves no trace."""
        if not self._lessons:
            return
        lessons, self._lessons = self._lessons, []
        whole = (
            ChainBatch.concat([chains for chains, _ in lessons]),
            np.concatenate([normal for _, normal in lessons]),
        )
        for detector in self.detectors.values():
            for chains, normal in lessons if getattr(detector, "learns_by_epoch", False) else [whole]:
                detector.learn(chains, normal)

    # -- snapshot ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """The whole state as dicts, lists, strings, numbers and arrays: a new engine of the same config and seed that
        restores it goes on as if nothing had happened."""
        return {
            "version": SNAPSHOT_VERSION,
            "seed": self.seed,
            "symbols": self.symbols.snapshot(),
            "decoder": self.decoder.snapshot(),
            "joiner": self.joiner.snapshot(),
            "detectors": {name: detector.snapshot() for name, detector in self.detectors.items()},
            "decider": self.decider.snapshot(),
            "incidents": self.incidents.snapshot(),
            "now_ns": self.now_ns,
            "boundary_ns": self._boundary_ns,
            "idle_epochs": self._idle_epochs,
            "is_stirred": self._is_stirred,
            "received": [self.received[Signal.TRACES], self.received[Signal.LOGS]],
            "rejected": [[int(signal), reason, count] for (signal, reason), count in self.rejected.items()],
            "chains_closed": list(self.chains_closed),
            "records_closed": self.records_closed,
            "chains_not_learned": self.chains_not_learned,
            "judged": _saved(self._judged),
            "epoch": [self._epoch_chains, self._epoch_records, self._sampled],
            "quarantine": [[boundary_ns, _saved([epoch])] for boundary_ns, epoch in self._quarantine],
            "lessons": [[_columns(chains), normal.copy()] for chains, normal in self._lessons],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot, into an engine of the same seed. A detector that it does not know starts cold.

        Raises:
            ValueError: a snapshot of another version, or one that the present limits cannot hold.
        """
        if state["version"] != SNAPSHOT_VERSION:
            raise ValueError(f"engine snapshot version {state['version']} is not {SNAPSHOT_VERSION}")
        self.symbols.restore(state["symbols"])
        self.decoder.restore(state["decoder"])
        self.joiner.restore(state["joiner"])
        for name, detector in self.detectors.items():
            if name in state["detectors"]:
                detector.restore(state["detectors"][name])
        self.decider.restore(state["decider"])
        self.incidents.restore(state["incidents"])
        self.now_ns = int(state["now_ns"])
        self._boundary_ns = int(state["boundary_ns"])
        self._idle_epochs = int(state["idle_epochs"])
        self._is_stirred = bool(state.get("is_stirred", True))  # earlier versions did not say
        self.received = dict(zip((Signal.TRACES, Signal.LOGS), map(int, state["received"]), strict=True))
        self.rejected = {(Signal(signal), reason): count for signal, reason, count in state["rejected"]}
        self.chains_closed = [int(count) for count in state["chains_closed"]]
        self.records_closed = int(state["records_closed"])
        self.chains_not_learned = int(state.get("chains_not_learned", 0))  # earlier versions learned every chain
        # What waits to be learned was judged by a decider of the same detectors; else its training columns do not fit.
        fits = list(state["detectors"]) == list(self.detectors)
        self._judged = self._loaded(state["judged"]) if fits else []
        chains, records = sum(len(batch) for batch, _ in self._judged), sum(batch.records for batch, _ in self._judged)
        # Earlier versions did not sample before the boundary.
        self._epoch_chains, self._epoch_records, self._sampled = state.get("epoch", (chains, records, 1.0))
        epochs = state["quarantine"] if fits else []
        self._quarantine = deque((int(boundary_ns), _joined(self._loaded(epoch))) for boundary_ns, epoch in epochs)
        lessons = state.get("lessons", ())  # earlier versions learned at the boundary
        self._lessons = [(self._batch(columns), np.array(normal, np.bool_)) for columns, normal in lessons]

    def _loaded(self, saved: list[dict[str, Any]]) -> list[Judged]:
        dtype = self.decider.training
        return [(self._batch(batch["chains"]), np.array(batch["training"], np.uint8).view(dtype)) for batch in saved]

    def _batch(self, columns: dict[str, Any]) -> ChainBatch:
        return ChainBatch(symbols=self.symbols, **columns)


def _joined(epoch: list[Judged]) -> Judged:
    """An epoch's chains, of which there is at least one batch, as one."""
    if len(epoch) == 1:
        return epoch[0]
    return ChainBatch.concat([chains for chains, _ in epoch]), np.concatenate([state for _, state in epoch])


def _sample(epoch: list[Judged], records_max: int) -> list[Judged]:
    """What of an epoch may wait: all of it, or as many chains as have `records_max` records, drawn by their content."""
    if sum(chains.records for chains, _ in epoch) <= records_max:
        return epoch
    records = np.concatenate([np.diff(chains.offsets) for chains, _ in epoch])
    order = np.argsort(np.concatenate([drawn_hash(chains) for chains, _ in epoch]), kind="stable")
    drawn = np.zeros(records.size, np.bool_)
    drawn[order[np.cumsum(records[order]) <= records_max]] = True
    parts = np.split(drawn, np.cumsum([len(chains) for chains, _ in epoch])[:-1])
    return [(chains.take(part), state[part]) for (chains, state), part in zip(epoch, parts, strict=True)]


def _saved(epoch: list[Judged]) -> list[dict[str, Any]]:
    """Judged chains as plain arrays, in one batch."""
    if not epoch:
        return []
    chains, training = _joined(epoch)
    return [{"chains": _columns(chains), "training": training.view(np.uint8)}]


def _columns(chains: ChainBatch) -> dict[str, Any]:
    """The arrays of a batch by name."""
    return {name: getattr(chains, name) for name in COLUMNS}
