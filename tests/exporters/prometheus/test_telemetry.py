"""The arrays behind `/metrics`: sums are exact whoever adds and whatever overflows, and a scrape stays small."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporters.prometheus.metrics import METRICS, OTHER, PREFIX, SCORE_BUCKETS, Metric
from exporters.prometheus.telemetry import LABEL_MAX, Series, Sightings, Telemetry

MIB = 1 << 20


def samples(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], float]:
    """Label values in the table's order -> value, of a counter or gauge, through the text that a scrape gets."""
    full = PREFIX + name
    return {
        tuple(sample.labels[label] for label in METRICS[name].labels): sample.value
        for family in parse_text(generate_latest(telemetry.registry).decode())
        for sample in family.samples
        if sample.name == full
    }


def test_counters_gauges_and_histograms_add_up() -> None:
    telemetry = Telemetry("1")
    telemetry.count("records_received_total", 5, signal="traces", transport="grpc")
    telemetry.count("records_received_total", signal="traces", transport="grpc")
    telemetry.set("open_chains", 7)
    telemetry.set("open_chains", 3)
    telemetry.observe("verdict_latency_seconds", [0.02, 0.02, 400.0])
    telemetry.observe("verdict_latency_seconds", 0.01)
    assert telemetry.value("records_received_total", signal="traces", transport="grpc") == 6
    assert samples(telemetry, "open_chains") == {(): 3}
    text = generate_latest(telemetry.registry).decode()
    for line in ('_bucket{le="0.01"} 1.0', '_bucket{le="0.05"} 3.0', '_bucket{le="+Inf"} 4.0', "_sum 400.05"):
        assert f"spanchain_verdict_latency_seconds{line}" in text


def test_known_label_values_exist_at_zero_before_anything_happens() -> None:
    assert samples(Telemetry("1"), "logs_joined_total") == {
        (outcome,): 0 for outcome in ("trace", "business_key", "orphan", "late")
    }


def test_every_metric_is_in_both_expositions_with_its_help_and_without_created_samples() -> None:
    telemetry = Telemetry("1")
    texts = [generate_latest(telemetry.registry).decode(), generate_openmetrics(telemetry.registry).decode()]
    for text in texts:
        assert "_created" not in text
        for name in METRICS:
            assert f"# HELP {PREFIX}{name.removesuffix('_total')}" in text
    assert list(parse_openmetrics(texts[1]))


def test_a_wrong_label_is_a_mistake_of_ours() -> None:
    with pytest.raises((KeyError, ValueError)):
        Telemetry("1").count("records_received_total", signal="traces", transfer="grpc")
    with pytest.raises(ValueError):
        Telemetry("1").count("records_received_total", signal="traces")


def test_threads_lose_no_update() -> None:
    telemetry = Telemetry("1")

    def add(worker: int) -> None:
        for number in range(500):
            telemetry.count("records_rejected_total", signal="traces", reason=f"r{(worker + number) % 50}")
            telemetry.observe("verdict_latency_seconds", [0.1, 1.0])

    threads = [threading.Thread(target=add, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(samples(telemetry, "records_rejected_total").values()) == 2000
    assert telemetry.value("verdict_latency_seconds") == 4000


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from("abc")), max_size=300))
def test_sums_are_exact_whatever_overflows(updates: list[tuple[int, int, str]]) -> None:
    metric = Metric("chains_total", "counter", "", ("tenant", "flow", "outcome"), ("tenant", "flow"))
    series = Series(metric, 100)
    exact: Counter[str] = Counter()
    for tenant, flow, outcome in updates:
        row = series.row((f"t{tenant}", f"f{flow}", outcome))
        series.values[row, 0] += 1
        exact[outcome] += 1
    assert len(series.rows) <= 100
    found: Counter[str] = Counter()
    for labels, row in series.rows.items():
        found[labels[2]] += int(series.values[row, 0])
    assert found == exact


def test_the_finest_label_gives_way_first_and_what_had_a_row_keeps_it() -> None:
    series = Series(METRICS["chains_total"], 100)
    rows = {number: series.row(("bank", f"flow {number}", "complete")) for number in range(1000)}
    assert len(set(rows.values())) == 81, "80 of their own, the rest shared"
    assert ("bank", OTHER, "complete") in series.rows
    for number in range(100):
        series.row((f"tenant {number}", "x", "complete"))
    assert (OTHER, OTHER, "complete") in series.rows
    assert len(series.rows) <= 100
    assert all(series.row(("bank", f"flow {number}", "complete")) == row for number, row in rows.items())


