"""What must not be kept is nowhere: not in a text, not in a masked request, not in anything that comes out."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from otlp import key_values, log, logs, span, traces

from collector_processor.config import Config, RedactionConfig
from collector_processor.kernels import redact as kernel
from collector_processor.model import Signal
from collector_processor.redact import MARK, Masker, Redactor
from tests.examples import examples

REDACT = Redactor(RedactionConfig())
PREFIXES = ("4", "51", "55", "2221", "2720", "34", "37", "6011", "65", "3528", "36", "62", "5018", "1800")
SEPARATORS = ("", " ", "-", ".", "  ", " - ", "%20", "\u00a0", "\u2011", "_", "/", "+")


def check_digit(digits: str) -> str:
    """Luhn, the textbook way."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if index % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


@st.composite
def cards(draw: st.DrawFn) -> str:
    """The digits of a card number."""
    prefix = draw(st.sampled_from(PREFIXES))
    length = 15 if prefix in {"34", "37", "1800"} else draw(st.sampled_from((13, 16, 16, 16, 19)))
    digits = prefix + draw(st.text("0123456789", min_size=length - 1 - len(prefix), max_size=length - 1 - len(prefix)))
    return digits + check_digit(digits)


@st.composite
def written(draw: st.DrawFn) -> tuple[str, str]:
    """(digits, the same as somebody might write them)."""
    digits = draw(cards())
    separator = draw(st.sampled_from(SEPARATORS))
    size = draw(st.sampled_from((4, 4, 4, 6, 1)))
    return digits, separator.join(digits[i : i + size] for i in range(0, len(digits), size))


def digits_of(text: str) -> str:
    """All digits of a text in a row, those of other scripts too, and none of a percent encoding."""
    return re.sub(r"\D", "", re.sub(r"%2[0D]", "", text))


@given(written(), st.text(max_size=20), st.text(max_size=20))
@examples(300)
def test_a_card_number_is_found_however_it_is_written(card: tuple[str, str], before: str, after: str) -> None:
    digits, text = card
    shown = REDACT(f"{before}x{text}x{after}")
    assert MARK in shown
    assert digits not in digits_of(shown)


def test_digits_of_other_scripts_are_digits() -> None:
    wide = "4111111111111111".translate({ord(str(n)): 0xFF10 + n for n in range(10)})
    assert REDACT(f"paid with {wide}!") == f"paid with {MARK}!"
    assert REDACT.words(f"paid with {wide}!", "0") == "paid with 0!"


@given(cards(), st.integers(1, 9))
@settings(deadline=None)
def test_a_number_whose_check_digit_is_wrong_survives(card: str, more: int) -> None:
    order = card[:-1] + str((int(card[-1]) + more) % 10)
    assert REDACT(f"order {order} shipped") == f"order {order} shipped"


@pytest.mark.parametrize(
    "text",
    [
        "order 1732233600000 at 1732233600000000000",  # times in ms and ns
        "trace 4bf92f3577b34da6a3ce929d0e0e4736",
        "0" * 16,
        "41111111111111111111111",  # longer than any card number
        "amount=411111.11 1111",
        "pin number of the mapping: ok",
        "Bearer token expired, basic authentication failed",
        "key: value of the map",
    ],
)
def test_what_is_no_secret_survives(text: str) -> None:
    assert REDACT(text) == text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("header authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ('{"headers": {"Authorization": "Bearer s3cr3t"}}', "s3cr3t"),
        ('{\\"password\\": \\"hunter two\\"}', "hunter"),
        ("sent bearer AbCdEfGhIj", "AbCdEfGhIj"),
        ("GET /login?user=bob&password=hunter2&x=1", "hunter2"),
        ("api-key: k-123 and API_KEY=k-123", "k-123"),
        ("postgresql://bank:hunter2@db/payments", "hunter2"),
        ("cvv=123, next", "123"),
        ("access_token='a b c'", "a b c"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJ_adQssw5c ok", "SflKxwRJ"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\ndef\n-----END RSA PRIVATE KEY-----", "MIIEabc"),
        ("-----BEGIN PRIVATE KEY----- MIIEabc cut off", "MIIEabc"),
        ("AKIAIOSFODNN7EXAMPLE used", "AKIAIOSFODNN7EXAMPLE"),
        ("token ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abc"),
        ("to DE89 3704 0044 0532 0130 00 FROM X", "0532"),
        ("iban GB29NWBK60161331926819.", "NWBK60161331926819"),
    ],
)
def test_a_secret_is_taken_out_and_what_stands_around_it_stays(text: str, secret: str) -> None:
    shown = REDACT(text)
    assert secret not in shown
    assert MARK in shown
    assert text.startswith(shown.split(MARK)[0])
    assert REDACT(shown) == shown


def test_an_account_number_with_wrong_check_digits_survives() -> None:
    assert REDACT("DE88 3704 0044 0532 0130 00") == "DE88 3704 0044 0532 0130 00"


def test_each_kind_can_be_switched_off_and_others_added() -> None:
    off = RedactionConfig(cards=False, ibans=False, secrets=False, attributes=())
    text = "4111111111111111 DE89370400440532013000 Bearer abc1234 password=x a@b.example"
    assert Redactor(off)(text) == text
    more = off.model_copy(update={"emails": True, "patterns": (r"cust-\w+",)})
    assert Redactor(more)("a@b.example cust-abc") == f"{MARK} {MARK}"


@pytest.mark.parametrize("key", ["card.pin", "Authorization", "x.proxy-authorization"])
def test_a_config_does_not_ask_for_what_must_not_be_kept(key: str) -> None:
    with pytest.raises(ValueError, match="must not be kept"):
        Config.model_validate({"join": {"attributes": [key]}})
    Config.model_validate({"join": {"attributes": [key]}, "redaction": {"attributes": []}})


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="regular expression"):
        RedactionConfig(patterns=("(",))


