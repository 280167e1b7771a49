"""What is kept of a batch: the same share of normal chains everywhere, and unusual chains as people read them."""

from __future__ import annotations

import numpy as np
import pytest
from builders import log, span
from verdicts import SYMBOLS, verdicts

from exporters.store.entries import records_of, sampled


def test_the_share_of_normal_chains_is_about_what_was_asked_for() -> None:
    batch = verdicts(3000, 0)
    for share in (0.01, 0.2):
        assert sampled(batch, share).size == pytest.approx(3000 * share, rel=0.35)
    assert sampled(batch, 0).size == 0
    assert sampled(batch, 1).size == 3000


def test_a_trace_is_kept_or_not_whatever_stands_beside_it() -> None:
    whole, part = verdicts(400, 0), verdicts(100, 0, first_trace=301)
    kept = {whole.chains.trace_id(chain) for chain in sampled(whole, 0.3).tolist() if chain >= 300}
    assert kept == {part.chains.trace_id(chain) for chain in sampled(part, 0.3).tolist()}
    assert 10 < len(kept) < 60
    more = {whole.chains.trace_id(chain) for chain in sampled(whole, 0.6).tolist()}
    assert kept < more, "a greater share keeps what a smaller one does"


def test_the_unusual_are_not_in_the_sample() -> None:
    assert sampled(verdicts(10, 4), 1).tolist() == [0, 1, 2, 3, 4, 5]


def test_chains_without_a_trace_id_are_not_all_one() -> None:
    batch = verdicts(500, 0)
    batch.chains.trace_hi[:] = batch.chains.trace_lo[:] = 0
    assert 50 < sampled(batch, 0.3).size < 300


def test_the_records_of_a_chain_are_a_tree_in_causal_order() -> None:
    root = span("gateway:pay", 100, span("risk:check", 60, log("checked <*>"), status=2), span("ledger:book", 20))
    batch = verdicts(2, 1, root=root)
    kept = records_of(batch.chains, 1, 100)
    assert kept["left_out"] == 0
    said = [(each["service"], each.get("operation") or each["template"], each["parent"]) for each in kept["records"]]
    assert said == [
        ("gateway", "pay", None),
        ("risk", "check", 0),
        ("risk", "checked <*>", 1),
        ("ledger", "book", 0),
    ]
    assert [each.get("status") for each in kept["records"]] == ["unset", "error", None, "unset"]
    first = kept["records"][0]
    assert first["at_ns"] == 0
    assert first["duration_ns"] == pytest.approx(100e6)
    assert 0 < first["self_ns"] < first["duration_ns"]
    assert kept["records"][2]["kind"] == "log"
    assert len(first["span_id"]) == 16


def test_a_long_chain_is_cut_and_says_so() -> None:
    batch = verdicts(1, 1)
    kept = records_of(batch.chains, 0, 2)
    assert len(kept["records"]) == 2
    assert kept["left_out"] == batch.chains.records - 2
    assert all(each["parent"] is None or each["parent"] < 2 for each in kept["records"])


def test_names_of_the_overflow_list_are_no_error() -> None:
    batch = verdicts(1, 1)
    batch.chains.instance[:] = -1
    batch.chains.event[0] = 0
    records = records_of(batch.chains, 0, 10)["records"]
    assert records[0]["service"] == SYMBOLS.services.text[0]
    assert {each["instance"] for each in records} == {None}
    assert np.all(batch.chains.parent < len(records))
