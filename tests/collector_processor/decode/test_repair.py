"""Poison batches: one bad record among good ones costs itself and nothing else."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.decode.repair import TooManyError, clean, repair
from collector_processor.model import Signal
from tests.examples import examples
from tests.otlp import log, logs

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
GOOD = 99 if WITHOUT_JIT else 999
MARK = b"MARK"


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def nested_array(depth: int) -> bytes:
    """An AnyValue with `depth` arrays one inside the other."""
    value = field(1, b"x")
    for _ in range(depth):
        value = field(5, field(1, value))
    return value


def nested_list(depth: int) -> bytes:
    """An AnyValue with `depth` key-value lists one inside the other."""
    value = field(1, b"x")
    for _ in range(depth):
        value = field(6, field(1, field(1, b"k") + field(2, value)))
    return value


SPAN_IDS = field(1, b"\x01" * 16) + field(2, b"\x02" * 8)
DAMAGED_LOGS = {
    "invalid_utf8": field(5, field(1, b"caf\xe9")),
    "too_deep": field(5, nested_list(33)),
    "truncated": field(5, b"\x0a\x7fshort"),
    "malformed": b"\x2f\x01",
}
DAMAGED_SPANS = {
    "invalid_utf8": SPAN_IDS + field(5, b"GET /caf\xe9"),
    "too_deep": SPAN_IDS + field(9, field(1, b"k") + field(2, nested_array(48))),
    "truncated": SPAN_IDS + b"\x2a\x7fshort",
    "malformed": SPAN_IDS + b"\x2f\x01",
    "trace_id": field(1, b"\x01" * 12) + field(2, b"\x02" * 8),
    "span_id": field(1, b"\x01" * 16) + field(2, bytes(8)),
    "parent_span_id": SPAN_IDS + field(4, b"\x03" * 6),
}


def batch(signal: Signal, bad: bytes | None, good: int = GOOD) -> bytes:
    """A request of `good` records with the record `bad`, if any, in the middle; two resources, three scopes."""

    def scope(records: int, *more: bytes) -> bytes:
        one = field(5, field(1, b"fine")) if signal == Signal.LOGS else SPAN_IDS + field(5, b"op")
        return field(2, field(1, field(1, b"app")) + b"".join(field(2, one) for _ in range(records)) + b"".join(more))

    third = good // 3
    first = field(1, scope(third) + scope(third, b"" if bad is None else field(2, bad)))
    return first + field(1, scope(good - 2 * third))


def records_of(data: bytes, signal: Signal) -> list[Any]:
    if signal == Signal.LOGS:
        groups = [
            scope for group in ExportLogsServiceRequest.FromString(data).resource_logs for scope in group.scope_logs
        ]
        return [record for scope in groups for record in scope.log_records]
    scopes = [
        scope for group in ExportTraceServiceRequest.FromString(data).resource_spans for scope in group.scope_spans
    ]
    return [record for scope in scopes for record in scope.spans]


@pytest.mark.parametrize(
    ("signal", "reason", "bad"),
    [(Signal.LOGS, reason, bad) for reason, bad in DAMAGED_LOGS.items()]
    + [(Signal.TRACES, reason, bad) for reason, bad in DAMAGED_SPANS.items()]
    + [(Signal.LOGS, "too_deep", field(5, nested_array(depth))) for depth in (49, 10_000)]
    + [(Signal.LOGS, "too_deep", field(5, nested_list(10_000)))],
)
def test_one_bad_record_costs_itself_only(signal: Signal, reason: str, bad: bytes) -> None:
    cleaned = clean(batch(signal, bad), signal)
    assert cleaned.rejected == {reason: 1}
    assert cleaned.records == len(records_of(cleaned.data, signal)) == GOOD
    assert cleaned.data == batch(signal, None)


@pytest.mark.parametrize(("maker", "most"), [(nested_array, 48), (nested_list, 32)])
def test_depth_that_protobuf_accepts_stays(maker: Any, most: int) -> None:
    deepest = batch(Signal.LOGS, field(5, maker(most)))
    assert clean(deepest, Signal.LOGS).data == deepest
    assert len(records_of(deepest, Signal.LOGS)) == GOOD + 1
    with pytest.raises(DecodeError):
        records_of(batch(Signal.LOGS, field(5, maker(most + 1))), Signal.LOGS)


def test_repair_keeps_a_text_that_is_not_utf8_with_replacement_characters() -> None:
    data, rejected = repair(batch(Signal.LOGS, DAMAGED_LOGS["invalid_utf8"]), Signal.LOGS)
    assert rejected == {}
    texts = [record.body.string_value for record in records_of(data, Signal.LOGS)]
    assert len(texts) == GOOD + 1
    assert texts.count("caf\N{REPLACEMENT CHARACTER}") == 1


@pytest.mark.parametrize("maker", [nested_array, nested_list])
@pytest.mark.parametrize("depth", [49, 10_000])
def test_repair_cuts_what_is_too_deep_off(maker: Any, depth: int) -> None:
    data, rejected = repair(batch(Signal.LOGS, field(5, maker(depth))), Signal.LOGS)
    assert rejected == {}
    records = records_of(data, Signal.LOGS)
    assert len(records) == GOOD + 1
    assert sum(record.body.WhichOneof("value") in {"array_value", "kvlist_value"} for record in records) == 1


def test_a_repaired_span_without_ids_is_rejected_all_the_same() -> None:
    bad = field(1, b"\x01" * 12) + field(2, b"\x02" * 8) + field(5, b"caf\xe9")
    _, rejected = repair(batch(Signal.TRACES, bad), Signal.TRACES)
    assert rejected == {"trace_id": 1}


@pytest.mark.parametrize(
    "ids", [field(9, b"\x01" * 12), field(10, b"\x01" * 7), field(9, b"1" * 32) + field(10, b"1" * 16)]
)
def test_a_log_with_ids_of_a_wrong_length_becomes_uncorrelated(ids: bytes) -> None:
    cleaned = clean(batch(Signal.LOGS, field(5, field(1, MARK)) + ids), Signal.LOGS)
    assert (cleaned.rejected, cleaned.repaired) == ({}, {"log_id": 1})
    [record] = [one for one in records_of(cleaned.data, Signal.LOGS) if one.body.string_value == "MARK"]
    assert not record.trace_id
    assert not record.span_id


def test_a_log_with_ids_of_zeros_is_not_touched() -> None:
    data = batch(Signal.LOGS, field(9, bytes(16)) + field(10, bytes(8)))
    assert clean(data, Signal.LOGS).data == data


def test_a_damaged_resource_or_scope_is_mended_and_its_records_stay() -> None:
    bad_pair = field(1, field(1, b"k") + field(2, field(1, b"\xff")))
    good_pair = field(1, field(1, b"service.name") + field(2, field(1, b"pay")))
    records = field(2, field(5, field(1, b"fine"))) * 3
    data = field(
        1, field(1, bad_pair + good_pair) + field(2, field(1, field(1, b"\xfe")) + records + field(3, b"\xfd"))
    )
    cleaned = clean(data, Signal.LOGS)
    assert cleaned.records == 3
    assert cleaned.rejected == {}
    assert cleaned.repaired == {"invalid_utf8": 3}
    group = ExportLogsServiceRequest.FromString(cleaned.data).resource_logs[0]
    assert [pair.value.string_value for pair in group.resource.attributes] == ["\ufffd", "pay"]
    assert group.scope_logs[0].scope.name == group.scope_logs[0].schema_url == "\ufffd"


def test_of_a_truncated_request_what_is_whole_is_kept() -> None:
    whole = logs(*[log(f"line {number}") for number in range(10)])
    kept = [len(records_of(clean(whole[:size], Signal.LOGS).data, Signal.LOGS)) for size in range(len(whole) + 1)]
    assert kept[-1] == 10
    assert kept == sorted(kept)
    assert set(kept) == set(range(11))
    assert clean(whole[:-1], Signal.LOGS).rejected == {"truncated": 1}


def test_our_own_output_is_dropped_and_not_called_a_reject() -> None:
    foreign, own = logs(log("a"), log("b")), logs(log("anomaly"), log("anomaly"), log("x"), scope="spanchain")
    cleaned = clean(foreign + own, Signal.LOGS)
    assert (cleaned.data[: len(foreign)], cleaned.records, cleaned.own, cleaned.rejected) == (foreign, 2, 3, {})
    assert len(records_of(cleaned.data, Signal.LOGS)) == 2
    assert clean(logs(log("a"), scope="spanchain2"), Signal.LOGS).own == 0


def test_our_own_damaged_records_are_not_counted_twice() -> None:
    own = field(1, field(2, field(2, DAMAGED_LOGS["invalid_utf8"]) + field(1, field(1, b"spanchain"))))
    cleaned = clean(own + logs(log("a")), Signal.LOGS)
    assert (cleaned.records, cleaned.own, cleaned.rejected) == (1, 1, {})


def test_unknown_fields_survive_beside_a_bad_record() -> None:
    data = batch(Signal.LOGS, DAMAGED_LOGS["truncated"]) + field(7, b"unknown")
    cleaned = clean(field(1, field(9, b"strange")) + data, Signal.LOGS)
    assert field(7, b"unknown") in cleaned.data
    assert field(1, field(9, b"strange")) in cleaned.data


@examples(20 if WITHOUT_JIT else 300)
@given(st.integers(0, 2**32), st.sampled_from([Signal.TRACES, Signal.LOGS]), st.booleans())
def test_whatever_comes_protobuf_accepts_what_goes_on(seed: int, signal: Signal, keep_damaged: bool) -> None:
    rng = random.Random(seed)
    damaged = DAMAGED_LOGS if signal == Signal.LOGS else DAMAGED_SPANS
    data = bytearray(batch(signal, rng.choice(list(damaged.values())), 12))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    cleaned = clean(bytes(data), signal, keep_damaged=keep_damaged)
    assert len(records_of(cleaned.data, signal)) == cleaned.records
    again = clean(cleaned.data, signal, keep_damaged=keep_damaged)
    assert (again.data, again.rejected, again.repaired) == (cleaned.data, {}, {})


def test_more_damage_than_first_expected_is_found() -> None:
    data = b"".join(batch(Signal.LOGS, DAMAGED_LOGS["invalid_utf8"], 3) for _ in range(100))
    assert clean(data, Signal.LOGS).rejected == {"invalid_utf8": 100}


@pytest.mark.skipif(WITHOUT_JIT, reason="numba is switched off: its bound of time is that of compiled code")
def test_a_request_made_of_damage_does_not_stop_the_service() -> None:
    """The mending of one request is bounded, whatever its size."""
    bad = field(2, field(5, field(1, b"\xff" * 100)))
    data = field(1, field(2, bad * 100_000))
    clean(bad, Signal.LOGS)
    began = time.process_time()
    cleaned = clean(data, Signal.LOGS, keep_damaged=True)
    assert time.process_time() - began < 5
    assert cleaned.records + sum(cleaned.rejected.values()) == 100_000
    assert 0 < cleaned.records < 100_000


def test_limits_are_seen_before_anything_is_built() -> None:
    with pytest.raises(TooManyError, match="more than 10 records"):
        clean(logs(*[log("x")] * 11), Signal.LOGS, records_max=10)
    with pytest.raises(TooManyError, match="more than 100 attributes"):
        clean(logs(log("x", attributes={str(n): n for n in range(60)})), Signal.LOGS, elements_max=100)


def test_an_empty_request_is_sound() -> None:
    assert clean(b"", Signal.TRACES).records == 0
