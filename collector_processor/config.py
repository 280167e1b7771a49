"""The whole configuration as frozen, typed models: one class a section, every key with its unit, default and reason.

How it works. A file is YAML; `load` (in `config_file.py`) reads it, resolves `${env:NAME}` and `${file:PATH}` and
builds `Config`. Unknown keys are errors. Units stand last in names (`_s`, `_ms`, `_bytes`, `_max`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, field_validator, model_validator


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, descriptions taken from attribute docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
HttpAddress = Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")]
Durability = Literal["fsync", "os", "none"]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class JoinConfig(Section):
    """How records become chains."""

    attributes: tuple[str, ...] = ()
    """Attribute keys whose values rules may read (at most 32); all others are never looked at."""
    business_keys: tuple[str, ...] = ("payment.id", "order.id", "correlation.id")
    """Attributes that tie a log without a trace id to a chain whose spans carry the same value."""
    wait_initial_s: Positive = 6.0
    """Quiet time after which a chain whose root was seen is complete, until its flow's own wait is learned. SDKs export
    every 5 s by default."""
    wait_min_s: Positive = 1.0
    """Least learned wait."""
    wait_max_s: Positive = 30.0
    """Greatest learned wait."""
    idle_s: Positive = 30.0
    """Quiet time after which a chain whose root never came is closed as `timeout`."""
    age_max_s: Positive = 600.0
    """Absolute age at which any chain is closed."""
    chains_max: Count = 1_200_000
    """Open chains of all tenants."""
    records_max: Count = 24_000_000
    """Records in open chains of all tenants."""
    tenant_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the two limits above that one tenant may hold while others wait."""
    chain_records_max: Count = 10_000
    """Records in one chain; further ones are dropped and counted."""
    closed_remembered_s: Positive = 600.0
    """How long a closed chain is remembered, so that a late record is counted as late and makes no second verdict."""
    closed_remembered_max: Count = 1_000_000
    """Closed chains remembered at most (16 bytes each); those forgotten before their time are counted in
    `spanchain_chains_forgotten_total`."""


class DecodeConfig(Section):
    """Bounds of the first-sight dictionaries and of what is read of a record."""

    body_bytes_max: Count = 1024
    """Bytes of a log body that make its template; the rest is not read."""
    services_max: Count = 4096
    """Services of all tenants; a further one counts as `other`."""
    instances_max: Count = 16_384
    """Instances (pods, hosts, processes) of all services."""
    events_max: Count = 65_536
    """Operations and templates; a further one counts as `other`."""
    flows_max: Count = 2048
    """Flows of all tenants; a further one counts as `other`."""
    paths_max: Count = 65_536
    """Distinct paths of all flows."""
    lookups_max: Count = 1_048_576
    """Entries of the cache from masked text to event; emptied when full."""


