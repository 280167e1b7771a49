"""The join against a plain model of it, and each promise of completion, eviction, lateness and business keys."""

from __future__ import annotations

import mmap
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from otlp import MS, T0, log, logs, span, traces

from collector_processor.config import DecodeConfig, JoinConfig
from collector_processor.decode.decoder import Decoder
from collector_processor.join.joiner import Joiner
from collector_processor.model import ChainBatch, Outcome, Payload, Signal, Symbols, content_hash
from collector_processor.process import give_memory_back
from tests.benchmarks.engine import resident_bytes
from tests.examples import examples

SECOND = 1_000_000_000
SMALL = {"chains_max": 2000, "records_max": 20_000, "closed_remembered_max": 4000}


class Join:
    """A decoder and a joiner, fed with requests."""

    def __init__(self, **config: Any) -> None:
        join = JoinConfig(**(SMALL | config))
        self.symbols = Symbols()
        self.decoder = Decoder(DecodeConfig(), join, self.symbols, 7)
        self.joiner = Joiner(join, self.symbols, self.decoder.attributes)

    def spans(self, *spans: Any, now: int = T0, tenant: str = "default") -> list[ChainBatch]:
        return self._add(Signal.TRACES, traces(*spans), now, tenant)

    def logs(self, *records: Any, now: int = T0, tenant: str = "default") -> list[ChainBatch]:
        return self._add(Signal.LOGS, logs(*records), now, tenant)

    def _add(self, signal: Signal, data: bytes, now: int, tenant: str) -> list[ChainBatch]:
        return self.joiner.append(self.decoder.decode(Payload(signal, tenant, data, now)), now)

    def close(self, after_s: float = 3600) -> ChainBatch:
        batches = self.joiner.close(T0 + int(after_s * SECOND))
        return ChainBatch.concat(batches) if batches else self.nothing()

    def nothing(self) -> ChainBatch:
        empty = Join()
        empty.spans(span(1, 1))
        return ChainBatch.concat(empty.joiner.close(T0 + 3600 * SECOND)).take(np.zeros(0, np.int64))

    def names(self, batch: ChainBatch) -> list[str]:
        return [self.symbols.events.text[event] for event in batch.event.tolist()]


def test_spans_and_logs_of_a_trace_become_one_chain_in_causal_order() -> None:
    join = Join()
    join.logs(log("inner", 1, 2, at_ms=3), log("outer", 1, 1, at_ms=9))
    join.spans(
        span(1, 2, 1, name="b", start_ms=2, ms=4), span(1, 1, name="a", ms=10), span(1, 3, 1, name="c", start_ms=7)
    )
    batch = join.close()
    assert join.names(batch) == ["a", "b", "inner", "c", "outer"]
    assert batch.parent.tolist() == [-1, 0, 1, 0, 0]
    assert batch.root.tolist() == [0]
    assert batch.self_time.tolist() == [5 * MS, 4 * MS, 0, 1 * MS, 0]
    assert batch.trace_id(0) == f"{1:032x}"
    assert join.symbols.flows.text[batch.flow[0]] == "gateway a"


def test_self_time_leaves_out_the_union_of_the_children_inside_the_span() -> None:
    join = Join()
    join.spans(
        span(1, 1, ms=10),
        span(1, 2, 1, start_ms=1, ms=4),
        span(1, 3, 1, start_ms=3, ms=4),  # overlaps
        span(1, 4, 1, start_ms=9, ms=5),  # runs on after the parent
        span(1, 5, 1, start_ms=-3, ms=2),  # before it: a skewed clock
    )
    batch = join.close()
    root = int(batch.root[0])
    assert batch.self_time[root] == (10 - 6 - 1) * MS


def test_the_path_is_made_of_module_entries() -> None:
    join = Join()
    join.spans(
        span(1, 1, name="pay"),
        span(1, 2, 1, name="SELECT", kind=3, start_ms=1),
        span(1, 3, 1, name="POST", kind=3, start_ms=2),
        span(1, 4, 3, name="check", service="risk", start_ms=2),
        span(1, 5, 1, name="POST", kind=3, start_ms=3),
        span(1, 6, 5, name="check", service="risk", start_ms=3),
    )
    batch = join.close()
    assert join.symbols.paths.text[batch.path[0]] == "pay > check"
    steps = join.symbols.path_steps[batch.path[0]]
    assert [join.symbols.events.text[step] for step in steps] == ["pay", "check"]


