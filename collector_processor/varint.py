"""Numbers as protobuf writes them, for those who write a few fields in plain Python; kernels have their own.

How it works. Seven bits a byte, least significant first; the eighth says that more follow
(https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations


def as_varint(value: int) -> bytes:
    """The bytes of `value` >= 0."""
    out = bytearray()
    while value > 127:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
