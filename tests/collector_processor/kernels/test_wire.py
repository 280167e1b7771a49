"""The hashes over bytes: equal for what counts as equal, different for everything else."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from collector_processor.kernels.wire import CLASSES, hash_long, hash_masked

SEED = np.uint64(0x1234567890ABCDEF)
VARIABLE = re.compile(rb"(?<![0-9A-Za-z_\x80-\xff])[A-Za-z_\x80-\xff]*[0-9][0-9A-Za-z_\x80-\xff]*")
TEXTS = st.lists(st.sampled_from([b"user", b"7", b"a1", b" ", b"=", b"-", b"\xc3\xa9", b"service", b"_"]), max_size=24)


@njit(cache=True)
def of_masked(buffer, start, end, seed):
    return hash_masked(buffer, start, end, seed, CLASSES)


@njit(cache=True)
def of_all(buffer, start, end, seed):
    return hash_long(buffer, start, end, seed)


def masked(text: bytes, seed: np.uint64 = SEED) -> int:
    """The hash of `text` where it stands in a larger buffer."""
    buffer = np.frombuffer(b"9z" + text + b"1a", np.uint8)
    return int(of_masked(buffer, 2, 2 + len(text), seed))


@given(TEXTS, TEXTS)
def test_texts_that_differ_in_variables_alone_have_one_hash(first: list[bytes], second: list[bytes]) -> None:
    a, b = b"".join(first), b"".join(second)
    alike = VARIABLE.sub(b"<*>", a) == VARIABLE.sub(b"<*>", b)
    assert (masked(a) == masked(b)) == alike


@given(TEXTS)
def test_a_variable_may_have_any_length(parts: list[bytes]) -> None:
    text = b"".join(parts)
    assert masked(text) == masked(VARIABLE.sub(b"x123456789012345678901234567890", text))


def test_every_byte_and_the_seed_count() -> None:
    for size in range(70):
        text = bytes(range(65, 65 + size))
        buffer = np.frombuffer(text, np.uint8)
        hashes = {int(of_all(buffer, 0, size, SEED)), int(of_all(buffer, 0, size, SEED + np.uint64(1)))}
        for place in range(size):
            other = buffer.copy()
            other[place] ^= 1
            hashes.add(int(of_all(other, 0, size, SEED)))
        longer = np.frombuffer(text + b"\x00", np.uint8)
        hashes.add(int(of_all(longer, 0, size + 1, SEED)))
        assert len(hashes) == size + 3
