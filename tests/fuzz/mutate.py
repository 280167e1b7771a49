"""Mutations of protobuf bytes: blind ones on bytes, and ones that know the wire format and so get deeper.

How it works. The blind ones flip, cut, insert, repeat and splice. The others read the bytes as nested fields without
any schema, change one of them somewhere, and write everything back with right lengths: a field doubled, moved or left
out, a value of another size or wire type, a varint longer than it has to be, an unknown field, a group, a length that
lies.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

DEPTH = 9
EDGES = (0, 1, 2, 7, 8, 9, 15, 16, 17, 127, 128, 255, 2**31 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(slots=True)
class Field:
    """One field: its number, wire type and bytes, or for a message its fields."""

    number: int
    wire: int
    data: bytes = b""
    inside: list[Field] | None = None


def varint(value: int, padding: int = 0) -> bytes:
    """`value` as a varint, `padding` bytes longer than it has to be."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 128
        out.append(0)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("not a varint")


def parse(data: bytes, depth: int = 0) -> list[Field]:
    """`data` as fields; what looks like a message is one. ValueError, IndexError when it is none."""
    out = []
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0 or wire not in {0, 1, 2, 5}:
            raise ValueError("not fields")
        begin = at
        if wire == 0:
            _, at = read_varint(data, at)
        elif wire == 2:
            size, begin = read_varint(data, at)
            at = begin + size
        else:
            at += 8 if wire == 1 else 4
        if at > len(data):
            raise ValueError("cut off")
        one = Field(number, wire, data[begin:at])
        if wire == 2 and depth < DEPTH and one.data:
            try:
                one.inside = parse(one.data, depth + 1)
            except (ValueError, IndexError):
                one.inside = None
        out.append(one)
    return out


@dataclass(slots=True)
class Odd:
    """Where writing departs from the shortest form."""

    lies: int = 0  # added to the length of the field that is the `at`-th written
    padding: int = 0
    at: int = -1
    written: int = field(default=0)


def write(fields: list[Field], odd: Odd) -> bytes:
    out = bytearray()
    for one in fields:
        padding = lies = 0
        if odd.written == odd.at:
            padding, lies = odd.padding, odd.lies
        odd.written += 1
        out += varint(one.number << 3 | one.wire, padding)
        data = write(one.inside, odd) if one.inside is not None else one.data
        if one.wire == 2:
            out += varint(max(0, len(data) + lies), padding)
        out += data
    return bytes(out)


def everywhere(fields: list[Field]) -> list[list[Field]]:
    """`fields` and the fields of every message below."""
    found = [fields]
    for one in fields:
        if one.inside is not None:
            found += everywhere(one.inside)
    return found


class Mutator:
    """Makes new inputs of old ones. The same seed gives the same inputs."""

    def __init__(self, corpus: list[bytes], seed: int) -> None:
        self.corpus = corpus
        self.random = random.Random(seed)
        self.trees = [parse(data) for data in corpus]

    def next(self) -> tuple[int, bytes]:
        """(number of the input it comes from, mutated bytes)."""
        number = self.random.randrange(len(self.corpus))
        data = self.corpus[number]
        if self.random.random() < 0.6:
            data = self.knowing(number)
        if self.random.random() < 0.5:
            data = self.blind(data)
        return number, data

    def knowing(self, number: int) -> bytes:
        rng = self.random
        tree = parse(self.corpus[number])
        odd = Odd()
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            places = [place for place in everywhere(tree) if place]
            if not places:
                break
            place = rng.choice(places)
            rng.choice(CHANGES)(place, rng.randrange(len(place)), rng)
        if rng.random() < 0.3:
            odd = Odd(rng.choice((-9, -1, 1, 1, 2, 100, 2**31, 2**63)), rng.choice((0, 0, 1, 3, 9)), rng.randrange(60))
        return write(tree, odd)

    def blind(self, data: bytes) -> bytes:
        rng = self.random
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            at = rng.randrange(len(out) + 1)
            what = rng.randrange(7)
            if what == 0 and at < len(out):
                out[at] = rng.randrange(256)
            elif what == 1 and at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            elif what == 2:
                del out[at : at + rng.randrange(1, 9)]
            elif what == 3:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            elif what == 4:
                out[at:at] = out[at : at + rng.randrange(1, 64)]
            elif what == 5:
                other = rng.choice(self.corpus)
                begin = rng.randrange(len(other))
                out[at:at] = other[begin : begin + rng.randrange(1, 200)]
            elif rng.random() < 0.2:
                del out[at:]
        return bytes(out)


Change = Callable[[list[Field], int, random.Random], None]


def _double(place: list[Field], at: int, rng: random.Random) -> None:
    place.insert(rng.randrange(len(place) + 1), place[at])


def _again(place: list[Field], at: int, rng: random.Random) -> None:
    """The field a second time, with another value: the last one wins."""
    place.insert(at + 1, place[at])
    rng.choice((_resize, _same_wire))(place, at + rng.randrange(2), rng)


def _drop(place: list[Field], at: int, rng: random.Random) -> None:
    del place[at]


def _move(place: list[Field], at: int, rng: random.Random) -> None:
    one = place.pop(at)
    place.insert(rng.randrange(len(place) + 1), one)


def _renumber(place: list[Field], at: int, rng: random.Random) -> None:
    old = place[at]
    place[at] = Field(rng.choice((*range(1, 17), 99, 2**29 - 1)), old.wire, old.data, old.inside)


def _resize(place: list[Field], at: int, rng: random.Random) -> None:
    old = place[at]
    if old.wire == 2:
        place[at] = Field(old.number, 2, rng.randbytes(rng.choice((0, 1, 4, 7, 8, 9, 15, 16, 17, 40))))
    else:
        _value(place, at, rng)


def _value(place: list[Field], at: int, rng: random.Random) -> None:
    number = place[at].number
    value = rng.choice(EDGES)
    wire = rng.choice((0, 1, 2, 5))
    size = {1: 8, 5: 4}.get(wire, 0)
    if wire == 0:
        data = varint(value, rng.choice((0, 0, 1, 2)))
    elif size:
        data = (value % (1 << 8 * size)).to_bytes(size, "little")
    else:
        data = bytes(min(value, 20))
    place[at] = Field(number, wire, data)


def _same_wire(place: list[Field], at: int, rng: random.Random) -> None:
    old = place[at]
    value = rng.choice(EDGES)
    if old.wire == 0:
        place[at] = Field(old.number, 0, varint(value))
    elif old.wire == 1:
        place[at] = Field(old.number, 1, (value % 2**64).to_bytes(8, "little"))


def _text(place: list[Field], at: int, rng: random.Random) -> None:
    text = rng.choice(
        (b"", b"\xff\xfe", "é€😀".encode(), b"a1 b22", b"0123456789abcdef" * 2, b"\0\x1b[31m", b"spanchain")
    )
    place[at] = Field(place[at].number, 2, text)


def _group(place: list[Field], at: int, rng: random.Random) -> None:
    number = rng.randrange(1, 20)
    place.insert(at, Field(number, 3))
    if rng.random() < 0.7:
        place.insert(at + 1, Field(number, 4))


def _nest(place: list[Field], at: int, rng: random.Random) -> None:
    one = place[at]
    for _ in range(rng.choice((1, 5, 40))):
        one = Field(rng.choice((1, 2, 5, 6)), 2, b"", [one])
    place[at] = one


CHANGES: tuple[Change, ...] = (
    *(_double, _again, _drop, _move, _renumber, _resize, _value, _same_wire, _same_wire, _text, _group, _nest),
)
