"""The Transformer as a distribution: P(next event | head, events so far) over the events of the system at hand.

How it works. The ONNX graph maps a lane's features to one query per position, and candidates' features to vectors; a
softmax over their products is the distribution. Lanes go through in batches, long ones in overlapping parts. A model
file is taken only with its known SHA-256 and only when everything is inside it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from collector_processor.kernels.lanes import chances
from collector_processor.model import F32, F64, I32, Symbols
from detectors.sequence_transformer.promoted import ModelFile
from detectors.sequence_transformer.tokens import FEATURES, LENGTH, OVERLAP, EventFeatures, end_features

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
        starts = np.cumsum([0] + [lane.events.size + 1 for lane in lanes]).tolist()
        parts = [(n, *part) for n, lane in enumerate(lanes) for part in split(lane.events.size)]
        found: list[tuple[list[tuple[int, int, int, int]], F32]] = []
        for length, least in LENGTHS.items():
            fitting = [part for part in parts if least <= part[2] - part[1] < length]
            for lo in range(0, len(fitting), BATCHES[length]):
                chosen = fitting[lo : lo + BATCHES[length]]
                found.append((chosen, self._queries([(lanes[n], first, end) for n, first, end, _ in chosen], length)))
        while self.vectors.shape[0] <= len(self.features.symbols.events):
            self._run(np.zeros((1, 1, FEATURES), np.float32))
        out = np.empty(starts[-1])
        for chosen, answers in found:
            for (n, first, end, counted), queries in zip(chosen, answers, strict=False):
                events = lanes[n].events
                last = events.size + 1 if end == events.size else end
                place = out[starts[n] : starts[n + 1]]
                chances(queries[counted - first : last - first], self.vectors, vocabulary, events, counted, last, place)
        out = np.exp(np.round(np.log(out), DIGITS))
        return [out[lo:hi] for lo, hi in itertools.pairwise(starts)]

    def _queries(self, parts: Sequence[tuple[Lane, int, int]], length: int) -> F32:
        """float32[batch, length, D]: what the model expects after each position of parts (lane, first event, end)."""
        features = self.features.all()
        tokens = np.zeros((BATCHES[length], length, FEATURES), np.float32)
        for row, (lane, first, end) in enumerate(parts):
            tokens[row, 0] = self.features.head(lane.head, lane.kind)
            if end > first:
                tokens[row, 1 : end - first + 1] = features[lane.events[first:end]]
        return self._run(tokens)

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
