"""Decompresses request bodies without ever holding more than a bound: a bomb costs its own bytes.

How it works. Every codec is read in pieces of at most 1 MiB. Up to `KEPT` bytes the pieces are kept; a body that goes
on is only measured, its pieces thrown away, and read a second time when its size turns out to be within the limit. So a
megabyte that would become a gigabyte is refused after the limit's worth of work, and memory never grew by more than
`KEPT`.

Most requests are one small gzip member, whose last bytes say how large it is (RFC 1952): those are decompressed at once
into a buffer of that size.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator

import cramjam
import numpy as np
import zstandard

from collector_processor.ingest.answers import Code, RefusedError
from collector_processor.kernels.zstd import is_whole

PIECE = 1 << 20
KEPT = 8 << 20
ZSTD_WINDOW_MAX = 8 << 20  # what RFC 8878 asks every decoder to support
GZIP, ZLIB, RAW_DEFLATE = 31, 15, -15  # zlib's window bits
SNAPPY_STREAM = b"\xff\x06\x00\x00sNaPpY"
SNAPPY_BLOCK_MAX = 65536


class TooLargeError(RefusedError):
    """The decompressed body is above the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(Code.TOO_LARGE, "too_large", f"request is larger than {limit} bytes")


class DamagedError(RefusedError):
    """The body is not what its encoding says."""

    def __init__(self, encoding: str) -> None:
        super().__init__(Code.INVALID, "bad_compression", f"body is not valid {encoding}")


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """`body` decompressed from `encoding` (a key of `PIECES`, or `identity`). Errors: TooLargeError, DamagedError."""
    if len(body) > limit:
        raise TooLargeError(limit)
    if encoding == "identity" or not body:
        return body
    try:
        if encoding == "gzip" and (at_once := _gzip_at_once(body, min(limit, KEPT))) is not None:
            return at_once
        if encoding == "snappy" and not body.startswith(SNAPPY_STREAM):
            return _snappy_block(body, limit)
        return _bounded(PIECES[encoding], body, limit)
    except (zlib.error, zstandard.ZstdError, cramjam.DecompressionError, ValueError, EOFError) as error:
        raise DamagedError(encoding) from error


def encoding_of_grpc(body: bytes) -> str:
    """How a gRPC message that carries an OTLP request is compressed: gzip, deflate or identity.

    gRPC hands the message over as it came, without saying. An OTLP request that is not compressed begins with the tag
    of its only field (0x0a), so the first two bytes tell.
    """
    if body[:2] == b"\x1f\x8b":
        return "gzip"
    if len(body) >= 2 and body[0] == 0x78 and (body[0] << 8 | body[1]) % 31 == 0:
        return "deflate"
    return "identity"


def _bounded(pieces: Callable[[bytes], Iterator[bytes]], body: bytes, limit: int) -> bytes:
    kept: list[bytes] = []
    size = 0
    for piece in pieces(body):
        size += len(piece)
        if size > limit:
            raise TooLargeError(limit)
        if size <= KEPT:
            kept.append(piece)
        else:
            kept.clear()
    return b"".join(kept if size <= KEPT else pieces(body))


def _gzip_at_once(body: bytes, bound: int) -> bytes | None:
    """The one member of a small gzip body; None when it is not one, or larger than it says."""
    size = int.from_bytes(body[-4:], "little")
    if size > bound or len(body) < 18:
        return None
    out = np.empty(size, np.uint8)
    try:
        written = cramjam.gzip.decompress_into(body, out.data)
    except cramjam.DecompressionError:
        return None
    return out.tobytes() if written == size else None


def _zlib_pieces(body: bytes, window_bits: int) -> Iterator[bytes]:
    while body:  # gzip bodies may be several members, one after the other
        stream = zlib.decompressobj(window_bits)
        for at in range(0, len(body), PIECE):
            rest = body[at : at + PIECE]
            while rest and not stream.eof:
                yield stream.decompress(rest, PIECE)
                rest = stream.unconsumed_tail
            if stream.eof:
                break
        while not stream.eof:
            piece = stream.decompress(b"", PIECE)
            if not piece:
                raise EOFError
            yield piece
        body = stream.unused_data + body[at + PIECE :]
        if window_bits != GZIP:
            return


def _gzip(body: bytes) -> Iterator[bytes]:
    return _zlib_pieces(body, GZIP)


def _deflate(body: bytes) -> Iterator[bytes]:
    """HTTP's deflate is zlib (RFC 9110); some clients send it raw."""
    has_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _zlib_pieces(body, ZLIB if has_header else RAW_DEFLATE)


def _zstd(body: bytes) -> Iterator[bytes]:
    if not is_whole(np.frombuffer(body, np.uint8)):
        raise EOFError
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    with decompressor.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
        while piece := reader.read(PIECE):
            yield piece


def _snappy_frames(body: bytes) -> Iterator[bytes]:
    """The framed format: blocks of at most 64 KiB, each with its checksum (google/snappy, framing_format.txt)."""
    at = len(SNAPPY_STREAM)
    if not body.startswith(SNAPPY_STREAM):
        raise ValueError("no stream identifier")
    while at < len(body):
        stop = at + 4 + int.from_bytes(body[at + 1 : at + 4], "little")
        if stop > len(body) or stop - at > 2 * SNAPPY_BLOCK_MAX:
            raise EOFError
        if body[at] <= 1:
            yield bytes(cramjam.snappy.decompress(SNAPPY_STREAM + body[at:stop]))
        elif body[at] < 0x80:
            raise ValueError("a chunk that must not be skipped")
        at = stop


def _snappy_block(body: bytes, limit: int) -> bytes:
    """The block format: its length stands first, so that it is known before anything is allocated."""
    size = cramjam.snappy.decompress_raw_len(body)
    if size > limit:
        raise TooLargeError(limit)
    out = np.empty(size, np.uint8)
    cramjam.snappy.decompress_raw_into(body, out.data)
    return out.tobytes()


PIECES: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zlib": _deflate,
    "zstd": _zstd,
    "snappy": _snappy_frames,
    "x-snappy-framed": _snappy_frames,
}
