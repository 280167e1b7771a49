"""A healthy platform: valid telemetry, the same for the same seed, as much as the curves say."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector_processor.model import Signal
from collector_processor.simulator.platform import COPIES, ENTRIES
from collector_processor.simulator.simulator import RECORDS_MAX, Simulator
from collector_processor.simulator.traffic import FLOWS, SECOND_NS, Calendar

pytestmark = pytest.mark.slow  # the platform runs for a while, again and again

SKEW_NS = 1_000_000


def spans_by_trace(payloads):
    """Trace id -> the ids of its spans, sorted."""
    found = defaultdict(list)
    for signal, data, _ in payloads:
        if signal == Signal.TRACES:
            for group in ExportTraceServiceRequest.FromString(data).resource_spans:
                for span in group.scope_spans[0].spans:
                    found[span.trace_id].append(span.span_id)
    return {trace_id: sorted(ids) for trace_id, ids in found.items()}


def test_same_seed_same_bytes(start_ns, healthy, run_platform):
    assert run_platform().payloads == healthy.payloads
    assert run_platform(seed=2).payloads != healthy.payloads


def test_how_time_is_cut_into_calls_changes_nothing(start_ns, healthy):
    simulator = Simulator(1, start_ns, rate=20.0)
    pieces = [
        payload
        for step in (0, 1, 1_500_000_000, 11 * SECOND_NS + 3, 15 * SECOND_NS)
        for payload in simulator.payloads(start_ns + step)
    ]
    assert pieces == healthy.payloads


def test_a_platform_that_another_takes_over_tears_no_request(start_ns):
    """The first tells what is under way to its end, the second begins with new requests: together all is told once."""
    middle_ns, end_ns = start_ns + 5 * SECOND_NS, start_ns + 10 * SECOND_NS
    whole, first, second = (Simulator(1, start_ns, rate=20.0) for _ in range(3))
    second.skip_to(middle_ns)
    told = [[*first.payloads(middle_ns), *first.rest()], [*second.payloads(end_ns), *second.rest()]]
    before, after = (spans_by_trace(payloads) for payloads in told)
    assert before.keys().isdisjoint(after)
    assert before | after == spans_by_trace([*whole.payloads(end_ns), *whole.rest()])
    assert len(before) > 50
    assert len(after) > 50


def test_starting_between_ticks_gives_no_event_before_the_start(start_ns, run_platform):
    late_ns = start_ns + 700_000_000
    run = run_platform(seconds=14.0, start_ns=late_ns)
    assert run.chains
    for chain in run.chains.values():
        assert min(row.span.start_time_unix_nano for row in chain.spans) >= late_ns - SKEW_NS


def test_every_service_has_its_instances(healthy):
    seen = {(row.service, row.instance) for chain in healthy.chains.values() for row in chain.spans}
    known = {(service, f"{service}-{copy}") for service, copies in COPIES.items() for copy in range(copies)}
    assert seen <= known
    assert {service for service, _ in seen} == set(COPIES)
    assert all((service, f"{service}-{copy}") in seen for service in ("gateway", "account") for copy in range(3))


def test_all_flows_run(healthy):
    roots = Counter(chain.root.span.name for chain in healthy.chains.values())
    assert len(roots) == len(ENTRIES) - 1  # the night batch sleeps at ten in the morning
    assert all(count >= 3 for count in roots.values())


def test_chains_are_trees(healthy):
    spans = [row.span for chain in healthy.chains.values() for row in chain.spans]
    assert len({(span.trace_id, span.span_id) for span in spans}) == len(spans)
    for chain in healthy.chains.values():
        assert sum(not row.span.parent_span_id for row in chain.spans) == 1
        for row in chain.spans:
            parent = chain.parent(row)
            assert (parent is None) == (not row.span.parent_span_id)
            if parent is None:
                continue
            if row.span.kind == Span.SPAN_KIND_SERVER:
                assert parent.span.kind == Span.SPAN_KIND_CLIENT
                assert parent.service != row.service
            elif row.span.kind == Span.SPAN_KIND_CONSUMER:
                assert parent.span.kind == Span.SPAN_KIND_PRODUCER
                assert row.span.start_time_unix_nano > parent.span.end_time_unix_nano - SKEW_NS
            else:
                assert parent.instance == row.instance


def test_synchronous_children_lie_inside_their_parents(healthy):
    for chain in healthy.chains.values():
        for row in chain.spans:
            parent = chain.parent(row)
            if parent is None or row.span.kind == Span.SPAN_KIND_CONSUMER or parent.span.status.code:
                continue
            assert row.span.start_time_unix_nano >= parent.span.start_time_unix_nano - SKEW_NS
            assert row.span.end_time_unix_nano <= parent.span.end_time_unix_nano + SKEW_NS


def test_attributes_say_what_instrumentation_says(healthy):
    for chain in healthy.chains.values():
        for row in chain.spans:
            values = row.values
            if "http.route" in values:
                assert row.span.name == f"{values['http.request.method']} {values['http.route']}"
                assert {"server.address", "http.response.status_code"} <= values.keys()
            if row.span.kind == Span.SPAN_KIND_CLIENT and "http.request.method" in values:
                assert row.span.name == values["http.request.method"]
                assert "server.address" in values
            if "rpc.system" in values:
                assert row.span.name == f"{values['rpc.service']}/{values['rpc.method']}"
                assert "rpc.grpc.status_code" in values


def test_money_and_keys_of_a_payment_agree(healthy):
    payments = [chain for chain in healthy.chains.values() if chain.root.span.name.startswith("POST /api/pay")]
    assert payments
    for chain in payments:
        rows = [row.values for row in chain.spans if row.span.kind in {2, 5}]
        assert len({(row["payment.id"], row["account.id"], row["payment.amount"]) for row in rows}) == 1
        amounts = {row[key] for row in rows for key in row if key.endswith(".amount")}
        assert len(amounts) == 1


def test_logs_lie_in_their_spans(healthy):
    for chain in healthy.chains.values():
        spans = {row.span.span_id: row for row in chain.spans}
        for line in chain.logs:
            emitter = spans[line.log.span_id]
            assert emitter.instance == line.instance
            assert emitter.span.start_time_unix_nano <= line.log.time_unix_nano <= emitter.span.end_time_unix_nano


def test_logs_without_a_trace_id_name_a_payment(healthy, start_ns):
    known = {row.values.get("payment.id") for chain in healthy.chains.values() for row in chain.spans}
    in_body = in_attribute = 0
    for line in healthy.loose:
        keys = {pair.key: pair.value.string_value for pair in line.log.attributes}
        in_attribute += "payment.id" in keys
        in_body += "payment.id=" in line.body
        if line.log.time_unix_nano < start_ns + 9 * SECOND_NS:
            assert keys.get("payment.id", line.body.partition("payment.id=")[2]) in known
    assert in_body > 20
    assert in_attribute > 20
    assert in_body + in_attribute == len(healthy.loose)


def test_telemetry_leaves_after_it_happened_and_within_an_interval(healthy):
    for chain in healthy.chains.values():
        for row in chain.spans:
            assert -SKEW_NS < row.sent_ns - row.span.end_time_unix_nano < 2 * SECOND_NS + SKEW_NS
        for line in chain.logs:
            assert -SKEW_NS < line.sent_ns - line.log.time_unix_nano < 2 * SECOND_NS + SKEW_NS


def test_payloads_come_in_order_and_bounded(start_ns):
    simulator = Simulator(3, start_ns, rate=900.0)
    payloads = list(simulator.payloads(start_ns + 2 * SECOND_NS))
    assert all(left[2] <= right[2] for left, right in pairwise(payloads))
    assert {signal for signal, _, _ in payloads} == {Signal.TRACES, Signal.LOGS}
    assert len(payloads) > 8  # 20,000 records a second do not fit in two requests
    assert max(len(data) for _, data, _ in payloads) < RECORDS_MAX * 400


def test_nothing_is_anomalous_and_few_fail_by_themselves(healthy):
    outcomes = Counter(healthy.truth.values())
    assert outcomes[True] == 0
    assert 0 <= outcomes[None] < 0.02 * outcomes[False]


def test_natural_trouble_exists(start_ns):
    simulator = Simulator(4, start_ns, rate=120.0)
    said = b"".join(data for _, data, _ in simulator.payloads(start_ns + 40 * SECOND_NS))
    assert said.count(b"insufficient funds") > 5
    assert said.count(b"issuer declined") > 5
    assert b"attempt 1 of clearing" in said  # a partner that did not answer, asked again
    assert b"deadlock detected" in said
    assert b"connection reset by peer" in said


@pytest.mark.parametrize("hour", [3, 9, 12])
def test_traffic_follows_the_curves(start_ns, hour):
    at_ns = start_ns + (hour - 10) * 3600 * SECOND_NS
    calendar = Calendar(at_ns)
    seen = Counter()
    simulator = Simulator(1, at_ns, rate=20.0, on_chain=lambda *_: seen.update(["chains"]))
    for _ in simulator.payloads(at_ns + 60 * SECOND_NS):
        pass
    expected = sum(20.0 * calendar.rate(flow, at_ns + 30 * SECOND_NS) * 60 for flow in FLOWS)
    assert seen["chains"] == pytest.approx(expected, abs=5 * expected**0.5)


def test_load_makes_requests_wait(start_ns, run_platform):
    def typical_ms(run):
        found = sorted(row.ms for chain in run.chains.values() for row in chain.of("gateway", Span.SPAN_KIND_INTERNAL))
        return sum(found) / len(found)

    night, rush = (run_platform(start_ns=start_ns + int(hour * 3600 * SECOND_NS)) for hour in (-7, -0.8))
    assert typical_ms(rush) > 1.25 * typical_ms(night)
