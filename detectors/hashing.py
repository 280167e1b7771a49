"""Text -> hashed n-grams: what detectors compare texts of operations and templates by, the same in every process.

How it works. Words (camelCase split, lower case) and the character trigrams of padded words are hashed by CRC-32 into a
few dozen or hundred signed dimensions (feature hashing, Weinberger et al. 2009).
"""

from __future__ import annotations

import re
from functools import lru_cache
from zlib import crc32

import numpy as np

from collector_processor.kernels import text as kernels
from collector_processor.model import F32, F64, I64

TEXTS_KEPT = 512  # whose n-grams are kept: several detectors ask for those of each new event
TRIGRAM_WEIGHT = 0.5  # against 1 for a whole word
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_]+")


@lru_cache(TEXTS_KEPT)
def ngrams(text: str) -> tuple[I64, F64]:
    """(32-bit hashes [n], weights [n]) of the distinct words and trigrams of `text`; not to be written to."""
    if text.isascii():
        data = np.frombuffer(text.encode(), np.uint8)
        hashes, weights = np.empty(2 * data.size + 1, np.int64), np.empty(2 * data.size + 1)
        n = kernels.grams(data, TRIGRAM_WEIGHT, hashes, weights)
        return hashes[:n].copy(), weights[:n].copy()  # without the room that was not needed
    words = [word.lower() for word in WORDS.findall(text)]
    grams = {f" {word}" for word in words}
    for word in words:
        padded = f"^{word}$"
        grams.update(padded[i : i + 3] for i in range(len(padded) - 2))
    ordered = sorted(grams)
    hashes = np.array([crc32(gram.encode("utf-8", "surrogatepass")) for gram in ordered], np.int64)
    return hashes, np.array([1.0 if gram[0] == " " else TRIGRAM_WEIGHT for gram in ordered])


def folded(hashes: I64, weights: F64, dimensions: int) -> F32:
    """float32[dimensions] of length 1 (0 without n-grams): the weights added up by hash, with a sign by hash."""
    vector = np.empty(dimensions, np.float32)
    kernels.fold(hashes, weights, vector)
    return vector
