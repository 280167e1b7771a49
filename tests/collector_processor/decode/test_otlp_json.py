"""OTLP JSON: the compiled transcoder against protobuf's own JSON mapping, on made, mutated and hostile requests."""

from __future__ import annotations

import base64
import json
import math
import os
import struct
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.decode import otlp_json
from collector_processor.decode.otlp_json import to_protobuf
from collector_processor.kernels import json as kernel
from collector_processor.kernels.json_numbers import POWERS, double_bits
from collector_processor.model import Signal
from tests.examples import examples

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
few = examples(8 if WITHOUT_JIT else 150, suppress_health_check=list(HealthCheck))


def parsed(data: bytes, signal: Signal | None = None) -> Any:
    found, request = to_protobuf(data, signal)
    return otlp_json.REQUESTS[found].FromString(request)


def span_of(text: str) -> Any:
    """The one span of a request whose span object is `text`."""
    request = parsed(b'{"resourceSpans":[{"scopeSpans":[{"spans":[%s]}]}]}' % text.encode())
    return request.resource_spans[0].scope_spans[0].spans[0]


def member(key: str, raw: str) -> str:
    """An object with one member, `raw` as it is."""
    return "{" + f'"{key}": {raw}' + "}"


def value_of(text: str) -> Any:
    """The AnyValue of one attribute whose value object is `text`."""
    return span_of(member("attributes", f"[{member('value', text)}]")).attributes[0].value


# ---- requests of every shape -------------------------------------------------------------------------------------

text = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=12)
time_ns = st.integers(0, 2**64 - 1)
trace_id = st.binary(min_size=16, max_size=16)
span_id = st.binary(min_size=8, max_size=8)
any_value = st.recursive(
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"string_value": text}),
        st.fixed_dictionaries({"bool_value": st.booleans()}),
        st.fixed_dictionaries({"int_value": st.integers(-(2**63), 2**63 - 1)}),
        st.fixed_dictionaries({"double_value": st.floats(allow_nan=False)}),
        st.fixed_dictionaries({"bytes_value": st.binary(max_size=9)}),
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"array_value": st.fixed_dictionaries({"values": st.lists(inner, max_size=3)})}),
        st.fixed_dictionaries(
            {
                "kvlist_value": st.fixed_dictionaries(
                    {"values": st.lists(st.fixed_dictionaries({"key": text, "value": inner}), max_size=3)}
                )
            }
        ),
    ),
    max_leaves=6,
)
attributes = st.lists(st.fixed_dictionaries({"key": text, "value": any_value}), max_size=3)
span = st.fixed_dictionaries(
    {},
    optional={
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": span_id,
        "trace_state": text,
        "name": text,
        "kind": st.integers(0, 5),
        "flags": st.integers(0, 2**32 - 1),
        "start_time_unix_nano": time_ns,
        "end_time_unix_nano": time_ns,
        "attributes": attributes,
        "dropped_attributes_count": st.integers(0, 2**32 - 1),
        "events": st.lists(st.fixed_dictionaries({"time_unix_nano": time_ns, "name": text}), max_size=2),
        "links": st.lists(st.fixed_dictionaries({"trace_id": trace_id, "span_id": span_id}), max_size=2),
        "status": st.fixed_dictionaries({}, optional={"message": text, "code": st.integers(0, 2)}),
    },
)
log = st.fixed_dictionaries(
    {},
    optional={
        "time_unix_nano": time_ns,
        "observed_time_unix_nano": time_ns,
        "severity_number": st.integers(0, 24),
        "severity_text": text,
        "body": any_value,
        "attributes": attributes,
        "flags": st.integers(0, 2**32 - 1),
        "trace_id": trace_id,
        "span_id": span_id,
        "event_name": text,
    },
)
resource = st.fixed_dictionaries({"attributes": attributes})
scope = st.fixed_dictionaries({"name": text, "version": text})