def test_closed_labels_that_explode_are_bounded_too() -> None:
    series = Series(METRICS["records_rejected_total"], 100)
    for number in range(1000):
        series.row(("traces", f"reason {number}"))
    assert len(series.rows) <= 100
    assert (OTHER, OTHER) in series.rows


@pytest.mark.slow
def test_a_million_services_stay_two_thousand_series_and_five_megabytes() -> None:
    telemetry = Telemetry("1")
    number, step = 1_000_000, 10_000
    name = "service-with-quite-a-long-name-in-the-payment-platform-{:07d} POST /v1/payments/authorize"
    for start in range(0, number, step):
        labels = [("default", name.format(flow)) for flow in range(start, start + step)]
        rows = telemetry.rows("chain_score", labels)
        traces = np.arange(start + 1, start + step + 1, dtype=np.uint64)
        seen = Sightings(traces, traces, traces, np.full(step, 1_700_000_000_000_000_000))
        telemetry.observe_rows("chain_score", rows, np.linspace(0, 1, step), seen)
        if start % (number // 10):
            continue
        telemetry.count_rows("chains_total", telemetry.rows("chains_total", [(*each, "complete") for each in labels]))
        anomalies = telemetry.rows("anomalies_total", [(*each, "error", "warning", "system") for each in labels])
        telemetry.count_rows("anomalies_total", anomalies, seen, np.ones(step))
    text = generate_openmetrics(telemetry.registry)
    assert len(text) <= 5 * MIB
    lines: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for family in parse_openmetrics(text.decode()):
        for sample in family.samples:
            lines[family.name] += 1
            totals[sample.name] += int(sample.value)
    assert max(lines.values()) <= 2000
    assert totals["spanchain_chain_score_count"] == number
    assert totals["spanchain_chains_total"] == totals["spanchain_anomalies_total"] == 10 * step
    assert telemetry.value("label_overflow_total", metric="chain_score") == number - (int(2000 / 10 * 0.8) - 1)


def test_exemplars_are_the_last_trace_of_each_bucket_and_short_enough() -> None:
    telemetry = Telemetry("1")
    rows = np.repeat(telemetry.rows("chain_score", [("t", "f")]), 3)
    ids = np.array([1, 2, 0], np.uint64)
    seen = Sightings(ids, ids, ids, np.array([10, 20, 30]) * 10**9)
    telemetry.observe_rows("chain_score", rows, np.array([0.1, 0.2, 0.3]), seen)
    found = {
        sample.labels["le"]: sample.exemplar
        for family in parse_openmetrics(generate_openmetrics(telemetry.registry).decode())
        for sample in family.samples
        if sample.exemplar
    }
    assert set(found) == {"0.25"}, "a chain without a trace id makes no exemplar"
    exemplar = found["0.25"]
    assert exemplar.labels == {"trace_id": f"{2:016x}{2:016x}", "span_id": f"{2:016x}"}
    assert (exemplar.value, float(exemplar.timestamp)) == (0.2, 20)
    assert sum(len(k) + len(v) for k, v in exemplar.labels.items()) <= 128


@pytest.mark.parametrize(
    "hostile", ['a"}\nspanchain_fake 1', "\x1b[31mred", "\u202egnp.exe", "\ud800", "x" * 5000, "{{7*7}}", "a\\nb"]
)
def test_hostile_names_are_shown_as_they_are_and_nothing_else(hostile: str) -> None:
    telemetry = Telemetry("1")
    telemetry.count("chains_total", tenant=hostile, flow="f", outcome="complete")
    for text, parse in (
        (generate_latest(telemetry.registry).decode(), parse_text),
        (generate_openmetrics(telemetry.registry).decode(), parse_openmetrics),
    ):
        families = {family.name: family for family in parse(text)}
        assert "spanchain_fake" not in families
        [tenant] = [sample.labels["tenant"] for sample in families["spanchain_chains"].samples]
        assert tenant.isprintable()
        assert len(tenant) <= LABEL_MAX
    assert "{{7*7}}" not in hostile or tenant == hostile


def test_replaced_gauges_lose_what_is_gone() -> None:
    telemetry = Telemetry("1")
    telemetry.replace("model_info", [({"model": "a", "version": "1"}, 1), ({"model": "b", "version": "1"}, 1)])
    telemetry.replace("model_info", [({"model": "a", "version": "2"}, 1)])
    assert samples(telemetry, "model_info") == {("a", "2"): 1}


def test_a_value_on_a_bound_belongs_to_its_bucket() -> None:
    series = Series(METRICS["chain_score"], 2000)
    row = series.row(("t", "f"))
    series.observe(np.full(len(SCORE_BUCKETS), row), np.array(SCORE_BUCKETS))
    assert series.values[row].tolist() == [1.0] * len(SCORE_BUCKETS) + [0.0]
