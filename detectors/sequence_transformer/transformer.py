"""The Transformer as a distribution: P(next event | head, events so far) over the events of the system at hand.

How it works. The ONNX graph maps a lane's features to one query per position, and candidates' features to vectors; a
softmax over their products is the distribution. Lanes go through in batches, long ones in overlapping parts. A model
file is taken only with its known SHA-256 and only when everything is inside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from collector_processor.kernels import lanes as kernels
from collector_processor.model import F32, F64, I32, Symbols
from detectors.sequence_transformer.promoted import ModelFile
from detectors.sequence_transformer.tokens import (
    FEATURES,
    IS_HEAD,
    LENGTH,
    OF_CALLS,
    OVERLAP,
    EventFeatures,
    end_features,
)

CANDIDATES_FEW, CANDIDATES = 8, 64  # events per run
LENGTHS = {1: 0, 2: 1, 8: 2, 16: 8, LENGTH: 16}  # positions of a run, and the least number of events that needs it
BATCHES = {1: 16, 2: 8, 8: 4, 16: 1, LENGTH: 1}  # parts of lanes per run: long ones come one at a time
DIGITS = 2  # of ln P that count: what a processor's own way of adding up changes lies far behind
MODEL_BYTES_MAX = 8 << 20


class ModelRefusedError(ValueError):
    """A model file that must not be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane to be judged: its head (TOP: none), kind and events."""

    head: int
    kind: int
    events: I32


def load(path: Path, sha256: str) -> onnxruntime.InferenceSession:
    """The model in `path`, one thread.

    Raises:
        ModelRefusedError: too large, another digest, external data, not a model, or not of this shape.
        OSError: the file cannot be read.
    """
    if path.stat().st_size > MODEL_BYTES_MAX:
        raise ModelRefusedError(f"{path}: larger than {MODEL_BYTES_MAX} bytes")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise ModelRefusedError(f"{path}: SHA-256 is {digest}, expected {sha256}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        # From bytes, without a path: a model that refers to files outside cannot be completed and fails here.
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no public exception class that covers all of these
        raise ModelRefusedError(f"{path}: cannot be loaded by itself: {error}") from error
    inputs = {entry.name: entry.shape for entry in session.get_inputs()}
    outputs = {entry.name for entry in session.get_outputs()}
    if set(inputs) != {"tokens", "candidates"} or outputs != {"queries", "vectors"}:
        raise ModelRefusedError(
            f"{path}: inputs {sorted(inputs)} and outputs {sorted(outputs)} are not the expected ones"
        )
    if inputs["tokens"][-1] != FEATURES or inputs["candidates"][-1] != FEATURES:
        raise ModelRefusedError(f"{path}: made for other features than {FEATURES}")
    return session


class Transformer:
    """One loaded model on one system's events."""

    def __init__(self, model: ModelFile, symbols: Symbols) -> None:
        """Loads `model`.

        Raises:
            ModelRefusedError, OSError: as `load`.
        """
        self.session = load(model.path, model.sha256)
        self.name = f"{model.name}-{model.sha256[:12]}"
        self.features = EventFeatures(symbols)
        self.vectors: F32 = np.zeros((0, 0), np.float32)

    def probabilities(self, lanes: Sequence[Lane], vocabulary: I32) -> list[F64]:
        """Per lane float64[events + 1]: P of each event and of the end, among `vocabulary`, its own events and the end.

        A lane's answer does not depend on which others are asked in the same call: runs have fixed shapes, in which a
        row knows nothing of the others.
        """
        sizes = [lane.events.size for lane in lanes]
        start = np.cumsum([0, *sizes])
        head, kind = np.array([(lane.head, lane.kind) for lane in lanes], np.int32).T.copy()
        pool = np.concatenate([lane.events for lane in lanes])
        parts = np.array([(n, *part) for n, size in enumerate(sizes) for part in split(size)])
        events, found = parts[:, 2] - parts[:, 1], []
        for length, least in LENGTHS.items():
            fitting = parts[(least <= events) & (events < length)]
            for lo in range(0, len(fitting), BATCHES[length]):
                chosen = fitting[lo : lo + BATCHES[length]]
                tokens = np.zeros((BATCHES[length], length, FEATURES), np.float32)
                kernels.tokens_of(chosen, head, kind, start, pool, self.features.all(), IS_HEAD, OF_CALLS, tokens)
                found.append((chosen, self._run(tokens)))
        while self.vectors.shape[0] <= len(self.features.symbols.events):
            self._run(np.zeros((1, 1, FEATURES), np.float32))
        out = np.empty(pool.size + len(lanes))
        for chosen, queries in found:
            kernels.chances_of(chosen, queries, self.vectors, vocabulary, start, pool, out)
        out = np.exp(np.round(np.log(out), DIGITS))
        return np.split(out, (start[1:] + np.arange(1, len(lanes) + 1))[:-1])

    def _run(self, tokens: F32) -> F32:
        """The queries of `tokens`. The same run makes vectors of some events that have none yet."""
        features, have = self.features.all(), self.vectors.shape[0]
        if have > features.shape[0]:
            (queries,) = self.session.run(["queries"], {"tokens": tokens, "candidates": tokens[0, :1]})
            return np.asarray(queries, np.float32)
        new = features[have - 1 : have - 1 + CANDIDATES] if have else end_features()[None]
        padded = np.zeros((CANDIDATES if len(new) > CANDIDATES_FEW else CANDIDATES_FEW, FEATURES), np.float32)
        padded[: len(new)] = new
        queries, vectors = self.session.run(["queries", "vectors"], {"tokens": tokens, "candidates": padded})
        made = np.asarray(vectors[: len(new)], np.float32)
        self.vectors = np.concatenate([self.vectors, made]) if have else made
        return np.asarray(queries, np.float32)


def split(events: int) -> list[tuple[int, int, int]]:
    """Parts (first event, end event, first position that counts) of a lane of so many events, overlapping."""
    room = LENGTH - 1
    parts = [(0, min(events, room), 0)]
    while parts[-1][1] < events:
        first = parts[-1][1] - OVERLAP
        parts.append((first, min(events, first + room), parts[-1][1]))
    return parts
