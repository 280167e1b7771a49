"""The whole configuration as frozen, typed models: one class a section, every key with its unit, default and reason.

How it works. A file is YAML; `load` (in `config_file.py`) reads it, resolves `${env:NAME}` and `${file:PATH}` and
builds `Config`. Unknown keys are errors. Units stand last in names (`_s`, `_ms`, `_bytes`, `_max`). The sections stand
in the files of this folder; all of them can be imported from here.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from collector_processor.config.decide import BusinessConfig, CalendarConfig, DecideConfig, PeriodConfig
from collector_processor.config.detectors import (
    ChainSequenceConfig,
    ContextConfig,
    DetectorsConfig,
    OnlineConfig,
    RetrievalConfig,
    SequenceTransformerConfig,
    ShadowConfig,
)
from collector_processor.config.engine import DecodeConfig, EngineConfig, JoinConfig, RedactionConfig
from collector_processor.config.exporters import (
    AlertmanagerConfig,
    ExportersConfig,
    FileExportConfig,
    InlineConfig,
    OtlpExportConfig,
    PrometheusConfig,
    QueueConfig,
    StoreConfig,
)
from collector_processor.config.receivers import (
    AuthConfig,
    CredentialConfig,
    GrpcReceiverConfig,
    HttpReceiverConfig,
    JournalConfig,
    LimitsConfig,
    ReceiversConfig,
    TlsConfig,
)
from collector_processor.config.section import Count, Positive, Section

__all__ = [
    "AlertmanagerConfig",
    "AuthConfig",
    "BusinessConfig",
    "CalendarConfig",
    "ChainSequenceConfig",
    "Config",
    "ContextConfig",
    "CredentialConfig",
    "DecideConfig",
    "DecodeConfig",
    "DetectorsConfig",
    "EngineConfig",
    "ExportersConfig",
    "FileExportConfig",
    "GrpcReceiverConfig",
    "HealthConfig",
    "HttpReceiverConfig",
    "InlineConfig",
    "JoinConfig",
    "JournalConfig",
    "LimitsConfig",
    "OnlineConfig",
    "OtlpExportConfig",
    "PeriodConfig",
    "PrometheusConfig",
    "QueueConfig",
    "ReceiversConfig",
    "RedactionConfig",
    "RetrievalConfig",
    "SequenceTransformerConfig",
    "ServiceConfig",
    "ShadowConfig",
    "StoreConfig",
    "TlsConfig",
]


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
