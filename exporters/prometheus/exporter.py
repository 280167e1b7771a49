"""Feeds the chain and incident metrics from each batch, and serves `/metrics`.

How it works. Nothing here can be slow: `export` adds columns to arrays in memory, so there is no queue and nothing is
ever dropped. Chains are counted by (tenant, flow): each pair met in a batch is turned into a row of the metric once
and remembered. Exemplars are the last chain of each bucket; their span is the root (for an anomaly: the span to look
at) and their time is the chain's closing, which only ascends, as Prometheus demands. The server is a thread per scrape
around prometheus_client's own negotiation of text, OpenMetrics and gzip.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from prometheus_client import MetricsHandler

from collector_processor.config import PrometheusConfig
from collector_processor.model import I64, NONE, ChainBatch, Incident, Outcome, Symbols, VerdictBatch
from collector_processor.rows import category_of, kind_of, severity_of, subject_record
from exporters.prometheus.telemetry import Sightings, Telemetry

OUTCOMES = tuple(outcome.name.lower() for outcome in Outcome)
OPEN_MAX = 100_000  # incidents whose state is remembered
SCRAPE_TIMEOUT_S = 10


class PrometheusExporter:
    """The metrics endpoint. `address` is (host, port) once started."""

    name = "prometheus"

    def __init__(self, config: PrometheusConfig, telemetry: Telemetry) -> None:
        self._config = config
        self._telemetry = telemetry
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._symbols: Symbols | None = None
        self._flow_rows: dict[int, tuple[int, ...]] = {}  # tenant and flow -> row of the score, rows of each outcome
        self._open: dict[str, dict[str, str]] = {}  # incident -> labels of `subject_incidents_open`
        self._models: dict[str, str] = {}
        self.address: tuple[str, int] | None = None

    def start(self) -> None:
        """Listens. Raises `OSError` when the address cannot be had, or may not without `allow_insecure`."""
        if self._server is not None:
            return
        host = self._config.host
        if not (self._config.allow_insecure or _is_loopback(host)):
            advice = "set exporters.prometheus.allow_insecure, or listen on 127.0.0.1"
            raise OSError(f"the metrics on {host} could be read by other machines without authentication; {advice}")
        handler = type("Handler", (_Handler,), {"registry": self._telemetry.registry})
        try:
            self._server = _Server((host, self._config.port), handler)
        except OSError as error:
            where = f"{host}:{self._config.port}"
            raise OSError(f"exporters.prometheus: cannot listen on {where}: {error.strerror}") from error
        self.address = (host, self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def export(self, verdicts: VerdictBatch, incidents: list[Incident]) -> None:
        if len(verdicts):
            self._count_chains(verdicts)
            self._count_anomalies(verdicts)
        for incident in incidents:
            self._count_incident(incident)
        if incidents:
            self._count_subjects()
        if verdicts.models and verdicts.models != self._models:
            self._models = dict(verdicts.models)
            models = self._models.items()
            self._telemetry.replace("model_info", [({"model": m, "version": v}, 1.0) for m, v in models])

    def flush(self, deadline_s: float) -> bool:  # noqa: ARG002  # the protocol's
        """Always True: metrics live in memory and start at 0 in each process."""
        return True

    def checkpointed(self) -> None:
        """Nothing here is given twice."""

    def shutdown(self, deadline_s: float) -> None:
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not None:
            self._thread.join(deadline_s)
        self._server = self._thread = None

    def _count_chains(self, verdicts: VerdictBatch) -> None:
        chains = verdicts.chains
        rows = self._rows(chains)
        seen = _sightings(chains, np.arange(len(chains)), _top_spans(chains))
        self._telemetry.observe_rows("chain_score", rows[:, 0], verdicts.score, seen)
        outcome_rows = np.take_along_axis(rows, chains.outcome.astype(np.int64)[:, None] + 1, axis=1)[:, 0]
        self._telemetry.count_rows("chains_total", outcome_rows)

    def _rows(self, chains: ChainBatch) -> I64:
        """int64[n, 4] of each chain: its row in `chain_score`, its row in `chains_total` for each outcome."""
        symbols = chains.symbols
        if symbols is not self._symbols:
            self._symbols, self._flow_rows = symbols, {}
        pairs, inverse = np.unique(_flow_keys(chains), return_inverse=True)
        table = np.empty((pairs.size, 1 + len(OUTCOMES)), np.int64)
        for index, pair in enumerate(pairs.tolist()):
            rows = self._flow_rows.get(pair)
            if rows is None:
                labels = (symbols.tenants.text[pair >> 32], symbols.flows.text[pair & 0xFFFFFFFF])
                score = self._telemetry.rows("chain_score", [labels])
                totals = self._telemetry.rows("chains_total", [(*labels, outcome) for outcome in OUTCOMES])
                rows = self._flow_rows[pair] = (*score.tolist(), *totals.tolist())
            table[index] = rows
        return table[inverse]

    def _count_anomalies(self, verdicts: VerdictBatch) -> None:
        unusual = np.flatnonzero(verdicts.severity)
        if not unusual.size:
            return
        rows = self._telemetry.rows("anomalies_total", [_labels(verdicts, chain) for chain in unusual.tolist()])
        records = np.array([subject_record(verdicts, chain) for chain in unusual.tolist()], np.int64)
        seen = _sightings(verdicts.chains, unusual, records)
        self._telemetry.count_rows("anomalies_total", rows, seen, verdicts.score[unusual])

    def _count_incident(self, incident: Incident) -> None:
        """Keeps `incidents_open` in step; an incident given again, or resolved without being known, changes nothing.

        Its labels but the severity stay what they were when it opened, for each other one would be another page.
        """
        before = self._open.pop(incident.incident_id, None)
        if before is not None:
            self._add_open(before, -1)
        now = before or {
            "tenant": incident.tenant,
            "kind": incident.kind,
            "category": incident.category,
            "service": incident.subject["service"] or "",
            "operation": incident.subject["operation"] or "",
        }
        now = now | {"severity": incident.severity}
        if incident.state == "opened" and before is None:
            self._telemetry.count("incidents_total", **_only(now, "tenant", "kind", "severity", "category"))
        if incident.state != "resolved" and len(self._open) < OPEN_MAX:
            self._open[incident.incident_id] = now
            self._add_open(now, 1)

    def _add_open(self, labels: Mapping[str, str], amount: int) -> None:
        self._telemetry.add("incidents_open", amount, **_only(labels, "tenant", "kind", "severity"))

    def _count_subjects(self) -> None:
        subjects = Counter(tuple(sorted(labels.items())) for labels in self._open.values())
        self._telemetry.replace("subject_incidents_open", [(dict(key), number) for key, number in subjects.items()])


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; an empty one means every address. Raises `OSError` for no host."""
    found = {str(address[4][0]).partition("%")[0] for address in socket.getaddrinfo(host or "0.0.0.0", None)}
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def _only(labels: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: labels[name] for name in names}


