"""The Grafana dashboard, in code: what is wrong, the transactions, the pipeline, the exporters.

How it works. Built with Grafana's own SDK into the classic format (schema 42). Every query is limited to the chosen
jobs and instances and uses `$__rate_interval`; every panel has a title, a description and a unit. Where a metric has
exemplars they are shown, and lead to the trace when the data source says where traces are (`datasources.yaml`).
"""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any

with warnings.catch_warnings():
    # The SDK recommends its next format on import; the classic one is what every Grafana in use reads.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import common as common_builders
    from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, table, timeseries
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models import heatmap as heatmap_models
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

UID = "spanchain"
SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
ALL = 'job=~"$job", instance=~"$instance"'
FLOWS = f'{ALL}, tenant=~"$tenant", flow=~"$flow"'
TENANTS = f'{ALL}, tenant=~"$tenant"'
RATE = "[$__rate_interval]"
WIDE, HALF, THIRD, QUARTER = 24, 12, 8, 6

Panel = timeseries.Panel | stat.Panel | table.Panel | heatmap.Panel


def query(expr: str, legend: str = "", *, exemplar: bool = False) -> prometheus.Dataquery:
    """A range query."""
    return prometheus.Dataquery().datasource(SOURCE).expr(expr).legend_format(legend).range().exemplar(exemplar)


