"""The ways out: what is sent where, and how much may wait for it."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from collector_processor.config.section import Count, HttpAddress, Positive, Section


class QueueConfig(Section):
    """The bounded queue between the engine and one sink."""

    items_max: Count = 10_000
    """Items waiting in memory; a further one is dropped and counted as `queue_full`."""
    bytes_max: Count = 16_777_216
    """Bytes waiting in memory."""
    disk_bytes_max: Count = 268_435_456
    """Bytes waiting in the data folder, for a sink that is down for long. Used by the exporters that send."""
    retry_initial_s: Positive = 1.0
    """Wait before the first retry; it doubles with each one and is spread at random by up to a half."""
    retry_max_s: Positive = 30.0
    """Greatest wait between two retries."""


class PrometheusConfig(Section):
    """`exporters/prometheus`: the metrics endpoint."""

    enabled: bool = True
    """Whether this exporter runs."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """0 takes any free port."""
    allow_insecure: bool = False
    """Whether an address that other machines reach may be served: the endpoint has no authentication, and its labels
    name tenants and flows."""
    series_max: Annotated[int, Field(ge=100)] = 2000
    """Series of one metric (each bucket of a histogram is one); further label values count under `other`."""


class InlineConfig(Section):
    """Inline mode: the originals go out through spanchain."""

    hold_s: Annotated[float, Field(ge=0)] = 10.0
    """Longest time that spans wait for the verdicts of their chains, so that the events can be on them; less when all
    verdicts are there. The event of a later verdict is sent as in tee mode."""
    tenant_header: str | None = None
    """Header that names the tenant of each request, such as `x-scope-orgid`; absent when the receiver has no tenants.
    With several tenants and without it, all arrive as one."""


class OtlpExportConfig(Section):
    """`exporters/otlp`: events over OTLP, beside the original data (tee) or on it (inline)."""

    enabled: bool = False
    """Whether this exporter runs."""
    mode: Literal["tee", "inline"] = "tee"
    """`tee`: one log event and one span event for each unusual chain; the originals reach the backend another way.
    `inline`: spanchain is that way: it forwards every span and log record, with the event on the span."""
    inline: InlineConfig = InlineConfig()
    endpoint: HttpAddress = "http://127.0.0.1:4317"
    """Where to send: `http://` or `https://`, host and port. Not spanchain's own receiver."""
    protocol: Literal["grpc", "http"] = "grpc"
    """`http` posts protobuf to `/v1/traces` and `/v1/logs` under the endpoint."""
    headers: dict[str, SecretStr] = Field(default={})
    """Sent with every request, such as `authorization`; take secrets from `${env:NAME}` or `${file:PATH}`."""
    compression: Literal["gzip", "none"] = "gzip"
    """Compression of requests."""
    ca_file: str | None = None
    """PEM file of the authority that signed the server's certificate; the system's authorities when absent."""
    cert_file: str | None = None
    """PEM certificate that we show (mTLS), with `key_file`."""
    key_file: str | None = None
    """PEM private key of `cert_file`."""
    timeout_s: Positive = 10.0
    """Longest time one request may take."""
    request_bytes_max: Annotated[int, Field(gt=0, lt=4_194_304)] = 3_500_000
    """Bytes of one request before compression; receivers refuse 4 MiB and more by default."""
    events_per_s_max: Positive = 200.0
    """Unusual chains a second that there are events of, the most severe first; further ones are counted as dropped
    (`rate`). The incident says it for all."""
    span_events: bool = True
    """Also send a zero-length child span under our own service name, so that the event shows inside the trace."""
    queue: QueueConfig = QueueConfig()


class FileExportConfig(Section):
    """`exporters/file`: `verdicts.jsonl` and `incidents.jsonl` in the data folder."""

    enabled: bool = False
    """Whether this exporter runs."""
    verdicts: Literal["unusual", "all", "none"] = "none"
    """Which verdicts are written: none, those whose severity is not `none`, or all."""
    bytes_max: Count | None = 1_073_741_824
    """Bytes of `verdicts.jsonl`; before it would be larger it becomes `verdicts.jsonl.1`, that one `.2`, and so on.
    `null` lets it grow."""
    files_kept: Count = 3
    """How many such older files are kept."""
    incidents_max: Count = 2000
    """Incidents in `incidents.jsonl`, some 3 kB each; when there are more, the oldest resolved ones go. `replay` keeps
    all."""
    queue: QueueConfig = QueueConfig(items_max=2000, bytes_max=67_108_864)


