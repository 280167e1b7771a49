"""What is read: of the tenant that was asked for and no other, the newest first."""

from __future__ import annotations

import pytest

from exporters.store.reader import StoreError
from tests.exporters.store.kept import NS, Place, incident, verdict


def numbers(rows: list[dict[str, object]]) -> list[int]:
    return [int(str(row["incident_id"]), 16) for row in rows]


def test_the_newest_first_and_no_more_than_asked_for(place: Place) -> None:
    place.sink().write([incident(number, changed_s=100 - number) for number in (3, 1, 2, 5, 4)])
    assert numbers(place.reader().incidents(tenant=None)) == [5, 4, 3, 2, 1]
    assert numbers(place.reader().incidents(tenant=None, limit=2)) == [5, 4]


def test_since_looks_at_the_last_change_and_open_at_the_end(place: Place) -> None:
    place.sink().write(
        [incident(1, changed_s=50), incident(2, changed_s=40, resolved=True), incident(3, changed_s=60, resolved=True)]
    )
    reader = place.reader()
    assert numbers(reader.incidents(tenant=None, since_ns=50 * NS)) == [3, 1]
    assert numbers(reader.incidents(tenant=None, only_open=True)) == [1]


def test_a_tenant_sees_its_own(place: Place) -> None:
    place.sink().write([incident(1, "a"), incident(2, "b"), verdict(1, "a"), verdict(2, "b"), verdict(1, "b")])
    reader = place.reader()
    assert numbers(reader.incidents(tenant="a")) == [1]
    assert numbers(reader.incidents(tenant="' OR 1=1 --")) == []
    assert reader.incident(f"{1:016x}", tenant="a")["tenant"] == "a"
    with pytest.raises(StoreError, match="no incident"):
        reader.incident(f"{2:016x}", tenant="a")
    [seen] = reader.evidence([f"{1:032x}", f"{2:032x}"], tenant="a")
    assert seen["tenant"] == "a"
    assert seen["records"]["records"][0]["operation"] == "pay"


def test_the_beginning_of_an_id_is_enough_when_only_one_begins_so(place: Place) -> None:
    far = incident(9)
    far["incident"]["incident_id"] = "2" * 16
    place.sink().write([incident(0x1A), incident(0x1B), far])
    reader = place.reader()
    assert reader.incident("2", tenant=None)["incident_id"] == "2" * 16
    with pytest.raises(StoreError, match=f"several.*{0x1A:016x}, {0x1B:016x}"):
        reader.incident("00", tenant=None)
    for pattern in ("%", "_000", "2%"):
        with pytest.raises(StoreError, match="no incident"):
            reader.incident(pattern, tenant=None)


def test_evidence_is_of_unusual_chains(place: Place) -> None:
    place.sink().write([verdict(1, severity="none"), verdict(2, severity="info")])
    assert [each["severity"] for each in place.reader().evidence([f"{1:032x}", f"{2:032x}"], tenant="default")] == [
        "info"
    ]


def test_when_the_examples_are_not_kept_others_of_the_same_trouble_show_it(place: Place) -> None:
    shown = incident(10, changed_s=60, resolved=True)["incident"]
    other_kind = verdict(20, closed_s=30)
    other_kind["verdict"]["findings"][0]["kind"] = "error"
    place.sink().write(
        [
            verdict(1, closed_s=9),  # before
            verdict(2, closed_s=61),  # after
            verdict(3, closed_s=30, service="ledger"),
            verdict(4, "b", closed_s=30),
            verdict(5, closed_s=30, severity="none"),
            other_kind,
            *(verdict(number, closed_s=number) for number in (30, 40)),
        ]
    )
    reader = place.reader()
    assert [int(each["trace_id"], 16) for each in reader.evidence_of(shown)] == [30, 40, 20]
    place.sink().write([verdict(10, closed_s=5)])
    assert [int(each["trace_id"], 16) for each in reader.evidence_of(shown)] == [10, 30, 40, 20]


def test_a_store_of_another_version_is_not_guessed_at(place: Place) -> None:
    place.sink().write([incident(1)])
    with place.database().transaction() as connection:
        connection.exec_driver_sql("INSERT INTO schema_versions VALUES (99, 0)")
    with pytest.raises(StoreError, match="use a newer spanchain"):
        place.reader().incidents(tenant=None)
