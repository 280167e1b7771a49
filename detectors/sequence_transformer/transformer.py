"""The Transformer as a distribution: P(next event | head, events so far) over the events of the system at hand.

How it works. The ONNX graph maps a lane's features to one query per position, and candidates' features to vectors; a
softmax over their products is the distribution. Lanes go through in batches, long ones in overlapping parts. A model
file is taken only with its known SHA-256 and only when everything is inside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from collector_processor.kernels.lanes import softmax_of
from collector_processor.model import F32, F64, I32, Symbols
from detectors.sequence_transformer.promoted import ModelFile
from detectors.sequence_transformer.tokens import FEATURES, LENGTH, OVERLAP, EventFeatures, end_features

BATCH = 4  # parts of lanes per run: lanes come in ones and twos once a system is known
CANDIDATES = 64  # events per run
LENGTHS = {8: 0, 16: 8, LENGTH: 16}  # positions of a run, and the least number of events that needs it
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
        self._add_vectors()
        parts = [(lane, first, end) for lane in lanes for first, end, _ in split(lane.events.size)]
        queries: list[F32] = [np.zeros(0, np.float32)] * len(parts)
        for length, least in LENGTHS.items():
            fitting = [i for i, (_, first, end) in enumerate(parts) if least <= end - first < length]
            for lo in range(0, len(fitting), BATCH):
                chosen = fitting[lo : lo + BATCH]
                for i, found in zip(chosen, self._queries([parts[i] for i in chosen], length), strict=False):
                    queries[i] = found
        answers = iter(queries)
        return [self._of_lane(lane, vocabulary, answers) for lane in lanes]

    def _queries(self, parts: Sequence[tuple[Lane, int, int]], length: int) -> F32:
        """float32[BATCH, length, D]: what the model expects after each position of parts (lane, first event, end)."""
        features = self.features.all()
        tokens = np.zeros((BATCH, length, FEATURES), np.float32)
        for row, (lane, first, end) in enumerate(parts):
            tokens[row, 0] = self.features.head(lane.head, lane.kind)
            tokens[row, 1 : end - first + 1] = features[lane.events[first:end]]
        (queries,) = self.session.run(["queries"], {"tokens": tokens, "candidates": tokens[0, :1]})
        return np.asarray(queries, np.float32)

    def _add_vectors(self) -> None:
        """Vectors of events that have none yet; row 0 is the end, row e + 1 event e."""
        if self.vectors.shape[0] == 0:
            self.vectors = self._vectors_of(end_features()[None])
        features = self.features.all()
        if self.vectors.shape[0] <= features.shape[0]:
            new = self._vectors_of(features[self.vectors.shape[0] - 1 :])
            self.vectors = np.concatenate([self.vectors, new])

    def _vectors_of(self, features: F32) -> F32:
        out = []
        for lo in range(0, features.shape[0], CANDIDATES):
            part = features[lo : lo + CANDIDATES]
            padded = np.zeros((CANDIDATES, FEATURES), np.float32)
            padded[: part.shape[0]] = part
            (vectors,) = self.session.run(["vectors"], {"tokens": padded[None, :1], "candidates": padded})
            out.append(np.asarray(vectors[: part.shape[0]], np.float32))
        return np.concatenate(out)

    def _of_lane(self, lane: Lane, vocabulary: I32, queries: Iterator[F32]) -> F64:
        """P of a lane's events from the queries of its parts."""
        candidates = np.append(np.union1d(vocabulary, lane.events) + 1, 0)  # rows of `vectors`, the end last
        wanted = np.append(lane.events + 1, 0)
        out = np.empty(lane.events.size + 1)
        for first, end, counted in split(lane.events.size):
            last = lane.events.size + 1 if end == lane.events.size else end
            asked = next(queries)[counted - first : last - first]
            softmax_of(asked, self.vectors, candidates, wanted[counted:last], out[counted:last])
        return np.asarray(np.exp(np.round(np.log(out), DIGITS)))


def split(events: int) -> list[tuple[int, int, int]]:
    """Parts (first event, end event, first position that counts) of a lane of so many events, overlapping."""
    room = LENGTH - 1
    parts = [(0, min(events, room), 0)]
    while parts[-1][1] < events:
        first = parts[-1][1] - OVERLAP
        parts.append((first, min(events, first + room), parts[-1][1]))
    return parts