def request_of(kind: str, record: str, records: Any) -> Any:
    scoped = st.fixed_dictionaries({"scope": scope, record: st.lists(records, max_size=3), "schema_url": text})
    return st.lists(
        st.fixed_dictionaries({"resource": resource, f"scope_{kind}": st.lists(scoped, max_size=2)}), max_size=2
    )


traces = request_of("spans", "spans", span).map(lambda r: ExportTraceServiceRequest(resource_spans=r))
logs = request_of("logs", "log_records", log).map(lambda r: ExportLogsServiceRequest(resource_logs=r))


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def as_otlp(value: Any, choose: Any) -> Any:
    """protobuf's JSON mapping of a request as an OTLP client may write it: hexadecimal ids, either kind of name, 64-bit
    integers as string or number, nulls and unknown fields here and there. `choose(n)` gives a number below n."""
    if isinstance(value, list):
        return [as_otlp(item, choose) for item in value]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = camel(key) if choose(2) else key
        if key in otlp_json.IDS:
            raw = base64.b64decode(item).hex()
            item = raw.upper() if choose(4) == 0 else raw
        elif isinstance(item, str) and (key.endswith(("_nano", "int_value"))) and choose(2):
            item = int(item)
        else:
            item = as_otlp(item, choose)
        if choose(6) == 0:
            out[f"x{choose(3)}"] = {"deep": [1, None, {"a": "b\\u0041"}], "t": True} if choose(2) else None
        out[name] = item
    return out


def written(message: Message, choose: Any) -> bytes:
    plain = json_format.MessageToDict(message, preserving_proto_field_name=True, use_integers_for_enums=bool(choose(2)))
    other = {"ensure_ascii": bool(choose(2)), "indent": (None, 1)[choose(2)]}
    return json.dumps(as_otlp(plain, choose), **other).encode("utf-8")


@pytest.mark.slow
@few
@given(st.one_of(traces, logs), st.randoms(use_true_random=False))
def test_a_request_comes_out_as_the_message_it_was_made_from(message: Message, random: Any) -> None:
    data = written(message, random.randrange)
    expected = Signal.LOGS if isinstance(message, ExportLogsServiceRequest) else Signal.TRACES
    if data.strip() != b"{}":
        assert parsed(data) == message
    signal, request = to_protobuf(data, expected)
    assert signal == expected
    assert type(message).FromString(request) == message


@pytest.mark.slow
@few
@given(
    st.one_of(traces, logs), st.randoms(use_true_random=False), st.lists(st.binary(max_size=3), min_size=1, max_size=3)
)
def test_what_both_ways_accept_they_read_alike(message: Message, random: Any, pieces: list[bytes]) -> None:
    data = bytearray(written(message, random.randrange))
    for piece in pieces:
        at = random.randrange(len(data) + 1)
        data[at : at + random.randrange(3)] = piece
    signal = Signal.LOGS if isinstance(message, ExportLogsServiceRequest) else Signal.TRACES
    try:
        _, fast = to_protobuf(bytes(data), signal)
    except ValueError:
        with pytest.raises((ValueError, TypeError, json_format.ParseError, RecursionError)):
            otlp_json.slowly(bytes(data), signal)
        return
    try:
        _, slow = otlp_json.slowly(bytes(data), signal)
    except (ValueError, TypeError, json_format.ParseError):
        return  # the transcoder is the more lenient one: bytes that nobody reads, such as invalid UTF-8
    if no_key_twice(data):
        assert type(message).FromString(fast) == type(message).FromString(slow)


