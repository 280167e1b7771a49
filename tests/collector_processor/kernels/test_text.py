"""The kernel that hashes ASCII texts says what the plain way says, which other texts go."""

from __future__ import annotations

from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from detectors.hashing import TRIGRAM_WEIGHT, WORDS, ngrams

NAMES = st.text(st.sampled_from("abzABZ019 _-./<*>^$"), max_size=60)


def plainly(text: str) -> list[tuple[int, float]]:
    """The distinct words, then trigrams, in order, each hashed by zlib."""
    words = {word.lower() for word in WORDS.findall(text)}
    trigrams = {f"^{word}$"[i : i + 3] for word in words for i in range(len(word))}
    found = [(f" {word}", 1.0) for word in sorted(words)] + [(gram, TRIGRAM_WEIGHT) for gram in sorted(trigrams)]
    return [(crc32(gram.encode()), weight) for gram, weight in found]


@given(NAMES | st.text(st.characters(max_codepoint=127)))
def test_words_and_trigrams_of_ascii_texts_are_those_of_the_plain_way(text: str) -> None:
    hashes, weights = ngrams(text)
    assert list(zip(hashes.tolist(), weights.tolist(), strict=True)) == plainly(text)