def lines(
    title: str, description: str, unit: str, *queries: prometheus.Dataquery, span: int = THIRD, stacked: bool = False
) -> timeseries.Panel:
    """Lines over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(8)
        .fill_opacity(25 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    return panel.targets([each.ref_id(letter) for letter, each in zip("ABCD", queries, strict=False)])


def number(title: str, description: str, unit: str, expr: str, *, bad_from: float | None = None) -> stat.Panel:
    """One number; from `bad_from` on it is red."""
    steps = [models.Threshold(value=None, color="green")]
    if bad_from is not None:
        steps.append(models.Threshold(value=bad_from, color="red"))
    mode = models.ThresholdsMode.ABSOLUTE
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(QUARTER)
        .height(4)
        .thresholds(dashboard.ThresholdsConfig().mode(mode).steps(steps))
        .with_target(prometheus.Dataquery().ref_id("A").datasource(SOURCE).expr(expr).instant())
    )


def rows_of(title: str, description: str, unit: str, expr: str, *, span: int, hidden: tuple[str, ...]) -> table.Panel:
    """What a query gives now, a row a series, without the columns `hidden`."""
    organize: dict[str, Any] = {"excludeByName": dict.fromkeys(("Time", *hidden), True)}
    target = prometheus.Dataquery().ref_id("A").datasource(SOURCE).expr(expr).instant().format(PromQueryFormat.TABLE)
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(8)
        .with_target(target)
        .with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))
    )


def scores() -> heatmap.Panel:
    """The distribution of scores over time, with exemplars."""
    colors = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    target = query(f"sum by (le) (rate(spanchain_chain_score_bucket{{{FLOWS}}}{RATE}))", "{{le}}", exemplar=True)
    return (
        heatmap.Panel()
        .title("Scores")
        .description("How unusual transactions are, 0 to 1. A dot is one of them: click it to open its trace.")
        .datasource(SOURCE)
        .unit("short")
        .span(HALF)
        .height(8)
        .color(colors)
        .with_target(target.ref_id("A").format(PromQueryFormat.HEATMAP))
    )


def what_is_wrong() -> list[Panel]:
    return [
        number(
            "Open incidents",
            "Incidents open now, of every severity.",
            "short",
            f"sum(spanchain_incidents_open{{{TENANTS}}}) or vector(0)",
            bad_from=1,
        ),
        number(
            "Critical incidents",
            "Incidents open now that are critical.",
            "short",
            f'sum(spanchain_incidents_open{{{TENANTS}, severity="critical"}}) or vector(0)',
            bad_from=1,
        ),
        number(
            "Unusual transactions",
            "Share of transactions with a score above 0.999 in the time shown.",
            "percentunit",
            f'1 - sum(increase(spanchain_chain_score_bucket{{{FLOWS}, le="0.999"}}[$__range]))'
            f" / sum(increase(spanchain_chain_score_count{{{FLOWS}}}[$__range]))",
        ),
        number(
            "Transactions",
            "Transactions judged each second.",
            "ops",
            f"sum(rate(spanchain_chains_total{{{FLOWS}}}{RATE}))",
        ),
        rows_of(
            "What the open incidents are about",
            "Where to look first, for each open incident. Its explanation is in the log event spanchain.incident.",
            "short",
            "sum by (severity, service, operation, kind, category, tenant)"
            f" (spanchain_subject_incidents_open{{{TENANTS}}})",
            span=HALF,
            hidden=(),
        ),
        scores(),
        lines(
            "Unusual transactions by kind",
            "Transactions with a severity, by their most significant finding. Dots lead to traces.",
            "ops",
            query(
                f"sum by (kind) (rate(spanchain_anomalies_total{{{FLOWS}}}{RATE}))",
                "{{kind}}",
                exemplar=True,
            ),
            span=HALF,
            stacked=True,
        ),
        lines(
            "Unusual share by flow",
            "Which kind of transaction is affected, and how much of it.",
            "percentunit",
            query(
                f"sum by (tenant, flow) (rate(spanchain_anomalies_total{{{FLOWS}}}{RATE}))"
                f" / sum by (tenant, flow) (rate(spanchain_chains_total{{{FLOWS}}}{RATE}))",
                "{{tenant}} {{flow}}",
            ),
            span=HALF,
        ),
    ]


def transactions() -> list[Panel]:
    return [
        lines(
            "Transactions by flow",
            "Closed chains each second, by entry service and operation.",
            "ops",
            query(f"sum by (tenant, flow) (rate(spanchain_chains_total{{{FLOWS}}}{RATE}))", "{{tenant}} {{flow}}"),
        ),
        lines(
            "How chains end",
            "complete; timeout: the root span never came; evicted: a limit was reached.",
            "ops",
            query(f"sum by (outcome) (rate(spanchain_chains_total{{{FLOWS}}}{RATE}))", "{{outcome}}"),
            stacked=True,
        ),
        lines(
            "Incidents opened",
            "By severity, in each interval.",
            "short",
            query(f"sum by (severity) (increase(spanchain_incidents_total{{{TENANTS}}}{RATE}))", "{{severity}}"),
            stacked=True,
        ),
    ]


def pipeline() -> list[Panel]:
    latency = f"sum by (le) (rate(spanchain_verdict_latency_seconds_bucket{{{ALL}}}{RATE}))"
    return [
        lines(
            "Records received",
            "Spans and log records each second, by signal and transport.",
            "cps",
            query(
                f"sum by (signal, transport) (rate(spanchain_records_received_total{{{ALL}}}{RATE}))",
                "{{signal}} {{transport}}",
            ),
            stacked=True,
        ),
        lines(
            "Records refused, late, repeated",
            "Refused for good by reason; those whose chain was closed before; those that came before.",
            "cps",
            query(
                f"sum by (signal, reason) (rate(spanchain_records_rejected_total{{{ALL}}}{RATE}))",
                "{{signal}} {{reason}}",
            ),
            query(f"sum by (signal) (rate(spanchain_records_late_total{{{ALL}}}{RATE}))", "{{signal}} late"),
            query(f"sum by (signal) (rate(spanchain_records_duplicate_total{{{ALL}}}{RATE}))", "{{signal}} repeated"),
        ),
        lines(
            "How logs find their transaction",
            "By trace id, by business key; orphans belong to none; late ones came after it was closed.",
            "cps",
            query(f"sum by (outcome) (rate(spanchain_logs_joined_total{{{ALL}}}{RATE}))", "{{outcome}}"),
            stacked=True,
        ),
        lines(
            "Open chains",
            "Transactions that wait for further records.",
            "short",
            query(f"sum by (instance) (spanchain_open_chains{{{ALL}}})", "{{instance}}"),
        ),
        lines(
            "From record to verdict",
            "Time from the acknowledgement of a chain's last record to its verdict, the quiet gap included.",
            "s",
            query(f"histogram_quantile(0.5, {latency})", "half of them"),
            query(f"histogram_quantile(0.99, {latency})", "99 of 100"),
        ),
        lines(
            "CPU",
            "Cores used by the process.",
            "short",
            query(f"sum by (instance) (rate(process_cpu_seconds_total{{{ALL}}}{RATE}))", "{{instance}}"),
        ),
    ]


def exporters() -> list[Panel]:
    return [
        lines(
            "Waiting for a sink",
            "Verdicts and incidents in memory and on disk, by exporter.",
            "short",
            query(f"sum by (exporter) (spanchain_exporter_queue_length{{{ALL}}})", "{{exporter}}"),
            span=QUARTER,
        ),
        lines(
            "Delay of delivery",
            "From a verdict or an incident until its sink has taken it, by exporter: 99 of 100 take less.",
            "s",
            query(
                f"histogram_quantile(0.99, sum by (exporter, le) "
                f"(rate(spanchain_exporter_delay_seconds_bucket{{{ALL}}}{RATE})))",
                "{{exporter}}",
            ),
            span=QUARTER,
        ),
        lines(
            "Delivered, dropped, tried again",
            "By exporter. What is dropped is lost to that sink; what is tried again is not.",
            "ops",
            query(f"sum by (exporter) (rate(spanchain_exporter_sent_total{{{ALL}}}{RATE}))", "{{exporter}}"),
            query(
                f"sum by (exporter, reason) (rate(spanchain_exporter_dropped_total{{{ALL}}}{RATE}))",
                "{{exporter}} dropped: {{reason}}",
            ),
            query(
                f"sum by (exporter, reason) (rate(spanchain_exporter_retries_total{{{ALL}}}{RATE}))",
                "{{exporter}} again: {{reason}}",
            ),
            span=QUARTER,
        ),
        lines(
            "Memory",
            "Resident memory of the process.",
            "bytes",
            query(f"sum by (instance) (process_resident_memory_bytes{{{ALL}}})", "{{instance}}"),
            span=QUARTER,
        ),
        rows_of(
            "Models",
            "What judges, and in which version.",
            "short",
            f"max by (instance, model, version) (spanchain_model_info{{{ALL}}})",
            span=HALF,
            hidden=("Value",),
        ),
        rows_of(
            "Versions",
            "The program that runs on each instance.",
            "short",
            f"max by (instance, version) (spanchain_build_info{{{ALL}}})",
            span=HALF,
            hidden=("Value",),
        ),
    ]


def variable(name: str, label: str, source: str) -> dashboard.QueryVariable:
    """A variable with the values of a label, several at once, all by default."""
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(source)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
        .current(everything)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def incidents_as_annotations() -> dashboard.AnnotationQuery:
    """A mark on every panel while an incident is open."""
    expr = f"max by (severity, service, kind) (spanchain_subject_incidents_open{{{ALL}}}) > 0"
    return (
        dashboard.AnnotationQuery()
        .name("Incidents")
        .datasource(SOURCE)
        .enable(enable=True)
        .icon_color("red")
        .expr(expr)
        .title_format("{{severity}}: {{service}}")
        .text_format("{{kind}}")
    )


def board() -> str:
    """`spanchain.json`."""
    built = (
        dashboard.Dashboard("spanchain")
        .uid(UID)
        .description("Transactions that do not run as usual: what broke, where, and how the watching itself is doing.")
        .tags(["spanchain", "opentelemetry"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("job", "Job", "label_values(spanchain_build_info, job)"))
        .with_variable(variable("instance", "Instance", 'label_values(spanchain_build_info{job=~"$job"}, instance)'))
        .with_variable(variable("tenant", "Tenant", f"label_values(spanchain_chains_total{{{ALL}}}, tenant)"))
        .with_variable(
            variable("flow", "Flow", f'label_values(spanchain_chains_total{{{ALL}, tenant=~"$tenant"}}, flow)')
        )
        .annotation(incidents_as_annotations())
    )
    panel_id = itertools.count(1)
    for title, panels in (
        ("What is wrong", what_is_wrong()),
        ("Transactions", transactions()),
        ("Pipeline", pipeline()),
        ("Exporters and process", exporters()),
    ):
        built.with_row(dashboard.Row(title).id(next(panel_id)))
        for panel in panels:
            built.with_panel(panel.id(next(panel_id)))
    content = JSONEncoder(sort_keys=True, indent=2).encode(built.build())
    return json.dumps(json.loads(content), indent=2, sort_keys=True) + "\n"
