"""What the handler decides, whatever the transport: order of the steps, accounting, what reaches the sink."""

from __future__ import annotations

import gzip
import threading
import time
from typing import Any

import pytest

from collector_processor.config import LimitsConfig
from collector_processor.decode.repair import clean
from collector_processor.ingest.answers import Answer, Code, Counters, RetryLaterError
from collector_processor.ingest.handler import Handler
from collector_processor.model import Payload, Signal
from tests.otlp import log, logs

GOOD = logs(log("one"), log("two"))
OWN = logs(log("mine"), scope="spanchain")
BAD = logs(log("MARK")).replace(b"MARK", b"\xff\xfe\xfd\xfc")
NOW_NS = 1_700_000_000_000_000_007


class Kept(list[Payload]):
    """A sink that keeps, or raises what it was told to."""

    trouble: Exception | None = None

    def __call__(self, payload: Payload) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.append(payload)


def handler(kept: Any, **limits: Any) -> Handler:
    def from_json(data: bytes, signal: Signal) -> bytes:
        if data != b"json":
            raise ValueError("not what a test sends")
        return GOOD

    return Handler(LimitsConfig(**limits), kept, clean, from_json, lambda: NOW_NS, Counters())


def handled(one: Handler, data: bytes, **kwargs: Any) -> Answer:
    return one.handle(Signal.LOGS, "t", "grpc", data, **kwargs)


def test_a_payload_is_what_was_sent_with_its_arrival() -> None:
    kept = Kept()
    assert handled(handler(kept), GOOD) == Answer(Code.OK)
    assert kept == [Payload(Signal.LOGS, "t", GOOD, NOW_NS)]


def test_json_arrives_as_protobuf_after_decompression() -> None:
    kept = Kept()
    assert handled(handler(kept), gzip.compress(b"json"), encoding="gzip", is_json=True).code is Code.OK
    assert [payload.data for payload in kept] == [GOOD]
    answer = handled(handler(kept), b"other", is_json=True)
    assert (answer.code, answer.message) == (Code.INVALID, "body is not OTLP JSON: not what a test sends")


def test_every_record_is_accounted_for() -> None:
    kept = Kept()
    one = handler(kept)
    answer = handled(one, GOOD + BAD + OWN + BAD)
    assert (answer.code, answer.rejected, answer.message) == (Code.OK, 2, "records rejected (invalid_utf8: 2)")
    assert one.counters.get("records_received_total", signal="logs", transport="grpc") == 5
    assert one.counters.get("records_rejected_total", signal="logs", reason="invalid_utf8") == 2
    assert one.counters.get("records_rejected_total", signal="logs", reason="own") == 1
    assert clean(kept[0].data, Signal.LOGS).records == 2


def test_a_request_of_bad_records_only_is_a_partial_success_and_reaches_nobody() -> None:
    kept = Kept()
    answer = handled(handler(kept), BAD)
    assert (answer.code, answer.rejected) == (Code.OK, 1)
    assert kept == []


def test_nothing_is_counted_as_received_that_was_not_kept() -> None:
    kept = Kept()
    kept.trouble = RetryLaterError("disk_full", "the disk is full", 3)
    one = handler(kept)
    assert handled(one, GOOD) == Answer(Code.RETRY, "the disk is full", retry_after_s=3)
    assert one.counters.get("records_received_total", signal="logs", transport="grpc") == 0
    assert one.counters.get("requests_total", signal="logs", transport="grpc", code="retry") == 1
    kept.trouble = None
    assert handled(one, GOOD).code is Code.OK
    assert one.counters.get("records_received_total", signal="logs", transport="grpc") == 2


@pytest.mark.parametrize(("asked", "told"), [(0, 1), (7, 7), (3600, 30)])
def test_the_time_to_come_back_is_between_one_and_thirty_seconds(asked: int, told: int) -> None:
    assert RetryLaterError("x", "y", asked).answer.retry_after_s == told


def test_a_failure_of_the_sink_is_retryable_and_tells_nothing() -> None:
    kept = Kept()
    kept.trouble = KeyError("secret")
    answer = handled(handler(kept), GOOD)
    assert answer.code is Code.RETRY
    assert "secret" not in answer.message


def test_bytes_in_flight_are_given_back_whatever_happens() -> None:
    kept = Kept()
    one = handler(kept, request_bytes_max=len(GOOD), inflight_bytes_max=len(GOOD) + 10)
    for trouble in (None, KeyError("x"), RetryLaterError("x", "y")):
        kept.trouble = trouble
        handled(one, GOOD)
        handled(one, b"\xff")
        handled(one, gzip.compress(GOOD), encoding="gzip")
        handled(one, b"\xff", encoding="gzip")
    kept.trouble = None
    assert handled(one, GOOD).code is Code.OK


def test_what_a_body_becomes_is_in_flight_as_well() -> None:
    gate, inside = threading.Event(), threading.Event()

    def sink(payload: Payload) -> None:
        inside.set()
        gate.wait(10)

    large = logs(log("x" * 100_000))
    one = handler(sink, request_bytes_max=110_000, inflight_bytes_max=150_000)
    first = threading.Thread(target=handled, args=(one, gzip.compress(large)), kwargs={"encoding": "gzip"})
    first.start()
    assert inside.wait(10)
    assert handled(one, gzip.compress(large), encoding="gzip").code is Code.RETRY
    gate.set()
    first.join()
    assert handled(one, gzip.compress(large), encoding="gzip").code is Code.OK


def test_the_largest_request_must_fit_into_what_may_be_in_flight() -> None:
    with pytest.raises(ValueError, match="inflight_bytes_max"):
        LimitsConfig(request_bytes_max=1001, inflight_bytes_max=1000)
    assert handled(handler(Kept(), request_bytes_max=len(GOOD), inflight_bytes_max=len(GOOD)), GOOD).code is Code.OK


def test_metrics_are_not_even_looked_at() -> None:
    kept = Kept()
    assert handler(kept).handle(Signal.METRICS, "t", "http", b"\xff", encoding="gzip").code is Code.OK
    assert kept == []


@pytest.mark.slow
def test_the_cost_of_a_request_is_small_and_per_byte_only() -> None:
    """300 us a request, and no Python per record: ten times the records may not cost ten times a handling of one."""
    one = handler(lambda payload: None)
    small = logs(log("x"))
    large = logs(*[log("x") for _ in range(1000)])

    def cost(data: bytes) -> float:
        costs = []
        for _ in range(30):
            began = time.perf_counter()
            for _ in range(10):
                handled(one, data)
            costs.append((time.perf_counter() - began) / 10)
        return min(costs)

    assert cost(small) < 300e-6
    assert cost(large) < cost(small) + 1000 * 1e-6
