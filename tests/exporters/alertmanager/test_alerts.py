"""The text of a page: what broke, where, for whom, what to do, in labels and annotations that Alertmanager can keep."""

from __future__ import annotations

from typing import Any

import pytest
from verdicts import incident, incident_row

from collector_processor.config import AlertmanagerConfig
from exporters.alertmanager.alerts import alert, timestamp

CONFIG = AlertmanagerConfig(runbook_url="https://wiki/runbooks", trace_url="https://traces/{trace_id}?view=1")


def row(**changes: Any) -> dict[str, Any]:
    return incident_row(incident(7)) | changes


def test_the_page_reads_at_a_glance() -> None:
    annotations = alert(row(), CONFIG)["annotations"]
    assert annotations == {
        "summary": "Slow operation: risk, check (4 transactions)",
        "description": (
            "check of risk took 2.5 s, usually 60 ms.\n"
            "Fewer than 1 in 1,000,000 normal chains look so unusual.\n"
            "Affected: flows: gateway pay; services: risk; instances: risk-1; chains: 1.\n"
            "What to do:\n- Look at what check of risk waits for.\n- Compare with a normal trace."
        ),
        "suspects": "risk check",
        "runbook_url": "https://wiki/runbooks#spanchainincident",
        "trace": f"https://traces/{7:032x}?view=1",
    }


def test_labels_identify_and_route() -> None:
    made = alert(row(subject={"service": "risk", "operation": None, "instance": "risk-2"}), CONFIG)
    assert made["labels"] == {
        "alertname": "SpanchainIncident",
        "incident": incident(7).incident_id,
        "tenant": "default",
        "kind": "slow_operation",
        "category": "system",
        "severity": "critical",
        "service": "risk",
        "instance": "risk-2",
    }
    assert made["generatorURL"] == made["annotations"]["trace"]


def test_what_grows_while_an_incident_lasts_is_no_label() -> None:
    before, after = row(), row(chains=99, flows=["a", "b"], example_trace_ids=["f" * 32], suspects=[])
    assert alert(before, CONFIG)["labels"] == alert(after, CONFIG)["labels"]


def test_times() -> None:
    assert timestamp(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123Z"
    assert "endsAt" not in alert(row(), CONFIG)
    over = alert(row(resolved_unix_nano=1_700_000_001_000_000_000), CONFIG)
    assert over["endsAt"] == "2023-11-14T22:13:21.000Z"


def test_without_addresses_there_are_no_links() -> None:
    made = alert(row(), AlertmanagerConfig())
    assert "generatorURL" not in made
    assert {"runbook_url", "trace"} & set(made["annotations"]) == set()


@pytest.mark.parametrize("hostile", ["\ud800", "x" * 100_000, '{{ template "x" }}', 'a"}\nb'])
def test_text_is_bounded_valid_and_never_a_template_of_ours(hostile: str) -> None:
    made = alert(row(tenant=hostile, explanation=row()["explanation"] | {"trigger": hostile}), CONFIG)
    for text in (*made["labels"].values(), *made["annotations"].values()):
        assert len(text.encode()) <= 4100
    if "{{" in hostile:
        assert made["labels"]["tenant"] == hostile, "data is passed on; templates are the receiver's own"
