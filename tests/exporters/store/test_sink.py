"""Written once, whatever comes twice or in whatever order; what one row does wrong costs no other."""

from __future__ import annotations

import sqlite3
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from exporters.queue import RetryLater
from exporters.store.entries import Entry
from exporters.store.sink import Sink
from tests.examples import examples
from tests.exporters.store.kept import NS, Place, incident, verdict

TENANTS = st.sampled_from(["a", "b"])
ENTRIES = st.one_of(
    st.builds(verdict, st.integers(0, 4), TENANTS),
    # As the engine tells it: states at ascending moments; the last is the end.
    st.builds(
        lambda number, tenant, step, end: incident(
            number, tenant, changed_s=min(step, end), resolved=step > end, chains=1 + min(step, end)
        ),
        st.integers(0, 2),
        TENANTS,
        st.integers(0, 6),
        st.just(4),
    ),
)


def newest(entries: list[Entry]) -> dict[tuple[str, str], tuple[int, bool]]:
    """What has to be kept of each incident: when it changed last, and whether it is over."""
    out: dict[tuple[str, str], tuple[int, bool]] = {}
    for entry in entries:
        row = entry.get("incident")
        if row is not None:
            key, state = (row["tenant"], row["incident_id"]), (entry["changed"], row["resolved_unix_nano"] is not None)
            out[key] = max(out.get(key, state), state)
    return out


@pytest.fixture
def sink(place: Place) -> Sink:
    return place.sink()


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_repeats_and_disorder_change_nothing(place: Place, sink: Sink, data: st.DataObject) -> None:
    entries = data.draw(st.lists(ENTRIES, min_size=1, max_size=20))
    given_again = data.draw(st.lists(st.sampled_from(entries), max_size=20))
    order = data.draw(st.permutations(entries + given_again))
    with sink.database.transaction() as connection:
        for table in ("verdicts", "incidents"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    while order:
        size = data.draw(st.integers(1, len(order)))
        assert sink.write(order[:size]) == 0
        order = order[size:]
    verdicts = {(each["verdict"]["tenant"], each["verdict"]["verdict_id"]) for each in entries if "verdict" in each}
    assert sorted(place.rows("SELECT tenant, verdict_id FROM verdicts")) == sorted(verdicts)
    incidents = place.rows("SELECT tenant, incident_id, changed_unix_nano, resolved_unix_nano, content FROM incidents")
    assert {(tenant, each): (changed, end is not None) for tenant, each, changed, end, _ in incidents} == newest(
        entries
    )
    for tenant, each, changed, end, content in incidents:
        row = orjson.loads(content)
        assert (row["tenant"], row["incident_id"], row["resolved_unix_nano"]) == (tenant, each, end)
        assert row["chains"] == 1 + changed // NS, "the columns and the content are of the same state"


def test_a_resolved_incident_stays_resolved_when_its_story_is_told_again(place: Place) -> None:
    story = [
        incident(1, changed_s=5),
        incident(1, changed_s=9, chains=40),
        incident(1, changed_s=20, chains=41, resolved=True),
    ]
    sink = place.sink()
    for state in [*story, *story[:2], *story]:
        sink.write([state])
    sink.write(story)
    assert place.rows("SELECT resolved_unix_nano, chains FROM incidents") == [(20 * NS, 41)]


def test_two_tenants_may_have_the_same_ids(place: Place) -> None:
    place.sink().write([verdict(1, "a"), verdict(1, "b"), incident(1, "a", resolved=True), incident(1, "b")])
    assert len(place.rows("SELECT * FROM verdicts")) == 2
    assert sorted(place.rows("SELECT tenant, resolved_unix_nano IS NULL FROM incidents")) == [("a", False), ("b", True)]


def spoilt(**columns: Any) -> Entry:
    entry = verdict(666)
    entry["verdict"].update(columns)
    return entry


@pytest.mark.parametrize("bad", [spoilt(score=None), spoilt(start_unix_nano=2**64 - 1)], ids=["null", "range"])
def test_a_row_that_cannot_be_kept_costs_no_other(place: Place, bad: Entry) -> None:
    assert place.sink().write([verdict(1), bad, verdict(2), incident(1)]) == 1
    assert place.rows("SELECT verdict_id FROM verdicts ORDER BY 1") == [(f"{1:016x}",), (f"{2:016x}",)]
    assert len(place.rows("SELECT * FROM incidents")) == 1


@pytest.mark.parametrize("text", ["'; DROP TABLE verdicts; --", 'quote " and \\', "nul \0 inside", "🙂 %s :tenant ?"])
def test_hostile_texts_are_data(place: Place, text: str) -> None:
    entry = verdict(1, text)
    entry["verdict"]["flow"] = text
    assert place.sink().write([entry]) == 0
    [(tenant, flow, content)] = place.rows("SELECT tenant, flow, content FROM verdicts")
    assert tenant == flow == text.replace("\0", "�")
    assert orjson.loads(content)["flow"] == text


def test_a_locked_file_is_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.url is not None:
        pytest.skip("its locks are rows")
    monkeypatch.setattr("exporters.store.database.BUSY_S", 0.1)
    sink = place.sink()
    locker = sqlite3.connect(place.folder / "spanchain.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryLater, match="locked"):
        sink.write([verdict(1)])
    locker.close()
    assert sink.write([verdict(1)]) == 0
