"""Templates: what is masked, what stays readable, and that ids do not depend on what they must not depend on."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.decode.templates import TEMPLATE_CHARS_MAX, Templates, mask

SERVICE = 7

MASKED = [
    (
        "gateway processed payment PAY0123 amount=12.34 in 33 ms from 10.0.3.4",
        "gateway processed payment <*> amount=<*> in <*> ms from <*>",
    ),
    ('user "alice" logged in from host db-1.prod', "user <*> logged in from host <*>.prod"),
    ("can't open user's file /var/log/app.log", "can't open user's file <*>"),
    ("GET /api/v1/orders/123?x=1 HTTP/1.1 500 12ms", "GET <*> HTTP/<*> <*> <*>"),
    ("GET https://a.example.com/x/y?z=w failed", "GET <*> failed"),
    ("mail to joe.doe@example.com failed", "mail to <*> failed"),
    ("id 550e8400-e29b-41d4-a716-446655440000 gone", "id <*> gone"),
    ("id abcdefab-cdef-4abc-abcd-abcdefabcdef gone", "id <*> gone"),
    ("token deadbeefcafebabe used", "token <*> used"),
    ("2023-01-30 12:00:00,123 started", "<*> <*> started"),
    ("since Tue Jan 30 07:00:00 CST 2023 down", "since <*> down"),
    ("[::1]:8080 listens", "[::<*>]:<*> listens"),
    (
        "Order cancelled: status=FAILED reason=no_funds user=alice",
        "Order cancelled: status=FAILED reason=no_funds user=<*>",
    ),
    ('level=info msg="user logged in" user=alice', 'level=info msg="user logged in" user=<*>'),
    ("ticket [execute error: Order Status Wrong][id: a1]", "ticket [execute error:Order Status Wrong][id:<*>]"),
    ("[pay][PaymentId: null]", "[pay][PaymentId:null]"),
    ("[names: [nanjing, shanghai]]", "[names:[<*>]]"),
    ("[names: [nanjing]]", "[names:[<*>]]"),
    ("trips: [Trip(id=1a, to=x), Trip(id=2b, to=y)]", "trips: [Trip(to=<*>)]"),
    ("std::vector failed", "std::vector failed"),
]


@pytest.mark.parametrize(("body", "expected"), MASKED[:-2])
def test_variables_are_masked_and_outcomes_stay(body: str, expected: str) -> None:
    assert mask(body) == expected


def test_a_list_of_any_length_has_one_template() -> None:
    items = ["Trip(id=5f3c-aa, from=shanghai, to=nanjing)"] * 9
    masked = {mask(f"[query][trips: [{', '.join(items[:n])}]]") for n in range(1, 9)}
    cut = {mask(f"[query][trips: [{', '.join(items)}]]"[:length]) for length in range(120, 300, 7)}
    assert masked == cut == {"[query][trips:[Trip(<*>)]]"}


def test_a_class_method_is_not_a_pair() -> None:
    assert mask("std::vector failed") == "std::vector failed"


JSON = [
    ('{"message":"order 12 created","level":"info"}', "order <*> created"),
    ('{"level":"error","MSG":"timeout after 3s"}', "timeout after <*>"),
    ('{"event":{"message":"nested 1"}}', "nested <*>"),
    ('{"level":"error","msg":"timeout after 3s","ts":12.5e-3,"cut', "timeout after <*>"),
    ('{"user":"alice","b":1,"status":"FAILED"}', "{b=<*>, status=FAILED, user=<*>}"),
    ('{"status":"FAILED","user":"bob","b":2.5}', "{b=<*>, status=FAILED, user=<*>}"),
]


@pytest.mark.parametrize(("body", "expected"), JSON)
def test_a_json_body_stands_for_its_message_or_its_keys(body: str, expected: str) -> None:
    assert mask(body).replace(":", "=") == expected


def test_a_stack_trace_is_its_first_line_and_its_exception() -> None:
    java = "Request failed\njava.lang.IllegalStateException: no route\n\tat a.B.c(D.java:31)\n\tat e.F"
    python = 'Traceback (most recent call last):\n  File "/a/b.py", line 3\nKeyError: 1\nValueError: bad'
    assert mask(java) == "Request failed | java.lang.IllegalStateException"
    assert mask(python) == "Traceback (most recent call last): | ValueError"
    assert mask("first line\nsecond line") == "first line"


def test_an_abbreviated_logger_name_does_not_swallow_the_message() -> None:
    line = (
        "12:01 ERROR o.a.c.c.C.[.[.[.[dispatcherServlet]#175 threw exception [nested is java.io.IOException: no {0}] x"
    )
    assert "java.io.IOException" in mask(line)


# Words of one kernel class: each holds a digit.
digit_words = st.from_regex(r"\A[a-zA-Z_]{0,3}[0-9][a-zA-Z0-9_]{0,6}\Z")
plain = st.text(alphabet=" abcXY.,:;=[](){}\"'/\\-_@<>*\n\x1b\u00e4", max_size=12)


@pytest.mark.slow
@given(st.lists(st.tuples(plain, digit_words, digit_words), min_size=1, max_size=8))
def test_bodies_that_the_kernel_takes_for_one_have_one_template(parts: list[tuple[str, str, str]]) -> None:
    one = "".join(f"{text} {first} " for text, first, _ in parts)
    other = "".join(f"{text} {second} " for text, _, second in parts)
    assert mask(one) == mask(other)


@given(st.text(max_size=3000))
def test_any_text_gives_a_bounded_template_without_digits_or_control_characters(body: str) -> None:
    masked = mask(body)
    assert len(masked) <= TEMPLATE_CHARS_MAX
    assert not re.search(r"[0-9\x00-\x1f]", masked)


@pytest.mark.parametrize(
    "body", ["(" * 4096, "{" * 4096, '"' * 4095, "a:" * 2048, "/" * 4096, "0-" * 2048, "[a=" * 1300]
)
def test_hostile_bodies_take_bounded_time_and_depth(body: str) -> None:
    assert len(mask(body)) <= TEMPLATE_CHARS_MAX


def test_a_place_with_many_words_becomes_a_variable_and_one_with_few_does_not() -> None:
    templates = Templates(100)
    users = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy"]
    for user in users:
        for verb in ("accepted", "declined"):
            templates.template(SERVICE, f"user {user} offer {verb}")
    assert templates.template(SERVICE, "user mallory offer accepted") == "user <*> offer accepted"
    assert templates.template(SERVICE, "user mallory offer declined") == "user <*> offer declined"
    assert templates.template(SERVICE + 1, "user mallory offer accepted") == "user mallory offer accepted"


def test_words_that_tell_an_outcome_are_never_a_variable() -> None:
    templates = Templates(100)
    for word in ("created", "paid", "packed", "shipped", "billed", "booked", "closed", "opened", "held"):
        templates.template(SERVICE, f"the order was {word}")
    assert templates.template(SERVICE, "the order was picked") == "the order was <*>"
    assert templates.template(SERVICE, "the order was lost") == "the order was lost"


def test_identifiers_and_levels_are_never_a_variable() -> None:
    templates = Templates(100)
    names = [f"do{chr(65 + i)}thing" for i in range(20)]
    seen = {templates.template(SERVICE, f"INFO svc.Payment [{name}] call ended well") for name in names}
    assert len(seen) == 20


@given(st.permutations([f"user {name} bought {item}" for name in "abcdefghij" for item in ("pears", "plums")]))
def test_order_of_arrival_does_not_matter_once_a_place_is_learned(lines: list[str]) -> None:
    templates = Templates(100)
    for line in lines:
        templates.template(SERVICE, line)
    again = {templates.template(SERVICE, line) for line in lines}
    assert again == {"user <*> bought pears", "user <*> bought plums"}


def test_a_snapshot_goes_on_exactly_where_it_was() -> None:
    lines = [f"user {a} sold {b} today" for a in "abcdefg" for b in "klmnopqrst"]
    first, second = Templates(6), Templates(6)
    for line in lines[:40]:
        first.template(SERVICE, line)
    state = first.snapshot()
    assert orjson.loads(orjson.dumps(state)) == state
    second.restore(state)
    assert [first.template(SERVICE, x) for x in lines] == [second.template(SERVICE, x) for x in lines]
    assert first.snapshot() == second.snapshot()
    with pytest.raises(ValueError, match="version 3"):
        second.restore({**state, "version": 3})


def test_clusters_are_bounded_and_the_one_unused_longest_goes_first() -> None:
    templates = Templates(3)
    for shape in ("x y !", "x y ?", "x y ;", "x y !", "x y %"):
        templates.template(SERVICE, shape.replace("x", "one").replace("y", "two"))
    kept = {"".join(cluster["shape"])[-1] for cluster in templates.snapshot()["clusters"]}
    assert len(templates) == 3
    assert kept == {"!", ";", "%"}


def test_restores_the_older_form_of_shapes() -> None:
    # Version 1 kept each word and sign of a line apart, and an empty string for each place.
    cluster = {"service": SERVICE, "shape": ["", " ", "", " ", "<*>"], "words": [["sent"], ["mail"]], "number": 0}
    templates = Templates(8)
    templates.restore({"version": 1, "clusters": [cluster], "next": 1})
    templates.template(SERVICE, "sent letter 5")
    assert len(templates) == 1
    assert templates.snapshot()["clusters"][0]["words"] == [["sent"], ["letter", "mail"]]
