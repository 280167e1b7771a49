"""A real Prometheus scrapes a real exporter run: every panel's query has data, exemplars are kept, the alert fires."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sinks import eventually
from verdicts import incident, payment, verdicts

from collector_processor.config import PrometheusConfig, QueueConfig
from collector_processor.model import Symbols
from dashboards.alerts import TABLE
from dashboards.board import board
from exporters.backlog import Item
from exporters.prometheus.exporter import PrometheusExporter
from exporters.prometheus.telemetry import Telemetry
from exporters.queue import RetryLater, WorkerQueue
from tests.e2e.processes import Processes, free_ports, http_get

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PANELS = [panel for panel in json.loads(board())["panels"] if panel["type"] != "row"]
QUERIES = [(f"{panel['title']} {target['refId']}", target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {
    "$__rate_interval": "4s",
    "$__range": "30s",
    "$job": ".+",
    "$instance": ".+",
    "$tenant": ".+",
    "$flow": ".+",
}
RUN_S = 8
Ask = Callable[..., Any]


def filled(expr: str) -> str:
    """A panel's query as Grafana sends it."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


class Traffic:
    """A service in small: everything that feeds a metric, a little more each round."""

    def __init__(self) -> None:
        self.telemetry = Telemetry("1")
        self.exporter = PrometheusExporter(PrometheusConfig(port=0), self.telemetry)
        self.exporter.start()
        self.symbols = Symbols()
        self.round = 0
        queue = QueueConfig(items_max=2, retry_initial_s=0.05, retry_max_s=0.1)
        self.dead = WorkerQueue("otlp_logs", queue, self.telemetry, self._refuse)
        self.alive = WorkerQueue("file", queue, self.telemetry, lambda items: 0)
        self.dead.start()
        self.alive.start()

    @staticmethod
    def _refuse(items: list[Item]) -> int:
        raise RetryLater("unavailable")

    def step(self) -> None:
        self.round += 1
        batch = verdicts(20, 3, symbols=self.symbols, first_trace=self.round * 100)
        # Prometheus wants exemplars of about now.
        batch.chains.closed_ns[:] = time.time_ns()
        batch.models = {"context": "1"}
        opened = [incident(1)] if self.round == 1 else []
        self.exporter.export(batch, opened)
        self.exporter.export(verdicts(5, 0, symbols=self.symbols, root=payment("shop", "buy")), [])
        if self.round % 5 == 0:
            self.exporter.export(verdicts(0, 0), [incident(self.round)])
        telemetry = self.telemetry
        for signal in ("traces", "logs"):
            telemetry.count("records_received_total", 100, signal=signal, transport="grpc")
            telemetry.count("records_rejected_total", signal=signal, reason="utf8")
            telemetry.count("records_late_total", signal=signal)
            telemetry.count("records_duplicate_total", signal=signal)
        telemetry.count("logs_joined_total", 50, outcome="trace")
        telemetry.set("open_chains", 7)
        telemetry.observe("verdict_latency_seconds", [0.2, 6.5, 7.0])
        self.dead.put([Item(b"x", 1)])
        self.alive.put([Item(b"x", 1)])

    def stop(self) -> None:
        self.dead.shutdown(0.1)
        self.alive.shutdown(1)
        self.exporter.shutdown(2)


@pytest.fixture(scope="module")
def ask(prometheus: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks the API of a Prometheus that has scraped `Traffic` each half second for some seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    traffic = Traffic()
    assert traffic.exporter.address is not None
    host, scraped = traffic.exporter.address
    [port] = free_ports(1)
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(repository / "dashboards" / "spanchain.rules.yaml")],
        "scrape_configs": [{"job_name": "spanchain", "static_configs": [{"targets": [f"{host}:{scraped}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with Processes(folder) as processes:
        process = processes.start(
            "prometheus",
            *(prometheus, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"),
        )
        process.wait_http(f"http://127.0.0.1:{port}/-/ready")
        end = time.monotonic() + RUN_S
        while time.monotonic() < end:
            traffic.step()
            time.sleep(0.25)

        def get(path: str, **parameters: object) -> Any:
            parameters = {name: str(value) for name, value in parameters.items()}
            answer = http_get(f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            return json.loads(answer)["data"]

        yield get
    traffic.stop()


@pytest.mark.parametrize(("panel", "expr"), QUERIES, ids=[name for name, _ in QUERIES])
def test_every_panel_has_data(ask: Ask, panel: str, expr: str) -> None:
    now = time.time()
    series = ask("query_range", query=filled(expr), start=now - 15, end=now, step=1)["result"]
    values = [float(value) for each in series for _, value in each["values"] if value != "NaN"]
    assert values, expr
    assert any(values), "what traffic feeds is not just there, it moves"


@pytest.mark.parametrize("metric", ["spanchain_chain_score_bucket", "spanchain_anomalies_total"])
def test_exemplars_are_kept_and_name_trace_and_span(ask: Ask, metric: str) -> None:
    found = ask("query_exemplars", query=metric, start=time.time() - 60, end=time.time() + 60)
    exemplars = [exemplar for series in found for exemplar in series["exemplars"]]
    assert exemplars
    assert all(set(exemplar["labels"]) == {"trace_id", "span_id"} for exemplar in exemplars)
    assert all(len(exemplar["labels"]["trace_id"]) == 32 for exemplar in exemplars)


def test_an_incident_fires_with_its_text(ask: Ask) -> None:
    def fired() -> list[dict[str, Any]]:
        return [
            alert
            for alert in ask("alerts")["alerts"]
            if alert["labels"]["alertname"] == "SpanchainIncidentOpen" and alert["state"] == "firing"
        ]

    assert eventually(lambda: bool(fired()))
    [alert] = fired()
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] == "risk: slow operation in check"
    assert "<no value>" not in alert["annotations"]["description"]


def test_every_recording_rule_has_data(ask: Ask) -> None:
    for rule in TABLE["recording"]:
        assert eventually(lambda rule=rule: bool(ask("query", query=rule["record"])["result"])), rule["record"]


def test_no_rule_is_in_error(ask: Ask) -> None:
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
