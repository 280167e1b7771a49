"""An incident as an alert that a person can read in one glance: what broke, where, for whom, what to do.

How it works. Alertmanager knows an alert by its labels, so they stay what they were when the incident opened. Only the
severity follows, for pages are routed by it: the alert with the old one is ended and another begun. Everything else is
annotations. Links appear when the configuration knows where they lead.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from collector_processor.config import AlertmanagerConfig
from collector_processor.rows import sentences

ALERT_NAME = "SpanchainIncident"
LABEL_MAX = 256
TEXT_MAX = 4096


def alert(row: Mapping[str, Any], config: AlertmanagerConfig) -> dict[str, Any]:
    """The alert of the incident `row`: `labels`, `annotations`, `startsAt`, and `endsAt` when it is over."""
    subject = row["subject"]
    labels = {
        "alertname": ALERT_NAME,
        "incident": row["incident_id"],
        "tenant": row["tenant"],
        "kind": row["kind"],
        "category": row["category"],
        "severity": row["severity"],
        "service": subject.get("service"),
        "operation": subject.get("operation"),
        "instance": subject.get("instance"),
    }
    annotations = _annotations(row, config)
    out: dict[str, Any] = {
        "labels": {name: _text(value, LABEL_MAX) for name, value in labels.items() if value},
        "annotations": annotations,
        "startsAt": timestamp(row["opened_unix_nano"]),
    }
    if row["resolved_unix_nano"] is not None:
        out["endsAt"] = timestamp(row["resolved_unix_nano"])
    if "trace" in annotations:
        out["generatorURL"] = annotations["trace"]
    return out


def _annotations(row: Mapping[str, Any], config: AlertmanagerConfig) -> dict[str, str]:
    subject, explanation = row["subject"], row["explanation"]
    where = ", ".join(filter(None, (subject.get("service"), subject.get("operation"), subject.get("instance"))))
    chains = "1 transaction" if row["chains"] == 1 else f"{row['chains']:,} transactions"
    annotations = {
        "summary": f"{row['kind'].replace('_', ' ').capitalize()}: {where or ', '.join(row['flows'])} ({chains})",
        "description": _description(explanation),
        "suspects": ", ".join(" ".join(filter(None, (s["service"], s["operation"]))) for s in row["suspects"][:3]),
    }
    if config.runbook_url:
        annotations["runbook_url"] = f"{config.runbook_url}#{ALERT_NAME.lower()}"
    if config.trace_url and row["example_trace_ids"]:
        annotations["trace"] = config.trace_url.replace("{trace_id}", row["example_trace_ids"][0])
    return {name: _text(value, TEXT_MAX) for name, value in annotations.items() if value}


def _description(explanation: Mapping[str, Any]) -> str:
    """The four parts, one under the other."""
    parts = [sentences(explanation["trigger"]), sentences(explanation["context"])]
    if affected := sentences(explanation["affected"]):
        parts.append(f"Affected: {affected}.")
    if actions := sentences(explanation["actions"]):
        parts.append("What to do:\n" + "\n".join(f"- {action}" for action in actions.split("\n")))
    return "\n".join(part for part in parts if part)


def timestamp(unix_nano: int) -> str:
    """RFC 3339, milliseconds, UTC."""
    moment = datetime.fromtimestamp(unix_nano // 1_000_000 / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: str, length_max: int) -> str:
    text = value.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= length_max else text[: length_max - 1] + "…"
