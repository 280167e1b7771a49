"""Kernels behind `detectors/hashing.py`: the words and trigrams of a text, and their sum as a vector.

How it works. ASCII bytes are cut into words (camelCase split, lower case); their CRC-32 is what `zlib.crc32` gives.
Words come before trigrams, each in the order of their bytes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import uint32

from collector_processor.kernels.jit import allocating_kernel, expanded, helper


def _crc_table():
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1).astype(np.uint32)
    return table


CRC = _crc_table()


@expanded
def is_upper(byte):
    return 65 <= byte <= 90


@expanded
def is_lower(byte):
    return 97 <= byte <= 122


@expanded
def is_digit(byte):
    return 48 <= byte <= 57


@helper
def word_end(text, i):
    """The end of the word that begins at `i`; `i` itself when none does.

    Capitals before a lower-case letter leave it the last of them: `HTTPServer` is `http server`.
    """
    j = i
    if is_digit(text[i]):
        while j < text.size and is_digit(text[j]):
            j += 1
        return j
    while j < text.size and is_upper(text[j]):
        j += 1
    if j > i and (j == text.size or not is_lower(text[j])):
        return j
    if j > i + 1:
        return j - 1
    while j < text.size and is_lower(text[j]):
        j += 1
    return j


@helper
def crc_step(crc, byte):
    return CRC[(crc ^ uint32(byte)) & uint32(255)] ^ (crc >> uint32(8))


@helper
def is_before(text, a, a_end, b, b_end):
    """Whether text[a:a_end] comes before text[b:b_end] in the order of bytes."""
    while a < a_end and b < b_end:
        if text[a] != text[b]:
            return text[a] < text[b]
        a += 1
        b += 1
    return a == a_end and b < b_end


@allocating_kernel
def grams(text, trigram_weight, hashes, weights):
    """Fills `hashes` int64 and `weights` float64 (room: 2 * text.size + 1) of an ASCII `text` uint8; their number."""
    lower = np.empty(text.size, np.uint8)
    start = np.empty(text.size, np.int64)
    end = np.empty(text.size, np.int64)
    codes = np.empty(2 * text.size + 1, np.int64)
    words = 0
    trigrams = 0
    i = 0
    while i < text.size:
        j = word_end(text, i)
        if j == i:
            i += 1
            continue
        for k in range(i, j):
            lower[k] = text[k] | 32 if is_upper(text[k]) else text[k]
        start[words] = i
        end[words] = j
        words += 1
        for k in range(i - 1, j - 1):
            first = lower[k] if k >= i else 94  # ^
            last = lower[k + 2] if k + 2 < j else 36  # $
            codes[trigrams] = np.int64(first) << 16 | np.int64(lower[k + 1]) << 8 | np.int64(last)
            trigrams += 1
        i = j
    n = sorted_words(lower, start[:words], end[:words], hashes, weights)
    codes = np.sort(codes[:trigrams])
    for k in range(trigrams):
        if k > 0 and codes[k] == codes[k - 1]:
            continue
        crc = uint32(0xFFFFFFFF)
        for shift in (16, 8, 0):
            crc = crc_step(crc, codes[k] >> shift & 255)
        hashes[n] = np.int64(crc ^ uint32(0xFFFFFFFF))
        weights[n] = trigram_weight
        n += 1
    return n


@helper
def sorted_words(text, start, end, hashes, weights):
    """Fills the hashes of the distinct words in order, with weight 1; their number. Shell sort: texts are short."""
    gap = start.size // 2
    while gap > 0:
        for i in range(gap, start.size):
            a = start[i]
            b = end[i]
            j = i
            while j >= gap and is_before(text, a, b, start[j - gap], end[j - gap]):
                start[j] = start[j - gap]
                end[j] = end[j - gap]
                j -= gap
            start[j] = a
            end[j] = b
        gap //= 2
    n = 0
    for i in range(start.size):
        if i > 0 and not is_before(text, start[i - 1], end[i - 1], start[i], end[i]):
            continue
        crc = crc_step(uint32(0xFFFFFFFF), 32)
        for k in range(start[i], end[i]):
            crc = crc_step(crc, text[k])
        hashes[n] = np.int64(crc ^ uint32(0xFFFFFFFF))
        weights[n] = 1.0
        n += 1
    return n


@allocating_kernel
def fold(hashes, weights, out):
    """Adds the weights up in `out` float32[dimensions] by hash, with a sign by hash, and makes its length 1 (or 0)."""
    vector = np.zeros(out.size)
    for i in range(hashes.size):
        sign = 1.0 if hashes[i] >> 4 & 1 else -1.0
        vector[(hashes[i] >> 8) % out.size] += sign * weights[i]
    total = 0.0
    for d in range(out.size):
        total += vector[d] * vector[d]
    norm = math.sqrt(total)
    for d in range(out.size):
        out[d] = vector[d] / norm if norm > 0.0 else 0.0


@allocating_kernel
def rarity(hashes, weights, seen_in, texts):
    """Counts the buckets of a text in `seen_in`, once each, and multiplies weights by the inverse document frequency.

    `texts` includes this one.
    """
    buckets = np.sort(hashes % seen_in.size)
    for i in range(buckets.size):
        if i == 0 or buckets[i] != buckets[i - 1]:
            seen_in[buckets[i]] += 1
    for i in range(hashes.size):
        weights[i] *= math.log((1.0 + texts) / seen_in[hashes[i] % seen_in.size]) + 1.0
