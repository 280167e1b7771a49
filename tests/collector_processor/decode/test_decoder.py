from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp import T0, log, logs, span, traces

from collector_processor.config import DecodeConfig, JoinConfig, RedactionConfig
from collector_processor.decode.decoder import Decoder
from collector_processor.kernels import decode as kernel
from collector_processor.model import Payload, RecordBatch, Signal, Symbols
from collector_processor.redact import Masker

SEED = 42


def decoder(seed: int = SEED, **join: Any) -> Decoder:
    return Decoder(DecodeConfig(), JoinConfig(**join), Symbols(), seed)


def decode(d: Decoder, data: bytes, signal: Signal = Signal.TRACES, tenant: str = "default") -> RecordBatch:
    return d.decode(Payload(signal, tenant, data, T0))


def names(d: Decoder, batch: RecordBatch) -> list[str]:
    return [d.symbols.events.text[int(event)] for event in batch.rows[:, kernel.EVENT]]


def test_every_field_of_a_span_that_the_engine_uses_is_read() -> None:
    d = decoder()
    batch = decode(d, traces(span(0xAB << 100 | 7, 5, 4, name="GET /pay", start_ms=1, ms=2, kind=3, status=2)))
    (row,) = batch.rows.tolist()
    assert row[kernel.TRACE_HI] == (0xAB << 100 | 7) >> 64
    assert row[kernel.TRACE_LO] == 7
    assert row[kernel.SPAN] == 5
    assert row[kernel.PARENT] == 4
    assert row[kernel.TIME] == T0 + 1_000_000
    assert row[kernel.END] == T0 + 3_000_000
    assert row[kernel.KIND] == 4
    assert row[kernel.STATUS] == 2
    assert names(d, batch) == ["GET /pay"]
    assert d.symbols.instances.text[row[kernel.RESOURCE]] == "gateway-0"


def test_every_field_of_a_log_that_the_engine_uses_is_read() -> None:
    d = decoder()
    batch = decode(d, logs(log("paid 12 EUR", 9, 5, severity=17, at_ms=3)), Signal.LOGS)
    (row,) = batch.rows.tolist()
    assert (row[kernel.TRACE_HI], row[kernel.TRACE_LO], row[kernel.SPAN]) == (0, 9, 5)
    assert row[kernel.TIME] == row[kernel.END] == T0 + 3_000_000
    assert (row[kernel.KIND], row[kernel.STATUS]) == (0, 17)
    assert names(d, batch) == ["paid <*> EUR"]


def test_a_log_without_a_time_has_the_observed_one() -> None:
    record = log("x", 1, 1, observed_time_unix_nano=T0 + 5)
    record[1]["time_unix_nano"] = 0
    assert decode(decoder(), logs(record), Signal.LOGS).rows[0, kernel.TIME] == T0 + 5


def test_bodies_that_differ_in_variables_are_one_event() -> None:
    d = decoder()
    batch = decode(d, logs(*(log(f"order A{n} took {n} ms", 1, 1) for n in range(50))), Signal.LOGS)
    assert len(set(names(d, batch))) == 1


def test_the_same_name_is_another_event_in_another_service_tenant_or_kind() -> None:
    d = decoder()
    one = decode(d, traces(span(1, 1), span(1, 2, service="risk"), span(1, 3, kind=3))).rows[:, kernel.EVENT].tolist()
    other = decode(d, traces(span(1, 1)), tenant="bank-b").rows[:, kernel.EVENT].tolist()
    assert len({*one, *other}) == 4


def test_a_name_with_zero_bytes_at_its_end_is_a_name_of_its_own() -> None:
    d = decoder()
    assert names(d, decode(d, traces(span(1, 1, name="a"), span(1, 2, name="b\0")))) == ["a", "b"]


def test_no_resource_leads_to_another_tenants_service() -> None:
    d = decoder()
    request = traces(span(1, 1, service="ledger"))
    for number in range(16):
        decode(d, traces(span(1, 1, service="own")), tenant=f"bank-{number}")
    decode(d, request, tenant="bank-0")
    # The same bytes with another field number, which tenant ids of 1 and 17 would have made up for.
    forged = request.replace(b"\x0a\x18\x0a", b"\x1a\x18\x0a", 1)
    assert forged != request
    batch = decode(d, forged, tenant="intruder")
    services = d.symbols.events.column("service")[batch.rows[:, kernel.EVENT].astype(np.int64)]
    assert d.symbols.services.column("tenant")[services].tolist() == [batch.tenant] == [17]


def test_ids_do_not_depend_on_the_seed() -> None:
    data = traces(*(span(1, n + 1, name=f"op {chr(65 + n)}", service=f"s{n % 3}") for n in range(20)))
    first, second = decoder(1), decoder(2)
    assert np.array_equal(decode(first, data).rows[:, kernel.EVENT], decode(second, data).rows[:, kernel.EVENT])
    assert np.array_equal(first.symbols.events.hash, second.symbols.events.hash)


