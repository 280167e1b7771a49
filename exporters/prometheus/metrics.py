"""The one table of every metric: the exposition, `docs/metrics.md` and the bounds of every label come from it.

How it works. A metric has closed labels, whose values this program chooses (a kind, a reason), and open ones, whose
values come from outside (a tenant, a flow). Open labels stand in `open_labels`, the coarsest first: where a metric has
reached its bound, a further combination counts under `other`, the finest open label first, so totals stay exact.
Names follow the Prometheus conventions: base units, `_total` for counters. Histogram buckets are upper bounds.

    python -m exporters.prometheus.metrics > docs/metrics.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "spanchain_"
OTHER = "other"

# Close to 1 is where verdicts are decided, so that is where the buckets are.
SCORE_BUCKETS = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
# From "the batch after the chain closed" to "the idle limit passed first".
LATENCY_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `name` without the prefix."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    open_labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    exemplars: bool = False
    starts_at: tuple[tuple[str, ...], ...] = ()
    """Label values that exist from the start, at 0, so that the first increase is seen as one."""

    @property
    def lines(self) -> int:
        """Series of one combination of label values: each bucket is one, and sum and count."""
        return len(self.buckets) + 3 if self.kind == "histogram" else 1


_SIGNALS = ("traces", "logs")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "chain_score",
            "histogram",
            "Score of each closed chain, 0 to 1, high = anomalous.",
            ("tenant", "flow"),
            ("tenant", "flow"),
            SCORE_BUCKETS,
            exemplars=True,
            starts_at=((OTHER, OTHER),),  # so that the histogram is there before the first chain is
        ),
        Metric(
            "anomalies_total",
            "counter",
            "Chains whose verdict has a severity. kind: of the most significant finding, score when there is none.",
            ("tenant", "flow", "kind", "severity", "category"),
            ("tenant", "flow"),
            exemplars=True,
        ),
        Metric("incidents_open", "gauge", "Incidents open now.", ("tenant", "kind", "severity"), ("tenant",)),
        Metric(
            "subject_incidents_open",
            "gauge",
            "Incidents open now, by what they are about. Exists while there are any: pages are made of it.",
            ("tenant", "kind", "severity", "category", "service", "operation"),
            ("tenant", "service", "operation"),
        ),
        Metric(
            "incidents_total",
            "counter",
            "Incidents opened, by the severity they opened with.",
            ("tenant", "kind", "severity", "category"),
            ("tenant",),
        ),
        Metric(
            "chains_total",
            "counter",
            "Chains closed. outcome: complete, timeout (the root never came, or too old), evicted (a cap was reached).",
            ("tenant", "flow", "outcome"),
            ("tenant", "flow"),
        ),
        Metric(
            "records_received_total",
            "counter",
            "Spans and log records received, accepted or not. transport: grpc, http.",
            ("signal", "transport"),
            starts_at=tuple((signal, transport) for signal in _SIGNALS for transport in ("grpc", "http")),
        ),
        Metric(
            "records_rejected_total",
            "counter",
            "Spans and log records refused for good, told to the sender where the protocol can.",
            ("signal", "reason"),
        ),
        Metric(
            "records_repaired_total",
            "counter",
            "Records and resources that were changed to be acceptable.",
            ("signal", "reason"),
        ),
        Metric(
            "requests_refused_total",
            "counter",
            "Requests not taken. With reason backlog, disk_full, io_error, journal_full, stopping they come again.",
            ("transport", "reason"),
        ),
        Metric(
            "records_duplicate_total",
            "counter",
            "Spans and log records that had already been received.",
            ("signal",),
            starts_at=tuple((signal,) for signal in _SIGNALS),
        ),
        Metric(
            "records_late_total",
            "counter",
            "Spans and log records whose chain had been closed.",
            ("signal",),
            starts_at=tuple((signal,) for signal in _SIGNALS),
        ),
        Metric(
            "logs_joined_total",
            "counter",
            "Log records by how they found their chain: trace, business_key, or orphan (none), late (closed before).",
            ("outcome",),
            starts_at=(("trace",), ("business_key",), ("orphan",), ("late",)),
        ),
        Metric("open_chains", "gauge", "Chains that wait for further records.", starts_at=((),)),
        Metric(
            "verdict_latency_seconds",
            "histogram",
            "From the acknowledgement of a chain's last record to its verdict, the quiet gap included.",
            buckets=LATENCY_BUCKETS,
            starts_at=((),),
        ),
        Metric(
            "exporter_queue_length",
            "gauge",
            "Verdicts and incidents that wait for a sink, in memory and on disk; of otlp_forward, payloads.",
            ("exporter",),
        ),
        Metric(
            "exporter_sent_total",
            "counter",
            "Verdicts and incidents that a sink has taken; of otlp_forward, spans and log records.",
            ("exporter",),
        ),
        Metric(
            "exporter_delay_seconds",
            "histogram",
            "From when a verdict or an incident was put into the queue of a sink until the sink had taken it.",
            ("exporter",),
            buckets=LATENCY_BUCKETS,
        ),
        Metric(
            "exporter_retries_total",
            "counter",
            "Attempts that failed and are made again. reason: the status or the kind of failure.",
            ("exporter", "reason"),
        ),
        Metric(
            "exporter_dropped_total",
            "counter",
            "What was given up. reason: queue_full, refused, rejected (in part), too_large, rate, shutdown, error.",
            ("exporter", "reason"),
        ),
        Metric(
            "incidents_file_removed_total",
            "counter",
            "Incidents that left `incidents.jsonl`, for it had reached `exporters.file.incidents_max`.",
        ),
        Metric("store_rows", "gauge", "Rows of the store. table: verdicts, incidents.", ("table",)),
        Metric("store_bytes", "gauge", "Bytes of what the store keeps, without the database's own overhead."),
        Metric(
            "store_deleted_total",
            "counter",
            "Rows deleted from the store. reason: age, rows (more than the bound), bytes (larger than the bound).",
            ("table", "reason"),
        ),
        Metric(
            "inline_events_total",
            "counter",
            "Inline mode: events sent, on their span, or on a child span since the span had gone. place: span, child.",
            ("place",),
            starts_at=(("span",), ("child",)),
        ),
        Metric("inline_lag_seconds", "gauge", "Inline mode: age of the oldest payload that has not been forwarded."),
        Metric(
            "journal_appended_total", "counter", "Requests and marks of time written to the journal.", starts_at=((),)
        ),
        Metric("journal_appended_bytes_total", "counter", "Bytes of requests written to the journal.", starts_at=((),)),
        Metric("journal_syncs_total", "counter", "Syncs of the journal; one may serve many requests.", starts_at=((),)),
        Metric(
            "journal_failures_total",
            "counter",
            "Writes and syncs of the journal that failed; the requests were refused as retryable.",
            starts_at=((),),
        ),
        Metric("journal_size_bytes", "gauge", "Bytes of the journal on the disk.", starts_at=((),)),
        Metric(
            "journal_damaged_total",
            "counter",
            "Damage passed over while the journal was read. kind: corrupt (frames), torn (unfinished ends), "
            "unreadable (files).",
            ("kind",),
            starts_at=(("corrupt",), ("torn",), ("unreadable",)),
        ),
        Metric(
            "checkpoints_total",
            "counter",
            "Checkpoints by outcome: written, failed (the last one stays), unflushed (written as well, but without "
            "waiting longer for an exporter that cannot deliver), corrupt (found at the start, passed over).",
            ("outcome",),
            starts_at=(("written",), ("failed",), ("unflushed",), ("corrupt",)),
        ),
        Metric(
            "chains_forgotten_total",
            "counter",
            "Closed chains that were forgotten before `join.closed_remembered_s`, for there were more than "
            "`join.closed_remembered_max`: a late record of one makes a second chain.",
            starts_at=((),),
        ),
        Metric(
            "chains_not_learned_total",
            "counter",
            "Chains that were judged but not learned, for more were closed than `engine.quarantine_records_max` lets "
            "wait: a sample was learned.",
            starts_at=((),),
        ),
        Metric(
            "incident_findings_forgotten_total",
            "counter",
            "Findings of single chains that were counted in the open incidents but not kept for those that open within "
            "the next minutes: there were more than are kept, and of those a sample was.",
            starts_at=((),),
        ),
        Metric(
            "names_overflow_total",
            "counter",
            "New names without room (`decode.*_max`): they count as `other`, of their service where they have one. "
            "list: tenants, services, instances, events (operations and templates), flows, paths.",
            ("list",),
            starts_at=tuple((name,) for name in ("tenants", "services", "instances", "events", "flows", "paths")),
        ),
        Metric(
            "elements_overflow_total",
            "counter",
            "Times that an operation, a call or a service found no window of its own, for `elements_max` were taken.",
            ("detector",),
            starts_at=(("context",), ("online",)),
        ),
        Metric("model_info", "gauge", "1 for each model in use.", ("model", "version")),
        Metric(
            "model_changes_total",
            "counter",
            "Promoted models that the running service met. outcome: taken into use, or refused: the old one goes on.",
            ("outcome",),
            starts_at=(("taken",), ("refused",)),
        ),
        Metric(
            "label_overflow_total",
            "counter",
            "Updates of a metric that counted under `other`, for the metric had reached its bound of series.",
            ("metric",),
        ),
        Metric("build_info", "gauge", "1; the version of the program.", ("version",)),
    )
}


def reference() -> str:
    """`docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Served on `http://127.0.0.1:9464/metrics` (`exporters.prometheus`), as Prometheus text or OpenMetrics,",
        "whichever is asked for. Exemplars carry `trace_id` and `span_id`; they are in OpenMetrics only; Prometheus",
        "keeps them with `--enable-feature=exemplar-storage`. Beside these, the usual `process_*` and `python_info`.",
        "",
        "A metric has at most `exporters.prometheus.series_max` series (2,000), buckets counted. What is over the",
        f"bound counts under `{OTHER}`: the last label marked with * first, then the one before. So sums are exact.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS.values():
        labels = ", ".join(f"{label}*" if label in metric.open_labels else label for label in metric.labels)
        kind = metric.kind + (", exemplars" if metric.exemplars else "")
        lines.append(f"| `{PREFIX}{metric.name}` | {kind} | {labels} | {metric.help} |")
    lines += ["", "Histogram buckets, upper bounds:", ""]
    for metric in METRICS.values():
        if metric.kind == "histogram":
            lines.append(f"- `{PREFIX}{metric.name}`: {', '.join(f'{bound:g}' for bound in metric.buckets)}, +Inf")
    lines += [
        "",
        "Made from `exporters/prometheus/metrics.py` by `python -m exporters.prometheus.metrics > docs/metrics.md`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201  # the command's output