def no_key_twice(data: bytes) -> bool:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [camel(key) if not key.startswith("x") else key for key, _ in items]
        if len(set(names)) < len(names) or sum(name.endswith("Value") for name in names) > 1:
            raise KeyError("twice")
        return dict(items)

    try:
        json.loads(bytes(data), object_pairs_hook=pairs)
    except KeyError:
        return False
    return True


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("escaped", "expected"),
    [
        (r"a\"b\\c\/d\b\f\n\r\t", 'a"b\\c/d\b\f\n\r\t'),
        (r"\u00e9\u20ac\u0000", "é€\0"),
        (r"\ud83d\ude00!", "😀!"),
        (r"\uD83D!", "\ufffd!"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83dA", "\ufffdA"),
        ("é€😀" * 60, "é€😀" * 60),
        (r"\u0041" * 300, "A" * 300),
        ("x" * 127 + r"\n", "x" * 127 + "\n"),
    ],
)
def test_escapes_become_utf8(escaped: str, expected: str) -> None:
    assert span_of(member("name", f'"{escaped}"')).name == expected


@pytest.mark.parametrize(
    "number",
    ["0", "-0.0", "1", "-1.5", "0.1", "1e23", "1E-7", "123456.789e3", "9007199254740993", "1.7976931348623157e308",
     "2.2250738585072014e-308", "5e-324", "1e-400", "12345678901234567890123", "0.1234567890123456789012", "3.0e+2",
     "8.41e21", "9214843084008499", "1.0000000000000002", "2.5e-1"],
)  # fmt: skip
def test_numbers_become_the_nearest_double(number: str) -> None:
    for written in (number, f'"{number}"'):
        found = value_of(member("doubleValue", written)).double_value
        assert struct.pack("<d", found) == struct.pack("<d", float(number))


@few
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_comes_back(number: float) -> None:
    assert value_of(member("doubleValue", repr(number))).double_value == number


@few
@given(st.integers(0, 10**19 - 1), st.integers(-400, 400))
def test_every_decimal_of_up_to_nineteen_digits_is_rounded_right(mantissa: int, exponent: int) -> None:
    bits, ok = double_bits(kernel.np.uint64(mantissa), exponent, POWERS)
    if ok:
        assert struct.unpack("<d", struct.pack("<Q", int(bits)))[0] == float(f"{mantissa}e{exponent}")


@few
@given(st.from_regex(r"\A(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,40})?(?:[eE][-+]?[0-9]{1,2})?\Z"))
def test_numbers_of_any_length_become_the_nearest_double(number: str) -> None:
    assert value_of(member("doubleValue", number)).double_value == float(number)


def test_a_long_number_does_not_cost_a_large_request() -> None:
    spans = ",".join(['{"name":"x"}'] * 20_000)
    long = '{"attributes":[{"key":"k","value":{"doubleValue":0.12345678901234567890123}}]}'
    request = parsed(f'{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans},{long}]}}]}}]}}'.encode())
    kept = request.resource_spans[0].scope_spans[0].spans[-1].attributes[0].value.double_value
    assert kept == 0.12345678901234567890123


def test_numbers_that_are_words() -> None:
    assert math.isnan(value_of('{"doubleValue":"NaN"}').double_value)
    assert value_of('{"doubleValue":"Infinity"}').double_value == math.inf
    assert value_of('{"doubleValue":"-Infinity"}').double_value == -math.inf


@pytest.mark.parametrize(
    ("field", "written", "expected"),
    [
        ("start_time_unix_nano", "18446744073709551615", 2**64 - 1),
        ("startTimeUnixNano", '"18446744073709551615"', 2**64 - 1),
        ("startTimeUnixNano", "1e3", 1000),
        ("startTimeUnixNano", "7.0", 7),
        ("kind", "3", 3),
        ("kind", '"SPAN_KIND_CLIENT"', 3),
        ("kind", '"3"', 3),
        ("kind", '"SPAN_KIND_FANCY"', 0),
        ("flags", "4294967295", 2**32 - 1),
        ("droppedAttributesCount", "-0", 0),
        ("name", "null", ""),
        ("name", '""', ""),
    ],
)
def test_integers_and_enums_in_each_form(field: str, written: str, expected: object) -> None:
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in field)
    assert getattr(span_of(member(field, written)), snake) == expected