def _labels(verdicts: VerdictBatch, chain: int) -> tuple[str, ...]:
    chains = verdicts.chains
    return (
        chains.symbols.tenants.text[chains.tenant[chain]],
        chains.symbols.flows.text[max(int(chains.flow[chain]), 0)],
        kind_of(verdicts, chain),
        severity_of(verdicts, chain),
        category_of(verdicts, chain),
    )


def _flow_keys(chains: ChainBatch) -> I64:
    """[n] tenant in the upper half, flow in the lower; a chain without a flow (no root came) counts as `other`."""
    return chains.tenant.astype(np.int64) << 32 | np.maximum(chains.flow, 0)


def _top_spans(chains: ChainBatch) -> I64:
    """[n] the row of each chain's root, else of its first span; NONE for a chain of logs only."""
    spans = np.append(np.flatnonzero(chains.kind), chains.records)
    first = spans[np.searchsorted(spans, chains.offsets[:-1])]
    first = np.where(first < chains.offsets[1:], first, NONE)
    return np.where(chains.root == NONE, first, chains.root).astype(np.int64)


def _sightings(chains: ChainBatch, which: I64, records: I64) -> Sightings:
    """The traces of the chains `which`, at the rows `records`; one of logs only has no span that could be opened."""
    known = (records != NONE).astype(np.uint64)
    span_ids = chains.span_id[records] * known if chains.records else known
    return Sightings(chains.trace_hi[which] * known, chains.trace_lo[which] * known, span_ids, chains.closed_ns[which])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16


class _Handler(MetricsHandler):
    """prometheus_client's handler on one path, with a limit on how long a client may take."""

    timeout = SCRAPE_TIMEOUT_S

    def do_GET(self) -> None:  # noqa: N802  # the base class's name
        if urlsplit(self.path).path != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        super().do_GET()

    def version_string(self) -> str:
        """Nothing about what runs here, for the endpoint is open."""
        return "spanchain"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """A scrape is no event."""
