"""Decompression within bounds: what is sent comes out, what is damaged is told, and what is too large costs nothing."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable

import cramjam
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.ingest.inflate import (
    KEPT,
    PIECES,
    DamagedError,
    TooLargeError,
    encoding_of_grpc,
    inflate,
)
from tests.examples import examples
from tests.otlp import log, logs, span, traces


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def zstd_without_size(data: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


CODECS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip of two members": ("gzip", lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:])),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zlib": ("zlib", zlib.compress),
    "zstd": ("zstd", zstandard.compress),
    "zstd without size": ("zstd", zstd_without_size),
    "zstd of two frames": ("zstd", lambda data: zstandard.compress(data[:7]) + zstd_without_size(data[7:])),
    "snappy block": ("snappy", lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "snappy frames": ("snappy", lambda data: bytes(cramjam.snappy.compress(data))),
    "x-snappy-framed": ("x-snappy-framed", lambda data: bytes(cramjam.snappy.compress(data))),
    "identity": ("identity", bytes),
}
EVERY = pytest.mark.parametrize("codec", CODECS)


def test_every_encoding_is_tried() -> None:
    assert {encoding for encoding, _ in CODECS.values()} == {*PIECES, "identity"}


@EVERY
@examples(40)
@given(
    st.one_of(
        st.binary(max_size=3000),
        st.tuples(st.binary(min_size=1, max_size=9), st.integers(0, 50_000)).map(lambda pair: pair[0] * pair[1]),
    )
)
def test_what_went_in_comes_out(codec: str, data: bytes) -> None:
    encoding, compress = CODECS[codec]
    assert inflate(compress(data), encoding, max(1_000_000, len(compress(data)))) == data


@EVERY
def test_bodies_larger_than_what_is_kept_come_out_whole(codec: str) -> None:
    encoding, compress = CODECS[codec]
    data = random.Random(1).randbytes(1 << 20) * ((KEPT >> 20) + 3)
    assert inflate(compress(data), encoding, len(data) * 2) == data


@EVERY
def test_the_limit_is_exact(codec: str) -> None:
    encoding, compress = CODECS[codec]
    data = bytes(100_000)
    assert len(inflate(compress(data), encoding, 100_000)) == 100_000
    with pytest.raises(TooLargeError):
        inflate(compress(data), encoding, 99_999)


@pytest.mark.parametrize("codec", sorted(CODECS.keys() - {"identity"}))
def test_damage_is_told_and_never_anything_else(codec: str) -> None:
    encoding, compress = CODECS[codec]
    rng = random.Random(3)
    whole = compress(rng.randbytes(300) * 9)
    told = 0
    for attempt in range(600):
        body = bytearray(whole)
        if attempt % 2:
            del body[rng.randrange(len(body)) :]
        else:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        try:
            inflate(bytes(body), encoding, 100_000)
        except (DamagedError, TooLargeError):
            told += 1
    assert told > 100


def test_a_gzip_body_that_lies_about_its_size_is_measured() -> None:
    body = gzip.compress(bytes(50_000))
    for claimed in (0, 10, 49_999, 50_001, 2**32 - 1):
        with pytest.raises((DamagedError, TooLargeError)):
            inflate(body[:-4] + claimed.to_bytes(4, "little"), "gzip", 40_000)


def test_a_snappy_body_that_lies_about_its_size_is_refused() -> None:
    huge = b"\xff\xff\xff\xff\x0f" + b"\x00a"
    with pytest.raises(TooLargeError):
        inflate(huge, "snappy", 1 << 26)
    with pytest.raises(DamagedError):
        inflate(b"\x80\x80\x80\x10" + b"\x00a", "snappy", 1 << 26)


def test_a_zstd_window_above_the_standards_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(DamagedError):
        inflate(stream.compress(b"x" * 100) + stream.flush(), "zstd", 1 << 26)


@pytest.mark.parametrize("data", [logs(log("x")), traces(span(1, 2)), b""])
def test_grpc_messages_say_themselves_how_they_are_compressed(data: bytes) -> None:
    assert encoding_of_grpc(data) == "identity"
    assert encoding_of_grpc(gzip.compress(data)) == "gzip"
    for level in range(10):
        assert encoding_of_grpc(zlib.compress(data, level)) == "deflate"