def test_identifiers_in_span_names_are_cut_out() -> None:
    d = decoder()
    batch = decode(
        d,
        traces(
            span(1, 1, name="GET /orders/12345"),
            span(1, 2, name="GET /orders/77"),
            span(1, 3, name="GET /v1/oauth2/s3"),
            span(1, 4, name="GET /u/3f2504e0-4f89-11d3-9a0c-0305e82c3301"),
        ),
    )
    assert names(d, batch) == ["GET /orders/<*>", "GET /orders/<*>", "GET /v1/oauth2/s3", "GET /u/<*>"]


def test_an_event_log_is_named_by_its_event() -> None:
    d = decoder()
    batch = decode(d, logs(log("any text 1", 1, 1, event_name="payment.refused")), Signal.LOGS)
    assert names(d, batch) == ["payment.refused"]


def test_a_structured_body_has_the_template_of_its_message() -> None:
    d = decoder()
    batch = decode(d, logs(log({"message": "took 5 ms", "user": "x"}, 1, 1)), Signal.LOGS)
    assert names(d, batch) == ["took <*> ms"]


@pytest.mark.parametrize(
    ("attributes", "body"),
    [
        ({"trace_id": f"{0xABC:032x}"}, "x"),
        ({"traceId": f"{0xABC:032X}"}, "x"),
        ({"traceparent": f"00-{0xABC:032x}-{0x77:016x}-01"}, "x"),
        ({}, f"done TraceID: {0xABC:032x} ok"),
    ],
)
def test_a_log_without_a_trace_id_finds_it_in_attributes_or_body(attributes: dict[str, str], body: str) -> None:
    batch = decode(decoder(), logs(log(body, attributes=attributes)), Signal.LOGS)
    assert batch.rows[0, kernel.TRACE_LO] == 0xABC


def test_a_trace_id_of_the_record_itself_comes_first() -> None:
    batch = decode(decoder(), logs(log("x", 1, attributes={"trace_id": f"{2:032x}"})), Signal.LOGS)
    assert batch.rows[0, kernel.TRACE_LO] == 1


def test_wanted_attributes_become_cells_and_others_do_not() -> None:
    d = decoder(business_keys=("payment.id",), attributes=("payment.amount",))
    values = {"http.route": "/x", "payment.amount": 12.5, "payment.id": "P1"}
    batch = decode(d, traces(span(1, 1), span(1, 2, attributes=values)))
    assert batch.cell_row.tolist() == [1, 1]
    assert [d.attributes[key] for key in batch.cell_key] == ["payment.amount", "payment.id"]
    assert batch.cell_number[0] == 12.5


@pytest.mark.parametrize(
    ("value", "number"),
    [(7, 7.0), (-7, -7.0), (0.25, 0.25), ("12.50", 12.5), ("-3", -3.0), ("1.2.3", None), ("", None)],
)
def test_numbers_are_read_from_every_type(value: Any, number: float | None) -> None:
    batch = decode(decoder(attributes=("amount",)), traces(span(1, 1, attributes={"amount": value})))
    assert batch.cell_number[0] == number if number is not None else np.isnan(batch.cell_number[0])


def test_equal_keys_have_equal_hashes_in_attributes_and_bodies() -> None:
    d = decoder(business_keys=("payment.id",))
    of_span = decode(d, traces(span(1, 1, attributes={"payment.id": "PAY-000123"}))).cell_hash.tolist()
    of_body = decode(d, logs(log("booked PAY-000123 today")), Signal.LOGS)
    assert of_body.cell_key.tolist() == [kernel.BODY_WORD]
    assert of_span == of_body.cell_hash.tolist()


def test_our_own_output_is_left_out() -> None:
    d = decoder()
    assert len(decode(d, traces(span(1, 1), scope="spanchain")).rows) == 0
    assert len(decode(d, logs(log("x", 1), scope="spanchain")).rows) == 0
    assert d.own_records == 2


def test_a_bad_record_costs_only_itself() -> None:
    bad = span(1, 9)
    bad[1]["trace_id"] = b"short"
    batch = decode(decoder(), traces(span(1, 1), bad, span(1, 2)))
    assert batch.rows[:, kernel.SPAN].tolist() == [1, 2]
    assert sum(batch.rejected.values()) == 1


def test_garbage_is_counted_and_nothing_is_raised() -> None:
    batch = decode(decoder(), b"\xff\xff\xff not protobuf")
    assert len(batch.rows) == 0
    assert sum(batch.rejected.values()) >= 1