# -- the kernel --------------------------------------------------------------------------------------------------------


@given(st.text("0123456789 -x", max_size=60))
@examples(300)
def test_the_kernel_finds_what_the_textbook_finds(text: str) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    start, end = kernel.find_card(data, 0, len(text))
    groups = [match.span() for match in re.finditer(r"\d+", text)]
    expected = None
    for i, (first, _) in enumerate(groups):
        for j in range(i, len(groups)):
            if j > i and not re.fullmatch(r"[ -]{1,3}", text[groups[j - 1][1] : groups[j][0]]):
                break
            digits = re.sub(r"\D", "", text[first : groups[j][1]])
            known = digits[:1] not in {"", "0", "1"} or (digits[:1] == "1" and len(digits) == 15)
            if 13 <= len(digits) <= 19 and known and check_digit(digits[:-1]) == digits[-1]:
                expected = (first, groups[j][1])
        if expected:
            break
    assert (start, end) == (expected or (-1, -1))


# -- whole requests ----------------------------------------------------------------------------------------------------


def request(place: int, value: Any) -> tuple[bytes, Signal]:
    """A request with `value` in one of the places where a sender may write something."""
    text = str(value)
    spans = [
        lambda: span(1, 1, name=f"GET /cards/{text}"),
        lambda: span(1, 1, name=f"card{text}"),
        lambda: span(1, 1, service=f"service {text}"),
        lambda: span(1, 1, attributes={"note": value}),
        lambda: span(1, 1, attributes={f"key {text}": 1}),
        lambda: span(1, 1, attributes={"deep": {"deeper": {"deepest": value}}}),
        lambda: span(1, 1, attributes={"payment.id": value, "payment.amount": value}),
    ]
    lines = [
        lambda: log(f"paid with {text} now", 1, 1),
        lambda: log({"card": value, "message": f"paid {text}"}, 1, 1),
        lambda: log("paid", 1, 1, attributes={"card": value}),
        lambda: log("paid", 1, 1, event_name=f"event{text}"),
        lambda: log("paid", 1, 1, severity_text=text),
        lambda: log(f"paid with {text}"),
        lambda: log("paid", service=f"s{text}", attributes={"payment.id": value}),
    ]
    place %= len(spans) + len(lines)
    if place < len(spans):
        return traces(spans[place]()), Signal.TRACES
    return logs(lines[place - len(spans)]()), Signal.LOGS


MASK = Masker(RedactionConfig())
PLACES = 14


@given(st.integers(0, PLACES - 1), written(), st.booleans())
@examples(200)
def test_a_masked_request_has_its_length_its_ids_and_no_card_number(
    place: int, card: tuple[str, str], as_number: bool
) -> None:
    digits, text = card
    value: Any = int(digits) if as_number and int(digits) < 2**63 else text
    data, signal = request(place, value)
    masked = MASK(data, signal)
    assert len(masked) == len(data)
    before, after = parsed(data, signal), parsed(masked, signal)
    assert digits not in digits_of(str(after))
    for one, other in zip(before, after, strict=True):
        for field in one.DESCRIPTOR.fields:
            if field.type in {field.TYPE_BYTES, field.TYPE_FIXED64, field.TYPE_ENUM, field.TYPE_UINT32}:
                assert getattr(one, field.name) == getattr(other, field.name)


def parsed(data: bytes, signal: Signal) -> list[Any]:
    """The records of a request, and its resources."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    if signal == Signal.LOGS:
        groups = ExportLogsServiceRequest.FromString(data).resource_logs
        return [g.resource for g in groups] + [r for g in groups for s in g.scope_logs for r in s.log_records]
    groups = ExportTraceServiceRequest.FromString(data).resource_spans
    return [g.resource for g in groups] + [r for g in groups for s in g.scope_spans for r in s.spans]


def test_named_attributes_and_secrets_are_masked_and_nothing_else() -> None:
    secrets = {
        "http.request.header.Authorization": "x",
        "pin": 1234,
        "db.password": "two words",
        "note": "Authorization: Bearer abc.def",
        "url": "amqp://guest:hunter2@queue/v",
    }
    kept = {"order.id": "4111111111111112", "count": 17, "ratio": 0.5, "mapping": "pin", "raw": b"\x01\x02"}
    data = traces(span(5, 6, name="pay", attributes=secrets | kept))
    (_, found) = parsed(MASK(data, Signal.TRACES), Signal.TRACES)
    values = {item.key: item.value for item in found.attributes}
    assert set(values) == set(secrets) | set(kept)
    assert values["http.request.header.Authorization"].string_value == "*"
    assert values["pin"].int_value == 0
    assert values["db.password"].string_value == "*********"
    assert values["note"].string_value == "Authorization: Bearer *******"
    assert values["url"].string_value == "amqp://guest:*******@queue/v"
    assert key_values(kept) == [item for item in found.attributes if item.key in kept]
    assert (found.trace_id, found.name) == ((5).to_bytes(16, "big"), "pay")


def test_many_texts_that_may_hold_secrets_fit() -> None:
    data = logs(*(log(f"password=x{n}", 1, n + 1) for n in range(1000)))
    assert b"=x" not in MASK(data, Signal.LOGS)


def test_what_is_no_request_is_left_as_it_is() -> None:
    chance = random.Random(3)
    for _ in range(300):
        data = chance.randbytes(chance.randrange(60))
        assert len(MASK(data, Signal.TRACES)) == len(data)