def test_signed_integers_in_each_form() -> None:
    for number in (-(2**63), 2**63 - 1, -1, 0):
        assert value_of(member("intValue", f'"{number}"')).int_value == number
        assert value_of(member("intValue", str(number))).int_value == number


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xff\xfe", b"abcdefgh", bytes(range(256))])
def test_bytes_in_either_base64_alphabet_with_or_without_padding(raw: bytes) -> None:
    for encoded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw), base64.b64encode(raw).rstrip(b"=")):
        for form in (encoded.decode(), encoded.decode().replace("/", r"\/")):
            assert value_of(member("bytesValue", f'"{form}"')).bytes_value == raw


def test_an_id_that_is_none_costs_its_own_record_only() -> None:
    raw = bytes(range(16))
    good = span_of(f'{{"traceId":"{raw.hex()}","spanId":"00112233445566Ff"}}')
    assert (good.trace_id, good.span_id) == (raw, bytes.fromhex("00112233445566ff"))
    assert span_of(member("traceId", f'"{base64.b64encode(raw).decode()}"')).trace_id == raw
    for bad in ("zz" * 16, "abc", "0" * 31 + "g", "=" * 24, "0" * 15 + "  " + "0" * 15):
        _, slow = otlp_json.slowly(
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"%s"}]}]}]}' % bad.encode(), None
        )
        assert (
            slow == to_protobuf(b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"%s"}]}]}]}' % bad.encode())[1]
        )
        assert len(span_of(member("traceId", f'"{bad}"')).trace_id) not in (0, 16)
    assert span_of('{"parentSpanId":""}').parent_span_id == b""


def test_lengths_of_every_size_are_written_right() -> None:
    for size in (0, 1, 126, 127, 128, 129, 200, *(() if WITHOUT_JIT else (16381, 16384, 70000, 2_100_000))):
        status = member("message", '"' + "m" * size + '"')
        assert span_of(f'{{"status":{status}, "name":"after"}}').status.message == "m" * size


@pytest.mark.slow
def test_a_name_is_known_in_its_own_scope_only() -> None:
    """Every name of the schema, with its first byte changed in every way, in every message of a trace request."""
    table = otlp_json.tables()
    hashes = set(table.slots.tolist())
    names = {name for signal in otlp_json.REQUESTS.values() for name in all_names(signal.DESCRIPTOR, set())}
    scopes = range(table.fields[:, kernel.CHILD].max() + 2)
    for name in names:
        for first in range(1 if WITHOUT_JIT else 256):
            changed = kernel.np.frombuffer(bytes([first]) + name.encode()[1:], kernel.np.uint8)
            if bytes(changed).decode("latin-1") not in names:
                assert not any(int(kernel.name_hash(changed, scope)) in hashes for scope in scopes)


def all_names(descriptor: Any, seen: set[str]) -> set[str]:
    out = set()
    if descriptor.full_name not in seen:
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            out |= {field.name, field.json_name}
            if field.message_type:
                out |= all_names(field.message_type, seen)
    return out


