"""Cut zstd bodies are told from whole ones, whatever way they were made."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
import zstandard

from collector_processor.kernels.zstd import is_whole

RNG = random.Random(5)
TEXT = RNG.randbytes(400_000).translate(bytes(b"abcdefgh "[byte % 9] for byte in range(256)))


def streamed(data: bytes, **options: bool) -> bytes:
    stream = zstandard.ZstdCompressor(**options).compressobj()
    return (
        stream.compress(data[: len(data) // 2])
        + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        + stream.compress(data[len(data) // 2 :])
        + stream.flush()
    )


BODIES = {
    "one shot": zstandard.compress(TEXT),
    "one byte": zstandard.compress(b"a"),
    "nothing inside": zstandard.compress(b""),
    "repeated byte": zstandard.compress(bytes(1 << 20)),
    "cannot be compressed": zstandard.compress(RNG.randbytes(200_000)),
    "streamed": streamed(TEXT),
    "with checksum": streamed(TEXT, write_checksum=True),
    "two frames": streamed(TEXT) + zstandard.compress(TEXT),
    "skippable frame between": zstandard.compress(b"a") + struct.pack("<II", 0x184D2A53, 5) + b"12345" + streamed(TEXT),
    "large": zstandard.compress(bytes(5 << 20) + TEXT * 10),
}


@pytest.mark.parametrize("name", BODIES)
def test_only_the_whole_body_is_whole(name: str) -> None:
    body = BODIES[name]
    assert is_whole(np.frombuffer(body, np.uint8))
    frames = {0, len(zstandard.compress(b"a")), len(streamed(TEXT)), len(zstandard.compress(b"a")) + 13}
    cuts = {*range(1, min(len(body), 40)), *range(max(1, len(body) - 40), len(body)), *RNG.sample(range(len(body)), 9)}
    for cut in cuts - frames:
        assert not is_whole(np.frombuffer(body[:cut], np.uint8)), cut
    assert not is_whole(np.frombuffer(body + b"\0", np.uint8))


def test_other_bytes_are_no_body() -> None:
    for _ in range(200):
        assert not is_whole(np.frombuffer(RNG.randbytes(RNG.randrange(1, 60)), np.uint8))
