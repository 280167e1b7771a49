"""`spanchain train`: a model of the sequence detector from recorded chains (the `train` extra).

How it works. The recording runs through the engine; lanes of chains that were not judged unusual are counted, once. The
general model is the start; the network is fitted to those lanes, one in ten held out. What is held out says whether the
n-gram model does better with it than without: that is what `models promote` asks for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import torch
from onnx import numpy_helper

from collector_processor.config import Config
from collector_processor.model import Incident, Severity, Symbols, VerdictBatch
from collector_processor.replay import Replay
from collector_processor.training.fit import Prepared, fit, prepare
from collector_processor.training.network import Network, write
from collector_processor.training.synthetic import System
from detectors.sequence_transformer.lanes import Counts, Lane, LaneTable
from detectors.sequence_transformer.promoted import DESCRIPTION, MODEL, SHIPPED, ModelFile, described
from detectors.sequence_transformer.transformer import Lanes, Transformer

LANES_MAX = 65_536
LANES_MIN = 20  # distinct lanes that a system must have to be learned from
STEPS = 1500
RATE = 1e-3


class TooLittleError(ValueError):
    """The recording holds too few distinct lanes; the message says how many."""


def lanes_of(paths: Iterable[Path], config: Config, progress: Callable[[int], None] | None = None) -> LaneTable:
    """The lanes of the recording's chains that were not judged unusual.

    Raises:
        OSError: a file cannot be read.
    """
    table: list[LaneTable] = []

    def watch(verdicts: VerdictBatch, _: list[Incident]) -> None:
        if not table:
            table.append(LaneTable(verdicts.chains.symbols, None, LANES_MAX))
        chains = verdicts.chains.take(verdicts.severity == Severity.NONE)
        if len(chains):
            table[0].learn(table[0].find(chains), chains, np.ones(len(chains), np.bool_))

    Replay(config, watch).run(paths, progress)
    return table[0] if table else LaneTable(Symbols(), None, LANES_MAX)


def system_of(table: LaneTable) -> System:
    """The lanes of normal chains with their counts."""
    events = table.symbols.events
    lanes = []
    for row in np.flatnonzero(table.view("good") > 0).tolist():
        lane = table.lane(row)
        lanes.append((lane.head, lane.kind, tuple(lane.events.tolist()), float(table.column["good"][row])))
    return System(list(events.text), [bool(flag > 0) for flag in events.column("is_log").tolist()], lanes)


def train(
    paths: Iterable[Path],
    folder: Path,
    config: Config,
    *,
    steps: int = STEPS,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda _step, _loss: None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes a new version into `folder`; answers its description, `version` included.

    Raises:
        OSError: a file cannot be read or written.
        TooLittleError: there is too little to learn from.
    """
    table = lanes_of(paths, config, progress)
    system = system_of(table)
    if len(system.lanes) < LANES_MIN:
        raise TooLittleError(f"{len(system.lanes)} distinct lanes in the recording; at least {LANES_MIN} are needed")
    part = prepare(system)
    network = fit([part], steps=steps, seed=seed, start=read(SHIPPED / MODEL), rate=RATE, report=report)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{MODEL}.new"
    digest = write(network, temporary)
    version = digest[:12]
    (folder / version).mkdir(exist_ok=True)
    temporary.rename(folder / version / MODEL)
    facts = {"name": "trained", "sha256": digest, "lanes": len(system.lanes), "events": len(system.texts)}
    facts |= {"steps": steps, "seed": seed, "held_out": int(part.held_out.sum())}
    new = ModelFile(folder / version / MODEL, "trained", digest)
    facts |= compared(table, system, part, {"with_model": new, "with_general": described(SHIPPED)})
    (folder / version / DESCRIPTION).write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")
    return facts | {"version": version}


def compared(table: LaneTable, system: System, part: Prepared, models: dict[str, ModelFile]) -> dict[str, float]:
    """nats_NAME: mean -ln P per event of the held-out lanes, by n-grams alone and by n-grams with each of `models`."""
    counts = Counts()
    for (head, kind, events, weight), held in zip(system.lanes, part.held_out, strict=True):
        if not held:
            counts.learn(Lane(head, kind, np.array(events, np.int32)), weight)
    held = [
        Lane(lane[0], lane[1], np.array(lane[2], np.int32))
        for lane, h in zip(system.lanes, part.held_out, strict=True)
        if h
    ]
    if not held:
        return {}
    heads, kinds = np.array([lane.head for lane in held], np.int32), np.array([lane.kind for lane in held], np.uint8)
    length = np.array([lane.events.size for lane in held])
    start = np.cumsum(length + 1) - length - 1
    places = np.concatenate([np.append(lane.events, np.int32(0)) for lane in held])  # 0: where the end goes
    lanes = Lanes(heads, kinds, start, length, places)
    uniform = 1.0 / (table.vocabulary.size + 2.0)
    given = {"ngram": [np.full(lane.events.size + 1, -1.0) for lane in held]}
    for name, model in models.items():
        p = Transformer(model, table.symbols).probabilities(lanes, table.vocabulary)
        given[name] = np.split(p, start[1:])
    return {
        f"nats_{name}": round(
            float(
                np.mean(np.concatenate([counts.surprisals(lane, uniform, p) for lane, p in zip(held, ps, strict=True)]))
            ),
            4,
        )
        for name, ps in given.items()
    }


def read(path: Path) -> Network:
    """The network whose weights `write` put into `path`.

    Raises:
        ValueError: it is not such a file.
    """
    model = onnx.load_model_from_string(path.read_bytes())
    stored = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    network = Network()
    state = network.state_dict()
    for name, value in state.items():
        if name not in stored:
            raise ValueError(f"{path} ({hashlib.sha256(path.read_bytes()).hexdigest()[:12]}) has no {name}")
        found = stored[name].T if name.endswith(".weight") and stored[name].ndim == 2 else stored[name]
        if found.shape != value.shape:
            raise ValueError(f"{path}: {name} is of shape {found.shape}, expected {tuple(value.shape)}")
        state[name] = torch.from_numpy(np.array(found, np.float32))
    network.load_state_dict(state)
    return network
