"""`python -m tests.fuzz.transcode SECONDS SEED`: the JSON transcoder against orjson and protobuf's own JSON mapping.

How it works. Real requests as OTLP JSON are mutated byte by byte and token by token and given to the compiled
transcoder and to the slow, exact way. Where both accept, the messages are the same; where the transcoder accepts alone,
protobuf reads its output, unless the text was no UTF-8. What it refuses names a byte, and the slow way refuses it too.
"""

from __future__ import annotations

import base64
import json
import random
import re
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import orjson
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from collector_processor.decode import otlp_json
from collector_processor.model import Signal
from tests.fuzz.decode import HANG_S, REQUESTS, Disagreement, corpus

TOKENS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"null",
        b"true",
        b"-",
        b"1e3",
        b"0.5",
        b"NaN",
        b'"NaN"',
        b" \n",
    ),
    *(b'"\\ud83d"', b'"\\u00e9"', b"18446744073709551616", b"-1", b'"traceId":""', b'"spans":[', b'"kind":"X"', b"{}"),
    *(
        b'{"arrayValue":{"values":[',
        b'{"kvlistValue":{"values":[{"key":"k","value":',
        b'"x":[{"y":[1,2,{}]}],',
        b"\xff",
    ),
)
PIECE = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.0-9eE]+|[{}\[\],:]|\w+|\s+|.', re.DOTALL)


def hexed(value: Any) -> Any:
    """protobuf's JSON mapping with ids as OTLP has them."""
    if isinstance(value, list):
        return [hexed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: base64.b64decode(v).hex() if k in otlp_json.IDS else hexed(v) for k, v in value.items()}


def mutate(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.6:
        pieces = PIECE.findall(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(pieces))
            what = rng.randrange(5)
            if what == 0:
                del pieces[at]
            elif what == 1:
                pieces.insert(at, rng.choice(TOKENS))
            elif what == 2:
                pieces[at] = rng.choice(TOKENS)
            elif what == 3:
                pieces[at] = rng.choice(pieces)
            else:
                pieces.insert(at, rng.choice((b" ", b"\n", b"\t\r")))
        return b"".join(pieces)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(out))
        if rng.random() < 0.5:
            out[at] = rng.randrange(256)
        else:
            out[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(out)


def no_key_twice(data: bytes) -> bool:
    """Whether no object in `data` has two members that mean one field (or one of a oneof): what wins then differs."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [re.sub("_(.)", lambda m: m[1].upper(), key) for key, _ in items]
        if len(set(names)) < len(names) or sum(name.endswith("Value") for name in names) > 1:
            raise KeyError
        return dict(items)

    try:
        json.loads(data, object_pairs_hook=pairs)
    except KeyError:
        return False
    return True


def check(signal: Signal, data: bytes, counts: Counter[str]) -> None:
    """One input. Errors: Disagreement."""
    counts["inputs"] += 1
    fast = slow = None
    try:
        _, fast = otlp_json.to_protobuf(data, signal)
    except ValueError as error:
        if not re.search(r"at byte \d+", str(error)):
            raise Disagreement(f"the error names no byte: {error}") from error
    with suppress(ValueError, TypeError, json_format.ParseError, RecursionError):
        _, slow = otlp_json.slowly(data, signal)
    counts["transcoder accepts"] += fast is not None
    counts["slow way accepts"] += slow is not None
    if slow is not None and fast is None:
        raise Disagreement("the slow way accepts what is refused")
    if fast is None:
        return
    try:
        message = REQUESTS[signal].FromString(fast)
    except DecodeError as error:
        if is_utf8(data):
            raise Disagreement("protobuf does not read the output") from error
        return
    if slow is not None and no_key_twice(data):
        counts["both accept"] += 1
        if message != REQUESTS[signal].FromString(slow):
            raise Disagreement("the messages differ")


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def main() -> None:
    """Runs for the seconds and with the seed given."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    requests = [
        (signal, orjson.dumps(hexed(json_format.MessageToDict(REQUESTS[signal].FromString(data)))))
        for signal, data in zip(*corpus(), strict=True)
        if len(data) < 3000
    ]
    for signal, data in requests:
        check(signal, data, counts)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        signal, data = rng.choice(requests)
        data = mutate(data, rng)
        started = time.process_time()
        try:
            check(signal, data, counts)
        except Exception:
            print(f"{signal.name} {data!r}", flush=True)
            raise
        if time.process_time() - started > HANG_S:
            raise Disagreement(f"an input took {time.process_time() - started:.1f} s: {data!r}")
    print(", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
