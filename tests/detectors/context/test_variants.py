"""What is known of an operation's variants, and how another one is told apart from them."""

from __future__ import annotations

import numpy as np
import pytest

from collector_processor.config import ContextConfig
from collector_processor.kernels.table import put
from collector_processor.model import NONE
from detectors.context.variants import ROOM, Variants

SLOT, OTHER = 3, 70  # the second is beyond what there is room for at first
A, B, C, D = 11, 12, 13, 14


def with_variants(counts: dict[tuple[int, ...], float], config: ContextConfig | None = None) -> Variants:
    """A slot whose spans had these events so often."""
    known = Variants(config or ContextConfig())
    known.begin(SLOT, 64)
    for key, (events, count) in enumerate(counts.items(), 1):
        add(known, key, events, count)
    return known


def add(known: Variants, key: int, events: tuple[int, ...], count: float) -> None:
    """As `learn` does it: a row, then its events."""
    row = known.used
    known.rows["count"][row], known.rows["following"][row] = count, known.slots["first"][SLOT]
    known.slots["first"][SLOT] = row
    known.slots["seen"][SLOT] += count
    known.slots["distinct"][SLOT] += 1
    known.members[row, : len(events)] = events
    put(known.keys, known.found, np.uint64(key), row)
    known.entered(1)


def test_the_usual_variant_is_the_most_frequent_one() -> None:
    known = with_variants({(A, B): 90.0, (A, B, C): 10.0})
    assert known.usual(SLOT) == [A, B]
    known.begin(OTHER, 128)
    assert (known.usual(OTHER), known.most_frequent(OTHER)) == ([], NONE)


def test_what_is_seen_is_held_against_the_variant_that_it_comes_closest_to() -> None:
    known = with_variants({(A, B): 90.0, (A, C, D): 10.0})
    assert known.differs(SLOT, [A, C]) == ([], [D])
    assert known.differs(SLOT, [A, B, B]) == ([B], [])


def test_of_variants_equally_far_the_more_frequent_one_is_meant() -> None:
    known = with_variants({(A, B): 90.0, (A, C): 1.0})
    assert known.differs(SLOT, [A]) == ([], [B])


def test_the_rarest_event_is_what_spans_had_least_often() -> None:
    known = with_variants({(A, B): 90.0, (A, C): 5.0, (C, D): 1.0})
    assert known.rarest(SLOT, [A, B, C]) == C
    assert known.rarest(SLOT, []) == NONE


def test_events_that_no_variant_has_so_often() -> None:
    known = with_variants({(A, B): 90.0, (A, A, C): 5.0})
    assert known.never_so_often(SLOT, [A, A, B, B, D]) == [B, D]


def test_the_share_of_spans_without_an_event() -> None:
    known = with_variants({(A, B): 90.0, (A,): 9.0})
    assert known.share_without(SLOT, B) == pytest.approx(9.5 / 100)
    assert known.share_without(SLOT, A) == pytest.approx(0.5 / 100)


def test_a_variant_takes_over_the_history_of_the_most_frequent_one() -> None:
    known = with_variants({(A, B): 90.0, (A,): 9.0})
    assert known.take_over(SLOT, 77, [C, D])
    assert known.usual(SLOT) in ([C, D], [A, B])
    assert sorted(float(known.rows["count"][row]) for row in known.of(SLOT)) == [9.0, 90.0, 90.0]
    assert known.take_over(SLOT, 77, [C, D])  # the second time it is there already
    assert len(known.of(SLOT)) == 3
    assert known.usual(SLOT) == [C, D]


def test_where_there_is_no_room_nothing_is_taken_over() -> None:
    known = with_variants({(A, B): 90.0}, ContextConfig(variants_max=1))
    assert not known.take_over(SLOT, 77, [C, D])
    assert known.usual(SLOT) == [A, B]


def test_room_is_made_before_it_is_needed_and_the_table_stays_sparse() -> None:
    known = with_variants({(A, B): 90.0})
    for key in range(2, ROOM):
        add(known, key, (A, key), 1.0)
    assert known.rows["count"].size >= known.used + ROOM
    assert known.keys.size >= 4 * known.rows["count"].size
    assert known.take_over(SLOT, 5, [A, 5])  # found where the table has moved to


def test_a_snapshot_restores_all_of_it() -> None:
    known = with_variants({(A, B): 90.0, (A,): 9.0})
    known.take_over(SLOT, 77, [C, D])
    again = Variants(ContextConfig())
    again.restore(known.snapshot(SLOT + 1), SLOT + 1, 64)
    assert again.usual(SLOT) == known.usual(SLOT)
    assert [again.events(row) for row in again.of(SLOT)] == [known.events(row) for row in known.of(SLOT)]
    assert np.array_equal(again.rows["nats"][: again.used], known.rows["nats"][: known.used])
    assert again.take_over(SLOT, 77, [C, D])
    assert len(again.of(SLOT)) == 3
