"""What `examine` finds, against Python's own UTF-8 decoder and the official protobuf classes."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.decode.repair import NEVER, NO_LIMIT, SCHEMA, TYPES, clean
from collector_processor.kernels import examine as kernel
from collector_processor.model import Signal
from tests.examples import examples
from tests.otlp import log, logs, span, traces

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
few = examples(30 if WITHOUT_JIT else 1000)
CLASSES = {Signal.TRACES: ExportTraceServiceRequest, Signal.LOGS: ExportLogsServiceRequest}


def is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def nearly_utf8() -> st.SearchStrategy[bytes]:
    """Bytes near every edge of the definition: leads, continuations, surrogates, overlong forms, cut characters."""
    edges = [b"\xc0\x80", b"\xc1\xbf", b"\xc2\x80", b"\xe0\x9f\xbf", b"\xe0\xa0\x80", b"\xed\x9f\xbf", b"\xed\xa0\x80"]
    edges += [
        b"\xf0\x8f\xbf\xbf",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5",
        b"\xff",
        b"\x80",
    ]
    piece = st.one_of(st.text(max_size=9).map(str.encode), st.sampled_from(edges), st.binary(max_size=3))
    return st.lists(piece, max_size=6).map(b"".join)


@pytest.mark.slow
@few
@given(nearly_utf8(), st.binary(max_size=9))
@example(b"1234567\xc3", b"\xa9")
@example(b"\xe2\x82", b"\xac")
def test_utf8_is_what_python_says(text: bytes, behind: bytes) -> None:
    buffer = np.frombuffer(text + behind, np.uint8)
    assert kernel.is_utf8(buffer, 0, len(text)) == is_utf8(text)


def marks(data: bytes, signal: Signal) -> tuple[list[int], np.ndarray]:
    """(reasons of the rows, totals) of `examine`."""
    edits, totals = np.zeros((64, kernel.COLUMNS), np.int64), np.zeros(kernel.TOTALS, np.int64)
    buffer = np.frombuffer(data, np.uint8)
    kernel.examine(buffer, SCHEMA, TYPES[signal], NEVER, NO_LIMIT, NO_LIMIT, edits, totals)
    return edits[: totals[kernel.EDITS], kernel.REASON].tolist(), totals


def test_a_sound_request_has_no_marks_and_all_records_counted() -> None:
    data = traces(*[span(1, n + 1, attributes={"a": "b", "n": 1}) for n in range(20)], span(2, 1, service="other"))
    reasons, totals = marks(data, Signal.TRACES)
    assert reasons == []
    assert totals[kernel.SEEN] == 21


def test_elements_are_every_message_inside() -> None:
    one = marks(logs(log("x")), Signal.LOGS)[1][kernel.ELEMENTS]
    more = marks(logs(log("x", attributes={"a": 1, "b": {"c": "d"}})), Signal.LOGS)[1][kernel.ELEMENTS]
    # a: pair and value; b: pair, value, list; c: pair and value
    assert more - one == 7


@pytest.mark.parametrize("signal", [Signal.TRACES, Signal.LOGS])
def test_what_has_no_marks_protobuf_accepts(signal: Signal) -> None:
    """Mutated requests: the walk is never more lenient than protobuf, and never reads outside the request."""
    rng = random.Random(7)
    nested = {"k": {"l": {"m": "ö" * 9}}}
    sources = {
        Signal.TRACES: traces(span(1, 2, attributes=nested), span(1, 3, 2, service="b"), span(1, 4, name="grüße")),
        Signal.LOGS: logs(log("a body", 1, 2, attributes=nested), log({"x": "y"}, service="b"), log("z", 5)),
    }
    accepted = refused = 0
    for _ in range(200 if WITHOUT_JIT else 20_000):
        data = bytearray(sources[signal])
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    del data[at : at + rng.randrange(1, 9)]
                case 3:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
                case _:
                    data[at:] = b""
            if not data:
                break
        reasons = marks(bytes(data), signal)[0] if data else []
        try:
            CLASSES[signal].FromString(bytes(data))
        except DecodeError:
            assert reasons, data.hex()
            refused += 1
        else:
            accepted += not reasons
    assert accepted > 10
    assert refused > 10


def test_the_walk_stops_at_a_limit() -> None:
    data = logs(*[log("x") for _ in range(50)])
    for records_max, elements_max in ((49, NO_LIMIT), (NO_LIMIT, 55)):
        with pytest.raises(ValueError, match="in one request"):
            clean(data, Signal.LOGS, records_max=records_max, elements_max=elements_max)
    assert clean(data, Signal.LOGS, records_max=50, elements_max=56).records == 50
