"""The ways in: who may send what, how large it may be, and the journal that it is written to first."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, model_validator

from collector_processor.config.section import Count, Durability, Positive, Section, TenantName


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