def test_a_chain_is_complete_when_its_root_was_seen_and_it_was_quiet() -> None:
    join = Join(wait_initial_s=6, idle_s=30)
    join.spans(span(1, 1))
    join.spans(span(2, 2, 1))
    assert len(join.close(5.9)) == 0
    batch = join.close(6.0)
    assert (batch.trace_lo.tolist(), batch.outcome.tolist()) == ([1], [Outcome.COMPLETE])
    assert len(join.close(29.9)) == 0
    assert join.close(30.0).outcome.tolist() == [Outcome.TIMEOUT]


def test_each_arrival_prolongs_the_wait_up_to_the_greatest_age() -> None:
    join = Join(wait_initial_s=6, age_max_s=20)
    for second in range(0, 30, 5):
        join.spans(span(1, second + 1, start_ms=second), now=T0 + second * SECOND)
    batch = join.close(20)
    assert batch.records == 4
    assert batch.outcome.tolist() == [Outcome.TIMEOUT]
    assert join.joiner.counters()["late_spans"] == 2


def test_a_late_record_is_counted_and_makes_no_second_chain() -> None:
    join = Join()
    join.spans(span(1, 1))
    assert len(join.close(10)) == 1
    join.spans(span(1, 2, 1), now=T0 + 11 * SECOND)
    join.logs(log("x", 1, 1), now=T0 + 11 * SECOND)
    assert len(join.close()) == 0
    assert join.joiner.counters()["late_spans"] == 1
    assert join.joiner.counters()["late_logs"] == 1


def test_whether_a_record_is_late_does_not_depend_on_anybody_having_looked() -> None:
    looked, unlooked = Join(), Join()
    for join in (looked, unlooked):
        join.spans(span(1, 1))
    looked.close(7)
    for join in (looked, unlooked):
        join.spans(span(1, 2, 1), now=T0 + 8 * SECOND)
        assert join.joiner.counters()["late_spans"] == 1


def test_tenants_with_the_same_trace_id_have_chains_of_their_own() -> None:
    join = Join()
    join.spans(span(1, 1), tenant="a")
    join.spans(span(1, 2), tenant="b")
    batch = join.close()
    assert len(batch) == 2
    assert batch.trace_lo.tolist() == [1, 1]
    assert batch.trace_hi.tolist() == [0, 0]
    assert {join.symbols.tenants.text[tenant] for tenant in batch.tenant} == {"a", "b"}


def test_a_log_joins_by_the_business_key_in_its_attributes_or_body() -> None:
    join = Join(business_keys=("payment.id",))
    join.spans(span(1, 1, attributes={"payment.id": "PAY-000001"}))
    join.logs(log("booked PAY-000001 now"), log("done", attributes={"payment.id": "PAY-000001"}))
    batch = join.close()
    assert batch.records == 3
    assert join.joiner.counters()["joined_business_key"] == 2


def test_a_log_that_comes_before_its_chain_waits_for_it() -> None:
    join = Join(business_keys=("payment.id",))
    join.logs(log("booked PAY-000001 now"))
    assert join.joiner.open_chains == 0
    join.spans(span(1, 1, attributes={"payment.id": "PAY-000001"}), now=T0 + SECOND)
    assert join.close().records == 2
    assert join.joiner.counters()["joined_business_key"] == 1


def test_a_log_that_nothing_joins_is_an_orphan_and_no_chain() -> None:
    join = Join()
    join.logs(log("starting up"), log("key PAY-000009 of nobody"))
    assert len(join.close()) == 0
    assert join.joiner.counters()["orphans"] == 2


def test_when_all_is_full_the_tenant_with_most_records_gives_way() -> None:
    join = Join(chains_max=500, records_max=5000)
    join.spans(span(1, 1), tenant="small")
    gone: list[ChainBatch] = []
    for n in range(0, 3000, 100):
        gone += join.spans(*(span(10 + n + k, 1) for k in range(100)), now=T0 + n, tenant="large")
    assert all(batch.outcome.tolist() == [Outcome.EVICTED] * len(batch) for batch in gone)
    assert sum(len(batch) for batch in gone) == sum(join.joiner.evicted.values()) == 3001 - join.joiner.open_chains
    rest = join.close()
    assert "small" in {join.symbols.tenants.text[tenant] for tenant in rest.tenant}


