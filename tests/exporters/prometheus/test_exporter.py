"""Batches become the chain and incident metrics, and `/metrics` answers as Prometheus expects."""

from __future__ import annotations

import gzip
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from verdicts import incident, payment, verdicts

from collector_processor.config import PrometheusConfig
from collector_processor.model import Outcome, Severity, Symbols
from exporters.prometheus.exporter import PrometheusExporter
from exporters.prometheus.telemetry import Telemetry

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def exporter() -> Iterator[PrometheusExporter]:
    made = PrometheusExporter(PrometheusConfig(port=0), Telemetry("1"))
    made.start()
    yield made
    made.shutdown(5)


def scrape(exporter: PrometheusExporter, accept: str = "", path: str = "/metrics", **headers: str) -> tuple[str, bytes]:
    """Content type and body."""
    assert exporter.address is not None
    host, port = exporter.address
    request = urllib.request.Request(f"http://{host}:{port}{path}", headers={"Accept": accept, **headers})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.headers["Content-Type"], answer.read()


def values(exporter: PrometheusExporter, name: str) -> dict[tuple[str, ...], float]:
    """Label values by label name -> value, of the samples called `name`."""
    families = parse_openmetrics(scrape(exporter, OPENMETRICS)[1].decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in samples}


def test_chains_scores_and_anomalies_are_counted_by_flow(exporter: PrometheusExporter) -> None:
    symbols = Symbols()
    batch = verdicts(5, 2, symbols=symbols)
    batch.chains.outcome[0] = Outcome.EVICTED
    exporter.export(batch, [])
    exporter.export(verdicts(3, 1, symbols=symbols, root=payment("shop", "buy"), tenant="bank"), [])
    assert values(exporter, "spanchain_chains_total") == {
        ("gateway pay", "complete", "default"): 4,
        ("gateway pay", "evicted", "default"): 1,
        ("gateway pay", "timeout", "default"): 0,
        ("shop buy", "complete", "bank"): 3,
        ("shop buy", "evicted", "bank"): 0,
        ("shop buy", "timeout", "bank"): 0,
    }
    assert values(exporter, "spanchain_chain_score_count") == {
        ("gateway pay", "default"): 5,
        ("shop buy", "bank"): 3,
        ("other", "other"): 0,  # there from the start
    }
    assert values(exporter, "spanchain_anomalies_total") == {
        ("system", "gateway pay", "slow_operation", "critical", "default"): 2,
        ("system", "shop buy", "slow_operation", "critical", "bank"): 1,
    }
    assert values(exporter, "spanchain_model_info") == {("context", "1"): 1}


def test_a_chain_without_a_flow_counts_as_other(exporter: PrometheusExporter) -> None:
    batch = verdicts(3, 1)
    batch.chains.flow[1:] = -1
    exporter.export(batch, [])
    totals = values(exporter, "spanchain_chains_total")
    assert {labels: value for labels, value in totals.items() if value} == {
        ("gateway pay", "complete", "default"): 1,
        ("other", "complete", "default"): 2,
    }
    assert values(exporter, "spanchain_anomalies_total") == {
        ("system", "other", "slow_operation", "critical", "default"): 1
    }


def test_batches_in_any_partition_give_the_same_histogram(exporter: PrometheusExporter) -> None:
    whole = PrometheusExporter(PrometheusConfig(port=0), Telemetry("1"))
    whole.start()
    batch = verdicts(40, 0)
    whole.export(batch, [])
    for chain in range(40):
        one = verdicts(1, 0)
        one.chains = batch.chains.take(np.array([chain]))
        one.score = batch.score[[chain]]
        exporter.export(one, [])
    for name in ("spanchain_chain_score_bucket", "spanchain_chains_total"):
        assert values(exporter, name) == values(whole, name)
    whole.shutdown(5)


def test_the_exemplar_of_an_anomaly_is_the_span_to_look_at(exporter: PrometheusExporter) -> None:
    batch = verdicts(1, 1, first_trace=77)
    exporter.export(batch, [])
    [sample] = [
        sample
        for family in parse_openmetrics(scrape(exporter, OPENMETRICS)[1].decode())
        for sample in family.samples
        if sample.name == "spanchain_anomalies_total"
    ]
    symbols = batch.chains.symbols
    check = next(row for row, event in enumerate(batch.chains.event) if symbols.events.text[event] == "check")
    assert sample.exemplar.labels == {"trace_id": f"{77:032x}", "span_id": f"{batch.chains.span_id[check]:016x}"}


def test_exemplars_name_spans_that_came(exporter: PrometheusExporter) -> None:
    """A log may name a span that was lost with its service; that is nothing to open."""
    batch = verdicts(2, 1)
    chains = batch.chains
    chains.root[:] = -1
    only_logs = [0, 1, 4, 5, 6, 7]  # of the first chain `check` is left, of the second nothing
    chains.kind[only_logs] = 0
    chains.parent[:] = -1
    exporter.export(batch, [])
    found = [
        sample.exemplar.labels
        for family in parse_openmetrics(scrape(exporter, OPENMETRICS)[1].decode())
        for sample in family.samples
        if sample.exemplar
    ]
    assert found == [{"trace_id": chains.trace_id(0), "span_id": f"{chains.span_id[2]:016x}"}]


