"""The table of metrics: its document is fresh, its names are right, and it holds what the public contract lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exporters.prometheus.metrics import METRICS, Metric, reference

CONTRACT = {
    "chain_score": {"tenant", "flow"},
    "anomalies_total": {"tenant", "flow", "kind", "severity", "category"},
    "incidents_open": {"tenant", "kind", "severity"},
    "incidents_total": set(),
    "chains_total": {"tenant", "flow", "outcome"},
    "records_received_total": {"signal", "transport"},
    "records_rejected_total": {"signal", "reason"},
    "logs_joined_total": {"outcome"},
    "open_chains": set(),
    "verdict_latency_seconds": set(),
    "exporter_queue_length": set(),
    "exporter_dropped_total": {"exporter", "reason"},
    "model_info": set(),
}


def test_the_document_is_fresh(repository: Path) -> None:
    assert (repository / "docs" / "metrics.md").read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("name", CONTRACT)
def test_what_the_contract_promises_is_there(name: str) -> None:
    assert set(METRICS[name].labels) >= CONTRACT[name]


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert set(metric.open_labels) <= set(metric.labels)
    assert not {"le", "trace_id", "span_id", "job", "instance"} & set(metric.labels)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert not (metric.exemplars and metric.kind == "gauge")
    assert metric.help.endswith(".")