def test_a_chain_at_its_limit_takes_no_more_records_and_counts_them() -> None:
    join = Join(chain_records_max=10)
    join.spans(*(span(1, n + 1, n, start_ms=n) for n in range(25)))
    assert join.close().records == 10
    assert join.joiner.counters()["oversize"] == 15


def test_a_ring_of_parents_loses_no_record() -> None:
    join = Join()
    join.spans(span(1, 1, 3), span(1, 2, 1, start_ms=1), span(1, 3, 2, start_ms=2), span(1, 4, 2, start_ms=3))
    batch = join.close()
    assert batch.records == 4
    assert sorted(batch.span_id.tolist()) == [1, 2, 3, 4]
    assert batch.parent[0] == -1


def test_memory_is_given_back_when_chains_close() -> None:
    join = Join()
    for round_ in range(50):
        join.spans(*(span(round_ * 100 + k + 1, 1) for k in range(100)), now=T0 + round_ * 100 * SECOND)
        assert len(join.joiner.snapshot()["chains"]) == 100 * join.joiner._chains.dtype.itemsize
        join.joiner.close(T0 + (round_ * 100 + 50) * SECOND)
    assert join.joiner.open_records == 0


def test_when_nothing_is_open_the_state_does_not_depend_on_how_often_somebody_looked() -> None:
    often, seldom = Join(wait_initial_s=2.0), Join(wait_initial_s=2.0)
    for trace in range(20):
        now = T0 + trace * SECOND
        for join in (often, seldom):
            join.spans(span(trace, 1), span(trace, 2, 1), now=now)
            join.logs(log("said", trace, 1), now=now)
        often.joiner.close(now)
    states = []
    for join in (often, seldom):
        join.close()
        states.append(join.joiner.snapshot())
    assert states[0].keys() == states[1].keys()
    for name in ("state", "chains", "deadlines", "pool", "cells"):
        assert np.array_equal(states[0][name], states[1][name]), name
    assert states[0]["chains"].size == 0