def test_metrics_are_read_too() -> None:
    point = {"asInt": "-5", "timeUnixNano": "7", "exemplars": [{"asDouble": 1.5, "spanId": "0011223344556677"}]}
    bucket = {"bucketCounts": ["1", 2, "3"], "explicitBounds": [0.5, 1], "count": "6", "sum": 2.5}
    scale = {"scale": -3, "positive": {"offset": -2, "bucketCounts": ["1", 300]}}
    metrics = [{"sum": {"dataPoints": [point]}}, {"histogram": {"dataPoints": [bucket]}},
               {"exponentialHistogram": {"dataPoints": [scale]}}]  # fmt: skip
    data = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}).encode()
    signal, request = to_protobuf(data)
    assert signal is Signal.METRICS
    assert ExportMetricsServiceRequest.FromString(request) == ExportMetricsServiceRequest.FromString(
        otlp_json.slowly(data, None)[1]
    )


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "byte", "expected"),
    [
        (b"", 0, "an object"),
        (b"[]", 0, "an object"),
        (b'{"resourceSpans":{}}', 17, "an array"),
        (b'{"resourceSpans":[5]}', 18, "an object"),
        (b'{"resourceSpans":[{}', 20, "a comma"),
        (b'{"resourceSpans":[{},]}', 21, "an object"),
        (b'{"resourceSpans":[]', 19, "a comma"),
        (b'{"resourceSpans":[],}', 20, "a key"),
        (b'{"resourceSpans" []}', 17, "a colon"),
        (b'{"resourceSpans":[]}x', 20, "the end of the request"),
        (b'{"resourceSpans":[],"resourceLogs":[]}', 35, "only one of"),
        (b'{"resourceSpans":[{"schemaUrl":5}]}', 31, "a string"),
        (b'{"resourceSpans":[{"schemaUrl":"a\nb"}]}', 33, "the end of the string"),
        (b'{"resourceSpans":[{"schemaUrl":"a\\x"}]}', 33, "a valid escape"),
        (b'{"resourceSpans":[{"schemaUrl":"abc', 35, "the end of the string"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":-1}]}]}]}', 64, "an integer"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"kind":2147483648}]}]}]}', 51, "an integer"),
        (b'{"resourceSpans":[{"x":[tru]}]}', 24, "a value"),
        (b'{"x":1}', 0, "resourceSpans"),
    ],
)
def test_the_error_names_the_byte_and_what_was_expected(data: bytes, byte: int, expected: str) -> None:
    with pytest.raises(ValueError, match=f"at byte {byte}.*{expected}|{expected}.* at byte {byte}"):
        to_protobuf(data)


@pytest.mark.parametrize("opening", [b'{"x":', b'{"a":[', b"[[[["])
def test_deep_nesting_of_what_nobody_reads_is_refused(opening: bytes) -> None:
    with pytest.raises(ValueError, match="at byte"):
        to_protobuf(b'{"resourceSpans":[{"y":' + opening * 100_000)


def test_deep_values_are_read_up_to_a_bound() -> None:
    def nested(levels: int) -> str:
        return '{"arrayValue":{"values":[' * levels + '{"stringValue":"bottom"}' + "]}}" * levels

    assert value_of(nested(14)).SerializeToString().endswith(b"bottom")  # lengths padded from level 24 on
    with pytest.raises(ValueError, match="1024 levels"):
        value_of(nested(10_000))


def test_expansion_beyond_the_size_of_the_text_is_held() -> None:
    data = (
        b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":[{"explicitBounds":[%s]}]}}]}]}]}'
    )
    request = parsed(data % b",".join([b"1"] * 20_000))
    assert (
        len(request.resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points[0].explicit_bounds) == 20_000
    )


def test_a_byte_order_mark_and_white_space_are_skipped() -> None:
    assert to_protobuf(b'\xef\xbb\xbf \r\n\t{ "resourceLogs" : [ ] } \n') == (Signal.LOGS, b"")
    assert to_protobuf(b"{}", Signal.LOGS) == (Signal.LOGS, b"")


# ---- the kernel in its other modes -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK"])
def test_the_kernel_holds_as_plain_python_and_with_bounds_checks(mode: str, tmp_path: Any) -> None:
    if os.environ.get(mode) == "1":
        pytest.skip(f"this is the run with {mode} that the other one starts")
    chosen = "alike or made_from or utf8 or nearest or every_size or names_the_byte or base64 or each_form"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen]
    environment = {**os.environ, mode: "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "-W", "ignore::RuntimeWarning"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_large_request_does_not_go_the_slow_way() -> None:
    """Python objects for each element of a request of megabytes would stop the service for a minute."""

    def request(records: int) -> bytes:
        return b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%s{"flags":1e0}]}]}]}' % (b"{}," * records)

    assert to_protobuf(request(10), Signal.LOGS)[0] == Signal.LOGS
    with pytest.raises(ValueError, match="expected an integer"):
        to_protobuf(request(otlp_json.SLOW_BYTES_MAX // 3), Signal.LOGS)
