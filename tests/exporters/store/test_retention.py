"""What is too old or too much goes, the oldest first, in small batches; what has to stay, stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from exporters.store import retention
from exporters.store.retention import Retention
from tests.exporters.store.kept import NS, Place, incident, verdict

DAY_S = 86_400
NOW_NS = 100 * DAY_S * NS


def trim(place: Place, **settings: object) -> int:
    config = place.config(**settings)
    return Retention(config, place.database(), place.telemetry, place.stopped, lambda: NOW_NS).trim()


def verdicts(place: Place) -> list[int]:
    return [int(each, 16) for (each,) in place.rows("SELECT verdict_id FROM verdicts ORDER BY verdict_id")]


def incidents(place: Place) -> list[int]:
    return [int(each, 16) for (each,) in place.rows("SELECT incident_id FROM incidents ORDER BY incident_id")]


def deleted(place: Place, table: str, reason: str) -> float | None:
    return place.telemetry.value("store_deleted_total", table=table, reason=reason)


def test_each_table_has_its_age(place: Place) -> None:
    place.sink().write([verdict(day, closed_s=day * DAY_S) for day in range(60, 100)])
    place.sink().write([incident(day, changed_s=day * DAY_S) for day in (10, 40, 90)])
    assert trim(place, age_max_s=30 * DAY_S, incidents_age_max_s=61 * DAY_S) == 11
    assert verdicts(place) == list(range(70, 100))
    assert incidents(place) == [40, 90]
    assert deleted(place, "verdicts", "age") == 10
    assert deleted(place, "incidents", "age") == 1


def test_a_long_incident_ages_from_its_last_change(place: Place) -> None:
    place.sink().write([incident(1, changed_s=1), incident(1, changed_s=99 * DAY_S)])
    assert trim(place, incidents_age_max_s=2 * DAY_S) == 0
    assert incidents(place) == [1]


def test_rows_over_the_bound_go_the_oldest_first(place: Place) -> None:
    place.sink().write([verdict(number, closed_s=99 * DAY_S + 100 - number) for number in range(50)])
    place.sink().write([incident(number, changed_s=99 * DAY_S + number) for number in range(9)])
    assert trim(place, verdicts_max=20, incidents_max=4) == 35
    assert verdicts(place) == list(range(20)), "the lower the number, the later it was closed"
    assert incidents(place) == [5, 6, 7, 8]
    assert deleted(place, "verdicts", "rows") == 30
    assert place.telemetry.value("store_rows", table="verdicts") == 20
    assert trim(place, verdicts_max=20, incidents_max=4) == 0


def test_bytes_over_the_bound_cost_old_verdicts_before_any_incident(place: Place) -> None:
    sizes = [1000 * (1 + number % 3) for number in range(30)]
    place.sink().write([verdict(n, closed_s=99 * DAY_S + n, fill=size) for n, size in enumerate(sizes)])
    place.sink().write([incident(number, changed_s=50 * DAY_S) for number in range(3)])
    [(before,)] = place.rows("SELECT sum(bytes) FROM verdicts")
    [(story,)] = place.rows("SELECT sum(bytes) FROM incidents")
    trim(place, bytes_max=int(before) // 2 + int(story))
    [(after,)] = place.rows("SELECT sum(bytes) FROM verdicts")
    kept = verdicts(place)
    assert kept == list(range(30 - len(kept), 30))
    assert int(before) // 2 - 5000 < after <= int(before) // 2, "no more than it takes"
    assert place.telemetry.value("store_bytes") == after + story
    assert incidents(place) == [0, 1, 2]
    trim(place, bytes_max=1)
    assert verdicts(place) == incidents(place) == []


def test_no_transaction_deletes_more_than_a_batch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 7)
    monkeypatch.setattr(retention, "PAUSE_S", 0)
    sizes = []
    monkeypatch.setattr(place.telemetry, "count", lambda _name, amount, **_labels: sizes.append(amount))
    place.sink().write([verdict(number, closed_s=number) for number in range(30)])
    place.sink().write([verdict(number, closed_s=99 * DAY_S) for number in range(100, 130)])
    assert trim(place, verdicts_max=10) == 50
    assert len(verdicts(place)) == 10
    assert sum(sizes) == 50
    assert max(sizes) == 7


def test_two_services_that_tidy_at_once_disturb_neither(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    place.sink().write([verdict(number, closed_s=99 * DAY_S + number) for number in range(100)])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: trim(place, verdicts_max=40), range(2)))
    assert verdicts(place) == list(range(60, 100))
    assert deleted(place, "verdicts", "rows") == 60


def test_a_service_that_stops_does_not_wait_for_it(place: Place) -> None:
    place.sink().write([verdict(number, closed_s=1) for number in range(10)])
    place.stopped.set()
    assert trim(place) == 0


def test_the_file_becomes_smaller(place: Place) -> None:
    if place.url is not None:
        pytest.skip("PostgreSQL does it by itself")
    place.sink().write([verdict(number, closed_s=1, fill=20_000) for number in range(100)])
    place.sink().write([verdict(1000, closed_s=99 * DAY_S)])
    [(pages,)] = place.rows("PRAGMA page_count")
    trim(place)
    [(left,)] = place.rows("PRAGMA page_count")
    assert left < pages / 10