def test_an_anomaly_without_a_finding_has_the_kind_score(exporter: PrometheusExporter) -> None:
    batch = verdicts(2, 0)
    batch.severity[1] = Severity.INFO
    exporter.export(batch, [])
    assert values(exporter, "spanchain_anomalies_total") == {("none", "gateway pay", "score", "info", "default"): 1}


def test_incidents_open_and_close(exporter: PrometheusExporter) -> None:
    nothing = verdicts(0, 0, root=payment())
    exporter.export(nothing, [incident(1), incident(2, severity="warning")])
    exporter.export(nothing, [incident(1, "updated", severity="critical"), incident(2, "updated", severity="critical")])
    open_now = {("slow_operation", "critical", "default"): 2, ("slow_operation", "warning", "default"): 0}
    assert values(exporter, "spanchain_incidents_open") == open_now
    exporter.export(nothing, [incident(1, "resolved"), incident(1, "resolved"), incident(9, "resolved")])
    assert values(exporter, "spanchain_incidents_open")["slow_operation", "critical", "default"] == 1
    assert values(exporter, "spanchain_incidents_total") == {
        ("system", "slow_operation", "critical", "default"): 1,
        ("system", "slow_operation", "warning", "default"): 1,
    }


def test_subjects_exist_while_their_incidents_are_open_and_keep_their_labels(exporter: PrometheusExporter) -> None:
    nothing = verdicts(0, 0)
    exporter.export(nothing, [incident(1), incident(2)])
    later = incident(1, "updated", severity="warning")
    later.kind, later.subject = "error", {"service": "ledger", "operation": None, "instance": None}
    exporter.export(nothing, [later])
    labels = ("system", "slow_operation", "check", "risk")  # category, kind, operation, service
    assert values(exporter, "spanchain_subject_incidents_open") == {
        (*labels[:3], "risk", "critical", "default"): 1,
        (*labels[:3], "risk", "warning", "default"): 1,
    }
    exporter.export(nothing, [incident(1, "resolved", severity="warning")])
    assert values(exporter, "spanchain_subject_incidents_open") == {(*labels, "critical", "default"): 1}
    exporter.export(nothing, [incident(2, "resolved")])
    assert values(exporter, "spanchain_subject_incidents_open") == {}


def test_an_incident_that_was_open_before_a_restart_is_open_but_not_new(exporter: PrometheusExporter) -> None:
    exporter.export(verdicts(0, 0), [incident(1, "updated")])
    assert values(exporter, "spanchain_incidents_open") == {("slow_operation", "critical", "default"): 1}
    assert values(exporter, "spanchain_incidents_total") == {}


def test_the_format_follows_what_the_scraper_accepts(exporter: PrometheusExporter) -> None:
    exporter.export(verdicts(2, 1), [])
    kind, body = scrape(exporter)
    assert kind.startswith("text/plain; version=0.0.4")
    assert b"# {" not in body, "exemplars are no part of the text format"
    kind, body = scrape(exporter, OPENMETRICS)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert b"# {" in body
    assert body.endswith(b"# EOF\n")
    _, packed = scrape(exporter, OPENMETRICS, **{"Accept-Encoding": "gzip"})
    assert gzip.decompress(packed).endswith(b"# EOF\n")


@pytest.mark.parametrize("path", ["/", "/metricsx", "/../metrics"])
def test_nothing_else_is_served(exporter: PrometheusExporter, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        scrape(exporter, path=path)
    assert error.value.code == 404
    assert error.value.headers["Server"] == "spanchain"
    error.value.close()


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
def test_an_open_address_is_refused_unless_it_is_asked_for(host: str) -> None:
    with pytest.raises(OSError, match="allow_insecure"):
        PrometheusExporter(PrometheusConfig(host=host, port=0), Telemetry("1")).start()
    asked_for = PrometheusExporter(PrometheusConfig(host=host, port=0, allow_insecure=True), Telemetry("1"))
    asked_for.start()
    asked_for.shutdown(5)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_an_address_of_this_machine_is_not(host: str) -> None:
    local = PrometheusExporter(PrometheusConfig(host=host, port=0), Telemetry("1"))
    local.start()
    local.shutdown(5)


def test_a_taken_port_is_told(exporter: PrometheusExporter) -> None:
    assert exporter.address is not None
    with pytest.raises(OSError, match=r"exporters.prometheus: cannot listen on 127.0.0.1:\d+: .*in use"):
        PrometheusExporter(PrometheusConfig(port=exporter.address[1]), Telemetry("1")).start()
