"""One chain put in order: whatever the order of arrival and the copies, against a plain tree in Python objects."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.kernels.join import RECORD, rows_of
from collector_processor.kernels.tree import EVENT_BITS, depth_first, link_tree, self_times, sort_records, unite

Span = tuple[int, int, int, int]  # id, parent (0: none), start, duration


@st.composite
def trees(draw: st.DrawFn) -> list[Span]:
    """Spans 1, 2, ... each under an earlier one, the first under none; children may leave their parent's time."""
    count = draw(st.integers(1, 40))
    parents = [0] + [draw(st.integers(1, number)) for number in range(1, count)]
    times = st.tuples(st.integers(0, 200), st.integers(0, 100))
    return [(number + 1, parent, *draw(times)) for number, parent in enumerate(parents)]


def uncovered(span: Span, spans: list[Span]) -> int:
    """Nanoseconds of `span` in which none of its children runs, counted one by one."""
    busy = set()
    for _, parent, start, duration in spans:
        if parent == span[0]:
            busy |= set(range(start, start + duration))
    return len(set(range(span[2], span[2] + span[3])) - busy)


@given(trees(), st.randoms(use_true_random=False))
def test_a_tree_comes_out_whole_with_its_self_times(spans: list[Span], random: np.random.Generator) -> None:
    arrived = spans + [span for span in spans if span[0] % 3 == 0]  # every third comes twice
    random.shuffle(arrived)
    n = len(arrived)
    pool = rows_of(RECORD, n)
    for at, (number, parent, start, duration) in enumerate(arrived):
        pool[at]["span"], pool[at]["parent"], pool[at]["time"], pool[at]["duration"] = number, parent, start, duration
        pool[at]["event"] = (2 << EVENT_BITS) | number  # a server's span
    hashes = np.arange(64, dtype=np.uint64)
    order, times = np.arange(n, dtype=np.int32), pool["time"].astype(np.int64)
    more = {name: np.zeros(n, np.int32) for name in ("scratch", "parent", "first", "next", "stack", "place", "walk")}
    table = np.zeros(128, np.int32)
    sort_records(pool, hashes, order, times, more["scratch"], np.zeros(n, np.int64), n)
    kept, copies, logs = unite(pool, order, n, table, 127)
    assert (kept, copies, logs) == (len(spans), n - len(spans), 0)
    ids = pool["span"][order[:kept]].tolist()
    root, top = link_tree(pool, order, kept, table, 127, more["parent"], more["first"], more["next"])
    assert ids[root] == 1
    found = {ids[i]: ids[more["parent"][i]] if more["parent"][i] >= 0 else 0 for i in range(kept)}
    assert found == {number: parent for number, parent, _, _ in spans}
    depth_first(kept, top, more["first"], more["next"], more["parent"], more["stack"], more["place"], more["walk"])
    walked = [ids[i] for i in more["walk"][:kept]]
    assert sorted(walked) == sorted(ids)
    assert all(walked.index(parent) < walked.index(number) for number, parent, _, _ in spans if parent)
    alone = np.zeros(n, np.float32)
    covered, reach = np.zeros(n, np.int64), np.zeros(n, np.int64)
    self_times(pool, order, kept, more["walk"], more["parent"], covered, reach, alone)
    assert {ids[i]: int(alone[i]) for i in range(kept)} == {span[0]: uncovered(span, spans) for span in spans}
