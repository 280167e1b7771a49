"""Text of an event -> a unit vector, so that a reworded template is still near its old self.

How it works. By default words and character trigrams are hashed into a few hundred signed dimensions, each weighted by
how rare it is among the events embedded so far (IDF). With a configured sentence-embedding model (ONNX with WordPiece
input, its `vocab.txt` beside it, SHA-256 known), the text goes through that instead. Either way a text is embedded
once.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from collector_processor.kernels.text import rarity
from collector_processor.model import F32, I32, NONE
from detectors.familiarity import grown
from detectors.hashing import folded, ngrams

DIMENSIONS = 256
BUCKETS = 4096  # of n-grams, for their document frequency
TOKENS_MAX = 64  # word pieces of a text that a model gets
PIECE_MAX = 100  # characters of a word that is cut into pieces


class Embedder(Protocol):
    """Gives unit vectors; `snapshot` holds what later vectors depend on."""

    dimensions: int

    def embed(self, text: str) -> F32: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class HashedEmbedder:
    """Hashed n-grams, IDF-weighted."""

    dimensions = DIMENSIONS

    def __init__(self) -> None:
        self.texts = 0
        self.seen_in = np.zeros(BUCKETS, np.int32)

    def embed(self, text: str) -> F32:
        """float32[DIMENSIONS] of length 1 (0 for a text without words); counts the text for the IDF of later ones."""
        hashes, weights = ngrams(text)
        weights = weights.copy()
        self.texts += 1
        rarity(hashes, weights, self.seen_in, self.texts)
        return folded(hashes, weights, DIMENSIONS)

    def snapshot(self) -> dict[str, Any]:
        return {"texts": self.texts, "seen_in": self.seen_in.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.texts, self.seen_in = int(state["texts"]), np.array(state["seen_in"], np.int32)


class OnnxEmbedder:
    """A sentence-embedding model: mean of the last hidden state over the tokens, or the model's own pooled output."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Loads the model and `vocab.txt` beside it.

        Raises:
            ValueError: the digest is another, the vocabulary lacks [CLS], [SEP] or [UNK], or the model wants unknown
                inputs or external data.
            OSError: a file cannot be read.
        """
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ValueError(f"{path}: SHA-256 is {found}, the configuration says {sha256}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has no public exception class that covers all of these
            raise ValueError(f"{path}: not a model that can be loaded by itself: {error}") from error
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        unknown = set(self.inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise ValueError(f"{path}: the model wants the inputs {', '.join(sorted(unknown))}, which nothing gives it")
        vocabulary = (path.parent / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.pieces = {piece: index for index, piece in enumerate(vocabulary)}
        missing = [piece for piece in ("[CLS]", "[SEP]", "[UNK]") if piece not in self.pieces]
        if missing:
            raise ValueError(f"{path.parent / 'vocab.txt'}: lacks {', '.join(missing)}")
        self.dimensions = self.embed("probe").size

    def embed(self, text: str) -> F32:
        """float32[dimensions] of length 1."""
        ids = np.array([self.tokens(text)], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        output = np.asarray(self.session.run(None, {name: given[name] for name in self.inputs})[0], np.float32)
        vector: F32 = output[0].mean(axis=0) if output.ndim == 3 else output[0]
        return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-9))

    def tokens(self, text: str) -> list[int]:
        """Ids of the word pieces (greedy longest match first, Wu et al. 2016), between [CLS] and [SEP]."""
        ids = [self.pieces["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            ids += self._pieces_of(word)
        return [*ids[: TOKENS_MAX - 1], self.pieces["[SEP]"]]

    def _pieces_of(self, word: str) -> list[int]:
        out, start = [], 0
        while start < len(word) and len(word) <= PIECE_MAX:
            for end in range(len(word), start, -1):
                piece = self.pieces.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    out.append(piece)
                    start = end
                    break
            else:
                return [self.pieces["[UNK]"]]
        return out or [self.pieces["[UNK]"]]

    def snapshot(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is nothing to take back."""


class EventVectors:
    """The vector of each event, made on first use; at most `limit` of them, then the oldest half is forgotten."""

    def __init__(self, embedder: Embedder, limit: int) -> None:
        self.embedder = embedder
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """No vectors."""
        self.events: list[int] = []  # the event of each row, oldest first
        self.vectors: F32 = np.zeros((0, self.embedder.dimensions), np.float32)  # with room for more rows
        self.row_of: I32 = np.zeros(0, np.int32)  # per event its row, -1 without one

    def reserve(self, events: int) -> None:
        """Room in `row_of` for so many events."""
        self.row_of = grown(self.row_of, events, NONE)

    def make(self, events: list[int], texts: list[str]) -> None:
        """Sees to it that each of `events` has a vector; `texts` of all events."""
        self.reserve(len(texts))
        for event in events:
            if self.row_of[event] == NONE:
                if len(self.events) >= self.limit:
                    self._keep(self.events[math.ceil(self.limit / 2) :])
                self._put(event, self.embedder.embed(texts[event]))

    def _keep(self, kept: list[int]) -> None:
        vectors = self.vectors[self.row_of[kept]]
        self.row_of[self.events] = NONE
        self.events = []
        for event, vector in zip(kept, vectors, strict=True):
            self._put(event, vector)

    def _put(self, event: int, vector: F32) -> None:
        row = len(self.events)
        self.vectors = grown(self.vectors, row + 1)
        self.vectors[row] = vector
        self.row_of[event] = row
        self.events.append(event)

    def snapshot(self) -> dict[str, Any]:
        return {
            "embedder": self.embedder.snapshot(),
            "events": np.array(self.events, np.int32),
            "vectors": self.vectors[: len(self.events)].copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.clear()
        self.embedder.restore(state["embedder"])
        self.reserve(int(state["events"].max(initial=-1)) + 1)
        for event, vector in zip(state["events"].tolist(), np.array(state["vectors"], np.float32), strict=True):
            self._put(event, vector)