def test_a_request_larger_than_the_buffers_is_read_whole() -> None:
    batch = decode(decoder(), traces(*(span(1, n + 1, service=f"s{n % 400}") for n in range(10_000))))
    assert len(batch.rows) == 10_000


def test_a_full_lookup_table_is_emptied_and_goes_on() -> None:
    d = Decoder(DecodeConfig(lookups_max=16), JoinConfig(), Symbols(), SEED)
    data = traces(*(span(1, n + 1, name=f"op {chr(0x4E00 + n)}") for n in range(100)))
    first = decode(d, data).rows[:, kernel.EVENT].copy()
    assert d.events.emptied > 0
    assert np.array_equal(decode(d, data).rows[:, kernel.EVENT], first)


def test_a_request_with_more_resources_than_the_lookup_table_holds_is_read() -> None:
    d = Decoder(DecodeConfig(lookups_max=16), JoinConfig(), Symbols(), SEED)
    for services in (range(10), range(20), range(5, 25)):
        batch = decode(d, traces(*(span(1, n + 1, service=f"s{chr(0x4E00 + n)}") for n in services)))
        assert len(set(batch.rows[:, kernel.RESOURCE].tolist())) == len(services)


def test_names_beyond_the_limit_count_as_other_of_their_service() -> None:
    symbols = Symbols(events_max=16)
    d = Decoder(DecodeConfig(), JoinConfig(), symbols, SEED)
    batch = decode(d, traces(*(span(1, n + 1, name=f"op {chr(0x4E00 + n)}") for n in range(100))))
    events = batch.rows[:, kernel.EVENT].tolist()
    assert len(set(events[:4])) == 4  # a quarter
    (other,) = set(events[4:])
    assert symbols.events.text[other] == "other"
    assert symbols.services.text[symbols.events.column("service")[other]] == "gateway"
    assert symbols.events.overflowed == 96
    again = decode(d, traces(span(1, 1, name="op new"), span(1, 2, name="mine", service="t")))
    assert again.rows[0, kernel.EVENT] == other
    assert symbols.events.text[int(again.rows[1, kernel.EVENT])] == "mine"


def test_however_many_instances_there_were_a_service_is_known() -> None:
    symbols = Symbols(instances_max=16)
    d = Decoder(DecodeConfig(), JoinConfig(), symbols, SEED)
    for n in range(100):
        services = ("busy", "calm")[: 1 + (n % 10 == 0)]
        request = ExportTraceServiceRequest.FromString(traces(*(span(1, 1, service=name) for name in services)))
        for resource_spans in request.resource_spans:
            (instance,) = (a for a in resource_spans.resource.attributes if a.key == "service.instance.id")
            instance.value.string_value = f"pod-{n}"
        instances = decode(d, request.SerializeToString()).rows[:, kernel.RESOURCE].astype(np.int64)
        named = symbols.instances.column("service")[instances]
        assert [symbols.services.text[service] for service in named] == list(services)
    assert symbols.instances.text.count("other") == 3  # that of nobody, and those of two services
    assert symbols.instances.overflowed == 96 + 6


def test_a_card_number_is_no_number_and_joins_by_its_hash_alone() -> None:
    d = decoder(business_keys=("payment.id",), attributes=("amount",))
    number = "4111111111111111"
    values = [{"payment.id": number, "amount": value} for value in (int(number), float(number), number, 411, "4.5")]
    batch = decode(d, traces(*(span(1, n + 1, attributes=each) for n, each in enumerate(values))))
    keys, amounts = batch.cell_key == 0, batch.cell_key == 1
    assert np.isnan(batch.cell_number[keys]).all()
    assert len(set(batch.cell_hash[keys].tolist())) == 1
    assert np.isnan(batch.cell_number[amounts][:3]).all()
    assert batch.cell_number[amounts][3:].tolist() == [411, 4.5]


def test_what_was_masked_before_the_journal_joins_nothing() -> None:
    redaction = RedactionConfig(before_journal=True)
    d = Decoder(DecodeConfig(), JoinConfig(business_keys=("payment.id",)), Symbols(), SEED, redaction)
    number = "4111 1111 1111 1111"
    data = traces(
        *(span(1, n + 1, attributes={"payment.id": v}) for n, v in enumerate((number, 4111111111111111, "x")))
    )
    assert decode(d, data).cell_row.tolist() == [0, 1, 2]
    assert decode(d, Masker(redaction)(data, Signal.TRACES)).cell_row.tolist() == [2]
    lines = logs(log(f"paid with {number.replace(' ', '-')} now"))
    assert decode(d, lines, Signal.LOGS).cell_key.tolist() == [-1]
    assert decode(d, Masker(redaction)(lines, Signal.LOGS), Signal.LOGS).cell_key.tolist() == []
