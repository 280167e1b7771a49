"""The table `alerts.yaml` as a rule file for Prometheus and as a page of runbooks, to which each alert links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TABLE: dict[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
RUNBOOKS = "docs/runbooks.md"  # `build.py --runbooks ADDRESS` puts the address of yours in its place


def rules(runbooks_at: str = RUNBOOKS) -> dict[str, Any]:
    """The rule file; `runbooks_at` is the address of the page that `runbooks()` is."""
    alerts = []
    for alert in TABLE["alerts"]:
        rule = {"alert": alert["alert"], "expr": alert["expr"], "for": alert["for"]}
        rule["labels"] = {"severity": alert["severity"]}
        rule["annotations"] = {
            "summary": alert["summary"],
            "description": alert["description"],
            "runbook_url": f"{runbooks_at}#{alert['alert'].lower()}",
        }
        alerts.append(rule)
    recording = {"name": "spanchain.rules", "rules": TABLE["recording"]}
    return {"groups": [recording, {"name": "spanchain.alerts", "rules": alerts}]}


def runbooks() -> str:
    """The page: a section for each alert, and one for the page that spanchain sends itself."""
    return "\n".join([INTRODUCTION, *(_section(alert) for alert in TABLE["alerts"]), DIRECT])


def _section(alert: dict[str, Any]) -> str:
    severity = "as the incident's" if "{{" in alert["severity"] else alert["severity"]
    hold = "" if alert["for"] == "0s" else f" for {alert['for']}"
    steps = [f"{number}. {step}" for number, step in enumerate(alert["steps"], 1)]
    lines = [f"## {alert['alert']}", "", alert["meaning"], "", *steps, ""]
    return "\n".join([*lines, f"Severity: {severity}. Fires on `{alert['expr']}`{hold}.", ""])


INTRODUCTION = """# Runbooks

What each alert means and what to do about it. Made by `python -m dashboards.build` from `dashboards/alerts.yaml`, as
are the rules in `dashboards/spanchain.rules.yaml`.
"""

DIRECT = """## SpanchainIncident

The page that spanchain sends to Alertmanager itself (`exporters.alertmanager`), without a Prometheus rule. It says the
same as [SpanchainIncidentOpen](#spanchainincidentopen) and carries the whole explanation in its description: read that
first, then open the trace it links to. Use one of the two, or every incident pages twice.
"""
