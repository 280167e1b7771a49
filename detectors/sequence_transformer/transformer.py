"""The Transformer as a distribution: P(next event | head, events so far) over the events of the system at hand.

How it works. The ONNX graph maps a lane's features to one query per position, and candidates' features to vectors; a
softmax over their products is the distribution. Lanes go through in batches, long ones in overlapping parts. A model
file is taken only with its known SHA-256 and only when everything is inside it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime

from collector_processor.kernels import lanes as kernels
from collector_processor.model import F32, F64, I32, I64, U8, Symbols
from detectors.familiarity import grown
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
BATCHES = {2: 16, 8: 4, 16: 1, LENGTH: 1}  # parts of lanes per run, by its positions: long ones come one by one
LENGTHS = tuple(BATCHES)  # the positions of a run: the head, and fewer events than that
DIGITS = 2  # of ln P that count: what a processor's own way of adding up changes lies far behind
MODEL_BYTES_MAX = 8 << 20


class ModelRefusedError(ValueError):
    """A model file that must not be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """Lanes to be judged: head (TOP: none), kind and, in `events`, start and length of each. After the events of each
    there is a place for its end."""

    head: I32
    kind: U8
    start: I64
    length: I64
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
    try:
        session = _session(data)
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


@lru_cache(maxsize=2)
def _session(data: bytes) -> onnxruntime.InferenceSession:
    """A model ready to run, which any number of engines may do at once.

    From bytes, without a path: a model that refers to files outside cannot be completed and fails here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


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
        self.vectors: F32 = np.zeros((0, 0), np.float32)  # of the end, and then of each event; with room for more
        self.made = 0  # of them

    def probabilities(self, lanes: Lanes, vocabulary: I32) -> F64:
        """float64[places]: P of each event and of each end, among `vocabulary`, the events of its lane and the end.

        A lane's answer does not depend on which others are asked in the same call: runs have fixed shapes, in which a
        row knows nothing of the others.
        """
        parts: dict[int, list[tuple[int, int, int, int]]] = {length: [] for length in LENGTHS}
        for lane, events in enumerate(lanes.length.tolist()):
            for first, end, counted in split(events):
                parts[LENGTHS[bisect_right(LENGTHS, end - first)]].append((lane, first, end, counted))
        features, columns = self.features.all(), (lanes.head, lanes.kind, lanes.start, lanes.events)
        found = []
        for length, fitting in parts.items():
            for lo in range(0, len(fitting), BATCHES[length]):
                chosen = np.array(fitting[lo : lo + BATCHES[length]])
                tokens = np.zeros((BATCHES[length], length, FEATURES), np.float32)
                kernels.tokens_of(chosen, *columns, features, IS_HEAD, OF_CALLS, tokens)
                found.append((chosen, self._run(tokens)))
        while self.made <= features.shape[0]:
            self._run(np.zeros((1, 1, FEATURES), np.float32))
        out = np.empty(lanes.events.size)
        for chosen, queries in found:
            kernels.chances_of(chosen, queries, self.vectors, vocabulary, lanes.start, lanes.length, lanes.events, out)
        return np.asarray(np.exp(np.round(np.log(out), DIGITS)))

    def _run(self, tokens: F32) -> F32:
        """The queries of `tokens`. The same run makes vectors of some events that have none yet."""
        features, have = self.features.all(), self.made
        if have > features.shape[0]:
            (queries,) = self.session.run(["queries"], {"tokens": tokens, "candidates": tokens[0, :1]})
            return np.asarray(queries, np.float32)
        new = features[have - 1 : have - 1 + CANDIDATES] if have else end_features()[None]
        padded = np.zeros((CANDIDATES if len(new) > CANDIDATES_FEW else CANDIDATES_FEW, FEATURES), np.float32)
        padded[: len(new)] = new
        queries, vectors = self.session.run(["queries", "vectors"], {"tokens": tokens, "candidates": padded})
        self.made += len(new)
        self.vectors = grown(self.vectors if have else np.zeros((0, vectors.shape[1]), np.float32), self.made)
        self.vectors[have : self.made] = vectors[: len(new)]
        return np.asarray(queries, np.float32)


def split(events: int) -> list[tuple[int, int, int]]:
    """Parts (first event, end event, first position that counts) of a lane of so many events, overlapping."""
    room = LENGTH - 1
    parts = [(0, min(events, room), 0)]
    while parts[-1][1] < events:
        first = parts[-1][1] - OVERLAP
        parts.append((first, min(events, first + room), parts[-1][1]))
    return parts