class RedactionConfig(Section):
    """What must not be kept, sent or logged. It is taken out of names and log bodies on first sight, before anything is
    made of them, and out of spanchain's own log."""

    cards: bool = True
    """Card numbers: 13 to 19 digits, in groups or not, whose check digit is right (Luhn). They are no numbers to rules
    either; as a business key such a value still joins, by a keyed hash."""
    ibans: bool = True
    """International bank account numbers whose check digits are right."""
    secrets: bool = True
    """Bearer tokens, basic credentials, JSON web tokens, private keys, passwords in URLs, and keys of well-known
    services."""
    emails: bool = False
    """E-mail addresses. In log bodies they are variables anyway."""
    attributes: tuple[str, ...] = (
        *("authorization", "proxy_authorization", "cookie", "set_cookie", "password", "passwd", "pwd", "passphrase"),
        *("secret", "token", "api_key", "access_key", "private_key", "credential", "credentials"),
        *("cvv", "cvv2", "cvc", "cvc2", "pin", "otp", "pan", "card_number"),
    )
    """Attributes whose values must not be kept, by name or by the part behind the last dot, in any case, `-` and `_`
    alike; and names whose value goes when a text says `name=value` or `name: value`."""
    patterns: tuple[str, ...] = ()
    """Regular expressions (Python's) of further texts to take out. In log bodies every word with a digit is a variable
    already: there, patterns see it as `0`."""
    before_journal: bool = False
    """Whether requests are masked before they are journalled: as many stars as there were characters. Off, the journal
    holds what was sent, readable for its owner only, until the next checkpoints free it; on, whatever is made of a
    request later (inline mode) has stars too. Not looked for there: `patterns`, `ibans`, `emails`, and digits other
    than 0-9."""

    @field_validator("patterns")
    @classmethod
    def _patterns_are_valid(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                message = f"{pattern!r} is not a regular expression: {error}"
                raise ValueError(message) from None
        return patterns

    def forbids(self, attribute: str) -> bool:
        """Whether the values of `attribute` must not be kept."""
        name = attribute.lower().replace("-", "_")
        return not {name, name.rpartition(".")[2]}.isdisjoint(one.lower().replace("-", "_") for one in self.attributes)


class ChainSequenceConfig(Section):
    """`detectors/chain_sequence`: paths of a flow, their shares per slice, their transitions."""

    enabled: bool = True
    """Whether this detector runs."""
    slice_s: Positive = 300.0
    """Length of a time-of-week slice."""
    learn_chains_min: Count = 50
    """Chains of a flow before its new paths are findings (cold start)."""
    repeat_min: Count = 3
    """The same finding this often within a slice before anything pages."""
    interrupted_length_min: Count = 1
    """Least number of modules of a path that can count as broken off. One: the first call already went unanswered."""
    adopt_s: Positive = 93_600.0
    """Time over which a path that is judged anomalous must keep coming before it counts as normal (an intended
    release). Longer than a day, so that a day-long incident is still reported at its end."""
    adopt_repeats: Count = 20
    """Chains of such a path before it counts as normal."""
    path_length_max: Count = 1024
    """Operations of a path (loops collapsed) that are compared; further ones are left out."""


class RetrievalConfig(Section):
    """`detectors/retrieval`: distance to the nearest normal chains."""

    enabled: bool = True
    """Whether this detector runs."""
    learn_chains_min: Count = 50
    """Chains of a flow before the content of a chain is judged (cold start)."""
    core_max: Count = 16_384
    """Distinct bags of events kept, of all flows; beyond it the half not seen for longest is forgotten."""
    compared_max: Count = 512
    """Known bags of a flow that a new one is compared with, the most frequent first."""
    vectors_max: Count = 16_384
    """Event texts whose vectors are kept."""
    values_max: Count = 262_144
    """Attribute values kept, of all operations."""
    adopt_s: Positive = 93_600.0
    """Time over which content that is judged anomalous must keep coming before it counts as normal; more than a day."""
    adopt_repeats: Count = 20
    """Chains of such content before it counts as normal."""
    embedding_model: str | None = None
    """Path of a sentence-embedding ONNX model with `vocab.txt` beside it; hashed n-grams without one."""
    embedding_sha256: str = ""
    """SHA-256 of that model, in hex; a model with another digest is refused, and one that fails its trial in a process
    of its own, with limits: `spanchain validate` tries it too."""


class SequenceTransformerConfig(Section):
    """`detectors/sequence_transformer`: improbability of the order of events."""

    enabled: bool = True
    """Whether this detector runs."""
    model: str = "general"
    """Folder of models, in which `spanchain models promote` names the one in use, also while the service runs; as long
    as none is named, the one that ships with spanchain. `general` for that one alone, `none` for n-grams alone."""
    learn_chains_min: Count = 50
    """Chains of a flow before the order of events is judged (cold start)."""
    lanes_max: Count = 65_536
    """Distinct sequences of logs or calls inside a span that are kept; beyond it the half not seen for longest goes."""
    adopt_s: Positive = 93_600.0
    """Time over which a sequence that comes in anomalous chains only must keep coming before it counts as normal."""
    adopt_repeats: Count = 20
    """Chains with such a sequence before it counts as normal."""


class ContextConfig(Section):
    """`detectors/context`: rules and learned topology."""

    enabled: bool = True
    """Whether this detector runs."""
    rules: tuple[str, ...] = ()
    """Rule files: paths from the working directory, or names of shipped sets (`payments`). What they compare has to be
    among `join.attributes`. A file with a bad rule is refused at start, with its place."""
    window_s: Positive = 90.0
    """Time over which surprises of one element are summed."""
    elements_max: Count = 32_768
    """Operations whose logs and calls are watched, and services; further ones are counted."""
    variants_max: Count = 65_536
    """Different sets of logs or calls that are kept, over all operations."""
    learn_min: Count = 5
    """Spans of an operation before what they write and call can be unusual."""
    shrink: Positive = 5.0
    """Weight of the rate at which anything new is seen, in observations of one operation."""
    least: Annotated[float, Field(ge=0)] = 1.5
    """Surprise (-ln p) up to which a variant counts as usual; it counts in full from `hit` on."""
    hit: Positive = 3.0
    """Surprise from which on a span is one of the unusual ones."""
    chain_surprise: Positive = 6.0
    """Surprise from which on a single span is a finding of its own; in an operation in alarm `hit` suffices."""
    findings_max: Count = 8
    """Findings of one chain."""
    report: Positive = 5.0
    """-ln of the probability of a window from which on it is a finding."""
    hold: Positive = 8.0
    """-ln of the probability of a window from which on the operation learns no more than samples."""
    kept: Probability = 0.995
    """What the dispersion of an element keeps of its past, an epoch."""


class OnlineConfig(Section):
    """`detectors/online`: River learners and robust statistics per operation, edge and slice."""

    enabled: bool = True
    """Whether this detector runs."""
    window_s: Positive = 90.0
    """Time over which surprises of one element are summed."""
    slice_s: Positive = 60.0
    """Time over which a flow is looked at as a whole."""
    elements_max: Count = 16_384
    """Operations, calls and services that are measured; further ones are counted."""
    learn_min: Count = 5
    """Durations of an element before it is compared with its own history rather than with its group's."""
    shrink: Positive = 20.0
    """Weight of the group's tail in an element's own, in observations."""
    prior: Positive = 50.0
    """Weight of the tail believed before anything is seen, in observations."""
    material_ms: Annotated[float, Field(ge=0)] = 5.0
    """A delay below this counts less, however short the chain."""
    material_share: Probability = 0.2
    """Share of the chain's time from which on a delay counts in full."""
    hit: Positive = 3.0
    """Surprise (-ln p) from which on an observation is counted as one of the slow ones."""
    chain_surprise: Positive = 7.0
    """Surprise from which on a chain's element is a finding of its own; of an element in alarm `hit` suffices."""
    findings_max: Count = 8
    """Findings of one chain."""
    report: Positive = 5.0
    """-ln of the probability of a window from which on it is a finding."""
    hold: Positive = 5.0
    """-ln of the probability of a window from which on the element does not learn."""
    kept: Probability = 0.995
    """What the dispersion of an element keeps of its past, an epoch."""


class ShadowConfig(Section):
    """`detectors/shadow`: slow drift of what is normal, against a frozen baseline."""

    enabled: bool = True
    """Whether this detector runs."""
    reference_s: Positive = 86_400.0
    """Time over which the reference of an operation is recorded; then it is frozen."""
    memory_s: Positive = 86_400.0
    """Time over which what is normal now fades: a day, so that day and night are both in it."""
    learn_min: Count = 200
    """Spans of an operation before it is compared."""
    slower_by: Positive = 0.4
    """Least growth of the typical self time that matters: 0.4 is 40 %."""
    errors_by: Probability = 0.02
    """Least growth of the share of errors that matters."""
    report: Positive = 15.0
    """-ln of the probability of a difference from which on it is a finding."""
    adopt_s: Positive = 93_600.0
    """Time for which a difference is reported before it becomes the new reference; more than a day."""


class DetectorsConfig(Section):
    """One section a detector."""

    chain_sequence: ChainSequenceConfig = ChainSequenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    sequence_transformer: SequenceTransformerConfig = SequenceTransformerConfig()
    context: ContextConfig = ContextConfig()
    online: OnlineConfig = OnlineConfig()
    shadow: ShadowConfig = ShadowConfig()


class PeriodConfig(Section):
    """A recurring part of the business week: a trading session, the night batch, month-end closing hours."""

    name: str
    """What the period is called in incidents and rules."""
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ("mon", "tue", "wed", "thu", "fri")
    """Days on which it starts."""
    start: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    """Local time, `HH:MM`."""
    end: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    """Local time, `HH:MM`; not after `start`: it ends the next day."""
    holidays: Literal["skip", "only", "any"] = "skip"
    """Whether it also takes place on holidays."""
    severity: Annotated[int, Field(ge=-1, le=1)] = 0
    """Raises (1) or lowers (-1) the severity of what is unusual during it by one step."""


class CalendarConfig(Section):
    """The business calendar; its time zone is `decide.timezone`."""

    holidays: str | None = None
    """A country (`DE`), a part of one (`DE-BY`) or a market (`XNYS`, `XECB`) of the package `holidays`; null: none."""
    periods: tuple[PeriodConfig, ...] = ()
    """Parts of the week that people speak of and that weigh more or less."""


class BusinessConfig(Section):
    """What makes an unusual chain matter more or less than its probability says."""

    amount: str | None = None
    """The attribute, one of `join.attributes`, that says how much money a chain moves; null: amounts do not count."""
    amount_critical: Positive | None = None
    """An unusual chain that moves at least this much is critical."""
    amount_minor: Positive | None = None
    """An unusual chain that moves less than this stays at info."""


class DecideConfig(Section):
    """How scores become verdicts and verdicts become incidents."""

    alerts_per_day: Positive = 6.0
    """The alert budget: false incidents an operator accepts a day. Every threshold follows from it."""
    weights: dict[Literal["rec", "seq", "ctx"], Annotated[float, Field(ge=0)]] = {"rec": 0.5, "seq": 0.5, "ctx": 1.0}
    """The lambdas of s = l1*d_rec + l2*d_seq + l3*d_ctx: content, order, context. What is broken weighs more than what
    is merely new."""
    history: Annotated[int, Field(ge=100, le=10_000)] = 300
    """Calibration scores kept per flow. 300 held a 1 % target at 0.9-1.4 % on four kinds of scores."""
    history_min: Annotated[int, Field(ge=20)] = 50
    """Scores that a flow needs before it is judged by its own; until then all flows of the tenant are one."""
    probability_max: Probability = 0.02
    """Greatest p-value that the budget may make unusual, however thin the flow."""
    probability_in_incident: Probability = 0.2
    """p-value up to which a chain is unusual that goes through the service of an open incident."""
    audit_share: Probability = 0.1
    """Share of suspect chains that are learned from although nothing has cleared them, so that a release becomes
    normal."""
    score_half: Probability = 1e-3
    """The p-value whose score is 0.5; score = ln p / (ln p + ln score_half)."""
    score_warning: Probability = 0.5
    """Unusual chains from this score on are warnings, below it info."""
    score_critical: Probability = 0.75
    """Broken, failed or slowed chains from this score on are critical."""
    business: BusinessConfig = BusinessConfig()
    calendar: CalendarConfig = CalendarConfig()
    hold_s: Annotated[float, Field(ge=0)] = 10.0
    """Time for which any element must be beyond half the threshold before it opens an incident."""
    soft_hold_s: Positive = 300.0
    """Time for which what may well be meant to be so (other calls or paths than usual, but no error, no missing log and
    no delay) must hold before it opens an incident."""
    restart_hold_s: Positive = 90.0
    """Time for which errors that say that another service is not there, or calls that are made no more but had been
    left out before or stopped together, must hold before they open an incident: an instance that restarts is missed for
    about a minute."""
    repeat_min: Count = 3
    """Unusual chains with the same finding within a window before they may open an incident."""
    merge_s: Annotated[float, Field(ge=0)] = 90.0
    """Age up to which an incident takes in findings about services next to its own in the call graph: one cause shows
    in several places, not always in the same minute."""
    join_s: Positive = 300.0
    """Age up to which an incident takes in further findings about its services; what shows later opens its own."""
    resolve_s: Positive = 150.0
    """Quiet time after which an incident is over."""
    quarantine_s: Positive = 90.0
    """Time a chain waits before detectors learn from it, so that what an alarm is about does not become normal."""
    timezone: str = "UTC"
    """Time zone of the business calendar (time-of-week slices, sessions, holidays)."""


class EngineConfig(Section):
    """Engine-wide."""

    epoch_s: Positive = 10.0
    """Grid on which detectors learn and incidents are judged; verdicts do not wait for it."""
    quarantine_records_max: Count = 2_000_000
    """Records whose chains wait out `decide.quarantine_s`, some 50 bytes each; every epoch may hold an equal share. Of
    an epoch with more (by default: 20,000 records/s) a sample of chains is learned, the others are judged and counted
    in `spanchain_chains_not_learned_total`."""


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
    headers: dict[str, SecretStr] = {}
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
    headers: dict[str, SecretStr] = {}
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


class TlsConfig(Section):
    """The service's certificate; all files are read again when they change, for new connections."""

    cert_file: str
    """PEM file: the certificate and the chain up to its root."""
    key_file: str
    """PEM file: the private key."""
    client_ca_file: str | None = None
    """PEM file: who may sign clients' certificates. When set, a client without such a certificate is refused (mTLS)."""


class CredentialConfig(Section):
    """Who may send, and as which tenant: one of a token, a user with password, a client certificate's name."""

    tenant: TenantName = "default"
    """The tenant whose data it is."""
    any_tenant: bool = False
    """Whether this is a trusted proxy's own credential: the tenant header names the tenant."""
    token: SecretStr | None = None
    """Bearer token. Several credentials may name the same tenant, so that tokens overlap while they rotate."""
    token_file: str | None = None
    """File of bearer tokens, one a line, all valid; read again when it changes."""
    username: str | None = None
    """User of HTTP basic authentication."""
    password: SecretStr | None = None
    """Password of that user."""
    client_name: str | None = None
    """Common name or alternative name (DNS, URI) of a client certificate that `tls.client_ca_file` accepts."""

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> CredentialConfig:
        given = [self.token, self.token_file, self.username, self.client_name]
        if sum(value is not None for value in given) != 1 or (self.username is None) != (self.password is None):
            message = "a credential is one of: token, token_file, username and password, client_name"
            raise ValueError(message)
        return self


class AuthConfig(Section):
    """Who may send. Without credentials everybody who can connect may, as the tenant `default`."""

    credentials: tuple[CredentialConfig, ...] = ()
    """Accepted credentials."""
    tenant_header: str = "x-scope-orgid"
    """Header or gRPC metadata that names a tenant. Believed only from `trusted_proxies`; from anybody else a tenant
    other than the credential's is refused."""
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Addresses or networks whose tenant header is believed, with a credential that has `any_tenant` or with none
    configured."""


class LimitsConfig(Section):
    """What one request may hold."""

    request_bytes_max: Count = 67_108_864
    """Bytes of a request, compressed and decompressed alike."""
    records_max: Count = 262_144
    """Spans or log records of a request; the Collector sends 8192 by default."""
    elements_max: Count = 4_000_000
    """Attributes, events, links, values and groups of a request."""
    inflight_bytes_max: Count = 268_435_456
    """Bytes of all requests being handled; above it clients are told to come back."""
    damaged_records: Literal["reject", "repair"] = "reject"
    """A record with invalid UTF-8 or too deep values is rejected by itself, and the sender told so; or repaired: with
    replacement characters, the deep values cut off."""

    @model_validator(mode="after")
    def _the_largest_request_fits(self) -> LimitsConfig:
        if self.inflight_bytes_max < self.request_bytes_max:
            message = "limits.inflight_bytes_max must be at least limits.request_bytes_max"
            raise ValueError(message)
        return self


class GrpcReceiverConfig(Section):
    """OTLP over gRPC. Clients must compress with gzip or not at all: gRPC for Python refuses zstd and snappy."""

    enabled: bool = True
    """Whether this port is opened."""
    endpoint: str = "127.0.0.1:4317"
    """Address and port; an IPv6 address in brackets; port 0 takes any free one."""
    workers: Count = 16
    """Requests handled at once."""
    request_timeout_s: Positive = 30.0
    """Time in which a request must have arrived in full."""


class HttpReceiverConfig(Section):
    """OTLP over HTTP: /v1/traces, /v1/logs, /v1/metrics; protobuf and JSON; gzip, zstd, deflate, snappy."""

    enabled: bool = True
    """Whether this port is opened."""
    endpoint: str = "127.0.0.1:4318"
    """Address and port; an IPv6 address in brackets; port 0 takes any free one."""
    workers: Count = 8
    """Requests handled at once."""
    connections_max: Count = 1024
    """Open connections; further ones are answered 503."""
    request_timeout_s: Positive = 30.0
    """Time in which a request must have arrived in full."""


class ReceiversConfig(Section):
    """Where OTLP comes in."""

    grpc: GrpcReceiverConfig = GrpcReceiverConfig()
    http: HttpReceiverConfig = HttpReceiverConfig()
    limits: LimitsConfig = LimitsConfig()
    tls: TlsConfig | None = None
    """Encryption of both ports, and whether clients must show a certificate; without it both speak plain text."""
    auth: AuthConfig = AuthConfig()
    allow_insecure: bool = False
    """Whether an address that other machines reach may be served without any authentication."""

    @model_validator(mode="after")
    def _names_need_certificates(self) -> ReceiversConfig:
        if any(one.client_name for one in self.auth.credentials) and not (self.tls and self.tls.client_ca_file):
            message = "auth.credentials.client_name needs tls.client_ca_file"
            raise ValueError(message)
        return self


class JournalConfig(Section):
    """The write-ahead log and the checkpoints: what was acknowledged survives."""

    dir: str = "journal"
    """Folder, relative to the data folder."""
    durability: Durability = "fsync"
    """When a request is acknowledged: once it is on the disk (`fsync`: survives a power cut), with the operating system
    (`os`: survives a crash of spanchain), or at once (`none`: a crash loses what was not yet processed)."""
    segment_bytes_max: Count = 67_108_864
    """Bytes of a segment file; a new one is begun above it."""
    segment_age_s: Positive = 60.0
    """Age at which a new segment is begun, so that old ones can go."""
    bytes_max: Count = 17_179_869_184
    """Bytes of all segments; above it requests are refused as retryable until a checkpoint frees segments."""
    checkpoint_interval_s: Positive = 60.0
    """Time between checkpoints: more often means less to replay, and more to write."""
    retention_s: Annotated[float, Field(ge=0)] = 0.0
    """How long segments are kept after the checkpoints no longer need them, for evidence and for inquiries."""


class HealthConfig(Section):
    """`/livez` and `/readyz`."""

    host: str = "127.0.0.1"
    """Address to listen on. Answers hold no data of yours."""
    port: Annotated[int, Field(ge=0, le=65535)] = 13133
    """0 takes any free port."""


class ServiceConfig(Section):
    """The running service."""

    health: HealthConfig = HealthConfig()
    tick_ms: Positive = 50.0
    """Time between two looks for chains that are complete."""
    backlog_bytes_max: Count = 134_217_728
    """Bytes that may wait for the engine; above it senders are asked to come again."""
    drain_s: Positive = 20.0
    """Time in which a stopping service finishes what it has taken in."""


class Config(Section):
    """The root."""

    receivers: ReceiversConfig = ReceiversConfig()
    journal: JournalConfig = JournalConfig()
    join: JoinConfig = JoinConfig()
    decode: DecodeConfig = DecodeConfig()
    redaction: RedactionConfig = RedactionConfig()
    engine: EngineConfig = EngineConfig()
    detectors: DetectorsConfig = DetectorsConfig()
    decide: DecideConfig = DecideConfig()
    service: ServiceConfig = ServiceConfig()
    exporters: ExportersConfig = ExportersConfig()

    @model_validator(mode="after")
    def _inline_mode_has_a_source_and_a_way_out(self) -> Config:
        otlp = self.exporters.otlp
        if not otlp.enabled or otlp.mode != "inline":
            return self
        if self.journal.durability == "none":
            message = "exporters.otlp.mode inline forwards from the journal: journal.durability must be fsync or os"
            raise ValueError(message)
        to = urlsplit(otlp.endpoint)
        for receiver in (self.receivers.grpc, self.receivers.http):
            host, _, port = receiver.endpoint.rpartition(":")
            here = to.hostname in {"localhost", "127.0.0.1", "::1", host.strip("[]")}
            if receiver.enabled and here and str(to.port or "") == port:
                message = f"exporters.otlp.endpoint {otlp.endpoint} is a receiver of this service: all would come back"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _nothing_forbidden_is_asked_for(self) -> Config:
        for key in (*self.join.attributes, *self.join.business_keys):
            if self.redaction.forbids(key):
                message = f"join asks for the attribute {key}, which redaction.attributes says must not be kept"
                raise ValueError(message)
        return self

    def with_verdicts(self, which: Literal["unusual", "all", "none"]) -> Config:
        """The same config with the file exporter writing `which` verdicts, and every incident."""
        file = self.exporters.file.model_copy(update={"enabled": True, "verdicts": which})
        return self.model_copy(update={"exporters": self.exporters.model_copy(update={"file": file})})
