"""Whether a zstd body is whole (RFC 8878): streaming decompressors end quietly where a body was cut off.

How it works. Frames and their blocks are stepped over by the sizes in their headers; nothing is decompressed.
"""

from __future__ import annotations

from numba import int64

from collector_processor.kernels.jit import expanded, kernel

MAGIC = 0xFD2FB528
SKIPPABLE_MAGIC = 0x184D2A50  # to 0x184D2A5F


@expanded
def little32(buf, p):
    """Little-endian 32-bit number at p; the caller has checked that 4 bytes are there."""
    return int64(buf[p]) | int64(buf[p + 1]) << 8 | int64(buf[p + 2]) << 16 | int64(buf[p + 3]) << 24


@expanded
def header_size(descriptor):
    """Bytes of a frame header behind its descriptor byte."""
    single_segment = (descriptor >> 5) & 1
    content_size = 1 << (descriptor >> 6) if descriptor >> 6 else single_segment
    dictionary_id = 4 if descriptor & 3 == 3 else descriptor & 3
    return (1 - single_segment) + dictionary_id + content_size


@kernel
def is_whole(buf):
    """Whether buf (uint8[n]) is frames from the first byte to the last."""
    p, end = 0, buf.size
    while p < end:
        if end - p < 8:
            return False
        magic = little32(buf, p)
        if magic & 0xFFFFFFF0 == SKIPPABLE_MAGIC:
            p += 8 + little32(buf, p + 4)
            continue
        if magic != MAGIC:
            return False
        descriptor = int64(buf[p + 4])
        p += 5 + header_size(descriptor)
        is_last = False
        while not is_last:
            if p + 3 > end:
                return False
            block = int64(buf[p]) | int64(buf[p + 1]) << 8 | int64(buf[p + 2]) << 16
            is_last = block & 1 == 1
            is_repeated_byte = (block >> 1) & 3 == 1
            p += 3 + (1 if is_repeated_byte else block >> 3)
        p += 4 if descriptor & 4 else 0  # checksum
    return p == end
