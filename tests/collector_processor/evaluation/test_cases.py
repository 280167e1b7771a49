"""Cases become the chains that a service's own telemetry would have become."""

from __future__ import annotations

import numpy as np

from collector_processor.config import Config
from collector_processor.evaluation.cases import NS, SERVER, Case, Log, Span, build, of_logs
from collector_processor.model import Symbols

START = 1_700_000_000 * NS


def test_a_trace_keeps_its_tree_times_and_logs() -> None:
    spans = (
        Span("gateway", "pay", START, 100_000_000),
        Span("ledger", "book", START + 10_000_000, 50_000_000, 0, SERVER, 2, "ledger-1"),
    )
    case = Case("ab" * 16, True, spans, (Log(1, "posted 12", START + 20_000_000, 17),), "slow")
    (batch,) = build([case], Config(), symbols := Symbols())
    assert batch.trace_id(0) == "ab" * 16
    assert [symbols.events.text[e] for e in batch.event] == ["pay", "book", "posted <*>"]
    assert batch.parent.tolist() == [-1, 0, 1]
    assert batch.duration.tolist() == [1e8, 5e7, 0]
    assert batch.self_time.tolist() == [5e7, 5e7, 0]
    assert batch.status.tolist() == [0, 2, 17]
    assert symbols.instances.text[batch.instance[1]] == "ledger-1"


def test_a_sequence_becomes_one_span_with_its_logs_in_order() -> None:
    cases = [of_logs(f"s{n}", False, ["alpha", "beta", "alpha"], "hdfs", START + n * 60 * NS) for n in range(30)]
    batches = build(cases, Config(), symbols := Symbols())
    assert sum(len(batch) for batch in batches) == 30
    names = [symbols.events.text[e] for e in batches[0].event[:4]]
    assert names == ["session", "alpha", "beta", "alpha"]
    closed = np.concatenate([batch.closed_ns for batch in batches])
    assert (np.diff(closed) >= 0).all()
    assert len({batch.trace_id(i) for batch in batches for i in range(len(batch))}) == 30