class AlertmanagerConfig(Section):
    """`exporters/alertmanager`: pages without a Prometheus rule in between."""

    enabled: bool = False
    """Whether this exporter runs."""
    url: HttpAddress = "http://127.0.0.1:9093"
    """Base address; alerts are posted to `/api/v2/alerts` under it."""
    headers: dict[str, SecretStr] = Field(default={})
    """Sent with every request, such as `authorization`."""
    ca_file: str | None = None
    """PEM file of the authority that signed the server's certificate; the system's authorities when absent."""
    timeout_s: Positive = 10.0
    """Longest time one request may take."""
    resend_s: Positive = 60.0
    """How often an open incident is sent again; Alertmanager forgets an alert that is not repeated."""
    runbook_url: str = ""
    """Address of the runbooks; `#` and the alert's section are appended. No annotation when empty."""
    trace_url: str = ""
    """Address of a trace with `{trace_id}` in it, for the link in the page. No link when empty."""
    queue: QueueConfig = QueueConfig(items_max=1000, bytes_max=4_194_304, disk_bytes_max=16_777_216)


class StoreConfig(Section):
    """`exporters/store`: what was found, in SQL, for `spanchain incidents` and for later. SQLite, or PostgreSQL."""

    enabled: bool = True
    """Whether this exporter runs."""
    url: SecretStr | None = None
    """`postgresql://user@host/database` (needs the extra `postgres`); when absent, `spanchain.db` in the data folder.
    Several services may write to one database."""
    password: SecretStr | None = None
    """Password for `url`, as it is; inside the URL it would have to be percent-encoded."""
    normal_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the normal verdicts that are kept, chosen by a hash of the trace id: unusual ones are kept all."""
    verdicts_per_s_max: Positive = 500.0
    """Unusual verdicts a second that are kept, the most severe first; further ones are counted as dropped (`rate`)."""
    records_max: Annotated[int, Field(ge=0)] = 200
    """Records of an unusual chain that are kept as evidence, from its start."""
    age_max_s: Positive = 2_592_000.0
    """Age at which a verdict is deleted (30 days)."""
    incidents_age_max_s: Positive = 31_536_000.0
    """Age at which an incident is deleted, since its last change (a year)."""
    verdicts_max: Count = 1_000_000
    """Verdicts kept; above it the oldest are deleted."""
    incidents_max: Count = 100_000
    """Incidents kept; above it the oldest are deleted."""
    bytes_max: Count = 4_294_967_296
    """Bytes of all that is kept, before the database's own overhead; above it the oldest verdicts are deleted."""
    retention_interval_s: Positive = 60.0
    """Time between two looks for what has to be deleted."""
    queue: QueueConfig = QueueConfig()

    @model_validator(mode="after")
    def _url_is_one(self) -> StoreConfig:
        if self.url is not None and not self.url.get_secret_value().startswith(("postgresql://", "postgres://")):
            message = "url must begin with postgresql://"
            raise ValueError(message)
        if self.url is not None:
            try:
                _ = urlsplit(self.url.get_secret_value()).port
            except ValueError:
                raise ValueError("url is no URL: postgresql://user@host:5432/database") from None
        if self.password is not None and self.url is None:
            message = "password needs url"
            raise ValueError(message)
        return self


class ExportersConfig(Section):
    """Where verdicts and incidents go: one section an exporter."""

    prometheus: PrometheusConfig = PrometheusConfig()
    otlp: OtlpExportConfig = OtlpExportConfig()
    file: FileExportConfig = FileExportConfig()
    alertmanager: AlertmanagerConfig = AlertmanagerConfig()
    store: StoreConfig = StoreConfig()
