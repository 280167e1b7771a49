"""A whole site on the loopback interface: Collector, backend, Prometheus, Alertmanager, a pager, spanchain among them.

How it works. Every program runs with the configuration that the repository ships: the Collector's take their addresses
from the environment, those of Prometheus, Alertmanager and spanchain are rewritten to free ports. The backend is a
second Collector with `configs/collector-recording.yaml`, so what reached it stands in files; the pager is a small HTTP
server.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.e2e.processes import Process, Processes, free_ports, http_get

ROOT = Path(__file__).parents[2]
SPANCHAIN = Path(sys.executable).with_name("spanchain")
PORTS = (
    *("apps_grpc", "apps_http", "events_grpc", "collector_health", "collector_metrics"),
    *("backend_grpc", "backend_http", "backend_health", "backend_metrics"),
    *("spanchain_grpc", "spanchain_http", "spanchain_metrics", "spanchain_health"),
    *("prometheus", "alertmanager"),
)


def rewritten(text: str, replacements: Mapping[str, str]) -> str:
    """`text` with each key replaced; a key that does not occur is an error, since then a shipped file has changed."""
    for old, new in replacements.items():
        assert old in text, f"{old!r} is not in the shipped configuration any more"
        text = text.replace(old, new)
    return text


class Pager:
    """Takes Alertmanager's webhook calls; `pages` holds them in order."""

    def __init__(self) -> None:
        pages: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                pages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing: the pages are what counts."""

        self.pages = pages
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert of every page that came."""
        return [alert for page in self.pages for alert in page["alerts"]]

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the real components are."""

    collector: Path
    prometheus: Path
    alertmanager: Path


class Site:
    """The programs of one site. Each `start_*` returns when the program answers; `processes` ends them."""

    def __init__(self, processes: Processes, folder: Path, binaries: Binaries) -> None:
        self.processes = processes
        self.folder = folder
        self.binaries = binaries
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))

    def address(self, port: str) -> str:
        """`127.0.0.1:PORT` of one of `PORTS`."""
        return f"127.0.0.1:{self.ports[port]}"

    def start_backend(self) -> Process:
        """A Collector that writes what it gets to `backend/traces.jsonl` and `backend/logs.jsonl`."""
        process = self.processes.start(
            "backend",
            *(self.binaries.collector, f"--config={ROOT / 'configs' / 'collector-recording.yaml'}"),
            env={
                "RECORDER_OTLP_GRPC": self.address("backend_grpc"),
                "RECORDER_OTLP_HTTP": self.address("backend_http"),
                "RECORDER_HEALTH": self.address("backend_health"),
                "RECORDER_METRICS_PORT": str(self.ports["backend_metrics"]),
                "RECORDING_DIR": str(self.folder / "backend"),
            },
        )
        process.wait_http(f"http://{self.address('backend_health')}/")
        return process

    def start_sink(self) -> Process:
        """A backend that takes everything and keeps nothing."""
        path = self.folder / "sink.yaml"
        pipeline = {"receivers": ["otlp"], "exporters": ["nop"]}
        config = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": self.address("backend_grpc")}}}},
            "exporters": {"nop": None},
            "extensions": {"health_check": {"endpoint": self.address("backend_health")}},
            "service": {
                "extensions": ["health_check"],
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": pipeline, "logs": pipeline},
            },
        }
        path.write_text(yaml.safe_dump(config))
        process = self.processes.start("sink", self.binaries.collector, f"--config={path}")
        process.wait_http(f"http://{self.address('backend_health')}/")
        return process

    def start_collector(self, config: str = "otel-collector.yaml", *settings: str, **env: str) -> Process:
        """The Collector with a shipped configuration, between applications, backend and spanchain.

        settings: what is merged over it, each as `key::key: value`."""
        process = self.processes.start(
            "collector",
            *(self.binaries.collector, f"--config={ROOT / config}", *(f"--config=yaml:{each}" for each in settings)),
            env={
                "COLLECTOR_OTLP_GRPC": self.address("apps_grpc"),
                "COLLECTOR_OTLP_HTTP": self.address("apps_http"),
                "COLLECTOR_EVENTS_GRPC": self.address("events_grpc"),
                "COLLECTOR_HEALTH": self.address("collector_health"),
                "COLLECTOR_METRICS_PORT": str(self.ports["collector_metrics"]),
                "COLLECTOR_DATA": str(self.folder / "collector-data"),
                "BACKEND_ENDPOINT": self.address("backend_grpc"),
                "SPANCHAIN_ENDPOINT": self.address("spanchain_grpc"),
                **env,
            },
        )
        process.wait_http(f"http://{self.address('collector_health')}/")
        return process

    def start_prometheus(self) -> Process:
        """Prometheus with the shipped scrape configuration and rules, a second apart instead of five."""
        config = rewritten(
            (ROOT / "configs" / "prometheus.yml").read_text(),
            {
                "127.0.0.1:9464": self.address("spanchain_metrics"),
                "127.0.0.1:9093": self.address("alertmanager"),
                "../dashboards/": f"{ROOT / 'dashboards'}/",
                "interval: 5s": "interval: 1s",
            },
        )
        path = self.folder / "prometheus.yml"
        path.write_text(config)
        process = self.processes.start(
            "prometheus",
            *(self.binaries.prometheus, f"--config.file={path}", "--enable-feature=exemplar-storage"),
            *(f"--web.listen-address={self.address('prometheus')}", f"--storage.tsdb.path={self.folder / 'tsdb'}"),
        )
        process.wait_http(f"http://{self.address('prometheus')}/-/ready")
        return process

    def start_alertmanager(self, pager: Pager) -> Process:
        """Alertmanager with the shipped routes, paging `pager` after one second instead of five."""
        config = rewritten(
            (ROOT / "configs" / "alertmanager.yml").read_text(),
            {"127.0.0.1:9095": f"127.0.0.1:{pager.port}", "group_wait: 5s": "group_wait: 1s"},
        )
        path = self.folder / "alertmanager.yml"
        path.write_text(config)
        process = self.processes.start(
            "alertmanager",
            *(self.binaries.alertmanager, f"--config.file={path}", "--cluster.listen-address="),
            *(f"--web.listen-address={self.address('alertmanager')}", f"--storage.path={self.folder / 'alerts'}"),
        )
        process.wait_http(f"http://{self.address('alertmanager')}/-/ready")
        return process

    def start_spanchain(self, overrides: Mapping[str, Any], config: str = "spanchain.yaml", **env: str) -> Process:
        """spanchain with a configuration of `configs/`, at this site's addresses, and `overrides` merged in."""
        shipped = yaml.safe_load((ROOT / "configs" / config).read_text())
        addresses = {
            "service": {"health": {"port": self.ports["spanchain_health"]}},
            "exporters": {"prometheus": {"port": self.ports["spanchain_metrics"]}},
        }
        path = self.folder / "spanchain.yaml"
        path.write_text(yaml.safe_dump(merged(merged(shipped, addresses), overrides)))
        process = self.processes.start(
            "spanchain",
            *(SPANCHAIN, "serve", f"--config={path}", f"--data={self.folder / 'spanchain-data'}"),
            env={
                "SPANCHAIN_OTLP_GRPC": self.address("spanchain_grpc"),
                "SPANCHAIN_OTLP_HTTP": self.address("spanchain_http"),
                "SPANCHAIN_EVENTS_ENDPOINT": f"http://{self.address('events_grpc')}",
                **env,
            },
        )
        process.wait_http(f"http://{self.address('spanchain_health')}/readyz")
        return process

    def prometheus_api(self, path: str, **parameters: str) -> Any:
        """`data` of Prometheus' answer to `/api/v1/PATH`."""
        query = urllib.parse.urlencode(parameters)
        answer = json.loads(http_get(f"http://{self.address('prometheus')}/api/v1/{path}?{query}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series of an instant query."""
        result = self.prometheus_api("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """The exemplars of the last hour: their `labels`, `value`, `timestamp`."""
        now = time.time()
        found = self.prometheus_api("query_exemplars", query=expression, start=str(now - 3600), end=str(now + 60))
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def backend_spans(self) -> list[dict[str, Any]]:
        """Every span that reached the backend, with its resource's attributes under `resource`."""
        return list(recorded(self.folder / "backend" / "traces.jsonl", "resourceSpans", "scopeSpans", "spans"))

    def backend_logs(self) -> list[dict[str, Any]]:
        """Every log record that reached the backend, with its resource's attributes under `resource`."""
        return list(recorded(self.folder / "backend" / "logs.jsonl", "resourceLogs", "scopeLogs", "logRecords"))


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section."""
    out = dict(below)
    for key, value in above.items():
        inner = out.get(key)
        out[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out


def attributes(item: Mapping[str, Any]) -> dict[str, Any]:
    """OTLP JSON attributes as a plain mapping; 64-bit integers, which JSON carries as text, become numbers."""
    out: dict[str, Any] = {}
    for entry in item.get("attributes", []):
        [(kind, value)] = entry["value"].items() or [("stringValue", None)]
        out[entry["key"]] = int(value) if kind == "intValue" else value
    return out


def recorded(path: Path, resources: str, scopes: str, records: str) -> Iterator[dict[str, Any]]:
    """The records in a file of the Collector's file exporter. A last line that is still being written is left out."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        for resource in json.loads(line).get(resources, []):
            shared = attributes(resource.get("resource", {}))
            for scope in resource.get(scopes, []):
                for record in scope.get(records, []):
                    yield {**record, "resource": shared, "scope": scope.get("scope", {}).get("name", "")}