def test_waits_follow_the_gaps_that_a_flow_really_has() -> None:
    join = Join(wait_initial_s=6, wait_min_s=1)
    for n in range(300):
        now = T0 + n * 100 * SECOND
        join.spans(span(n + 1, 1), now=now)
        join.spans(span(n + 1, 2, 1), now=now + SECOND // 10)
        join.joiner.close(now + 50 * SECOND)
    join.joiner.learn()
    now = T0 + 40_000 * SECOND
    join.spans(span(9999, 1), now=now)
    assert not join.joiner.close(now + int(0.6 * SECOND))
    assert len(join.joiner.close(now + int(1.0 * SECOND))) == 1


TREE = st.lists(st.integers(0, 10_000), min_size=1, max_size=40)


@examples(60)
@given(shape=TREE, seed=st.integers(0, 2**32), copies=st.integers(0, 10), pieces=st.integers(1, 6))
def test_neither_order_nor_copies_nor_batching_change_a_chain(
    shape: list[int], seed: int, copies: int, pieces: int
) -> None:
    """A random tree with logs, sent in order at once, against the same shuffled, doubled and cut in pieces."""
    records = [span(1, 1, name="root", ms=100)]
    for n, value in enumerate(shape, start=2):
        at = 1 + value % 90
        if value % 3 == 0:
            records.append(log(f"line {chr(65 + value % 5)}", 1, 1 + value % (n - 1), at_ms=at))
        else:
            records.append(
                span(1, n, 1 + value % (n - 1), name=f"op{'abc'[value % 3]}", service=f"s{value % 4}", start_ms=at)
            )
    plain, mixed = Join(), Join()
    send(plain, records, 1)
    chaos = random.Random(seed)
    doubled = records + [chaos.choice(records) for _ in range(copies)]
    chaos.shuffle(doubled)
    send(mixed, doubled, pieces)
    a, b = plain.close(), mixed.close()
    assert plain.names(a) == mixed.names(b)
    for column in ("sequence", "span_id", "parent", "time_ns", "duration", "self_time", "kind", "status", "start_ns"):
        assert np.array_equal(getattr(a, column), getattr(b, column)), column
    assert plain.symbols.paths.text[a.path[0]] == mixed.symbols.paths.text[b.path[0]]


def send(join: Join, records: list[Any], pieces: int) -> None:
    for piece in range(pieces):
        part = records[piece::pieces]
        spans = [record for record in part if "name" in record[1]]
        lines = [record for record in part if "body" in record[1]]
        if lines:
            join.logs(*lines)
        if spans:
            join.spans(*spans)


def test_a_snapshot_goes_on_where_it_was_taken() -> None:
    join, other = Join(business_keys=("payment.id",)), Join(business_keys=("payment.id",))
    join.spans(*(span(n + 1, 1, attributes={"payment.id": f"PAY-{n:06}"}) for n in range(50)))
    join.logs(log("waits for PAY-000777"))
    join.close(0)
    state = join.joiner.snapshot()
    other.symbols.restore(join.symbols.snapshot())
    other.joiner.restore(state)
    for each in (join, other):
        each.logs(log("late line of PAY-000003"), now=T0 + SECOND)
        each.spans(span(777, 1, attributes={"payment.id": "PAY-000777"}), now=T0 + SECOND)
    a, b = join.close(), other.close()
    assert a.records == b.records == 53
    assert np.array_equal(a.trace_lo, b.trace_lo)
    assert join.joiner.counters() == other.joiner.counters()


def test_ids_that_are_chosen_to_crowd_the_table_of_chains_are_spread() -> None:
    join = Join()
    join.spans(*(span(n << 64 | (n ^ 0x5EED), 1) for n in range(1, 1501)))
    taken = "".join("x" if row else " " for row in join.joiner._slots.tolist())
    assert max(map(len, taken.split())) < 100


def test_no_trace_id_leads_into_another_tenants_chain() -> None:
    join = Join()
    known = content_hash("salt", "bank-a") ^ content_hash("salt", "bank-b")  # what anybody can compute
    join.spans(span(7 << 64 | 1, 1, name="pay"), tenant="bank-a")
    join.spans(span((7 ^ known) << 64 | 1, 2, 1, name="intruder"), tenant="bank-b")
    join.spans(span(7 << 64 | 1, 3, 1, name="intruder"), tenant="bank-b")
    batch = join.close()
    owner = batch.symbols.services.column("tenant")[batch.symbols.events.column("service")[batch.event]]
    assert owner.tolist() == batch.tenant[batch.chain_of()].tolist()
    of_a = batch.tenant == join.decoder._tenants["bank-a"]
    assert [batch.trace_id(chain) for chain in np.flatnonzero(of_a)] == [f"{7 << 64 | 1:032x}"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=40))
@examples(30)
def test_tenants_with_the_same_names_and_trace_ids_never_mix(sent: list[tuple[str, int, int]]) -> None:
    together = Join()
    alone = {tenant: Join() for tenant in "abc"}
    for tenant, trace, span_id in sent:
        for join in (together, alone[tenant]):
            join.spans(span(trace, span_id, name=f"op {chr(64 + span_id)}"), tenant=tenant)
    batch = together.close()
    for tenant, join in alone.items():
        known = together.decoder._tenants.get(tenant)
        own = batch.take(batch.tenant == (-2 if known is None else known))
        expected = join.close()
        assert [own.trace_id(chain) for chain in range(len(own))] == [
            expected.trace_id(chain) for chain in range(len(expected))
        ]
        assert own.span_id.tolist() == expected.span_id.tolist()
        assert together.symbols.events.hash[own.event].tolist() == join.symbols.events.hash[expected.event].tolist()


def test_what_the_limits_allow_takes_no_memory_before_it_is_used() -> None:
    """Also where there is memory that others have used and given back."""
    large = np.empty(31 << 20, np.uint8)  # once it is gone, glibc has what is smaller in one heap
    del large
    used = [np.ones(30 << 20, np.uint8) for _ in range(2)]
    behind = np.ones(1 << 20, np.uint8)
    del used
    give_memory_back()
    before = resident_bytes()
    joiner = Joiner(JoinConfig(), Symbols(), ())
    assert resident_bytes() - before < 8 << 20
    assert behind.all()
    assert joiner.open_chains == 0


def test_a_system_that_knows_no_huge_pages_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert Joiner(JoinConfig(), Symbols(), ()).open_chains == 0
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 4095, raising=False)  # which the system refuses
    assert Joiner(JoinConfig(), Symbols(), ()).open_chains == 0
