"""Rules and runbooks: fresh, named by the conventions, complete for the on-call, right by promtool's own tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector_processor.model import Kind
from dashboards.alerts import TABLE, rules, runbooks
from dashboards.build import files
from exporters.prometheus.metrics import METRICS, PREFIX

CASES = Path(__file__).with_name("spanchain.rules.test.yaml")
ALERTS: list[dict[str, Any]] = rules()["groups"][1]["rules"]
RECORDINGS: list[dict[str, Any]] = rules()["groups"][0]["rules"]
NAMES = [alert["alert"] for alert in ALERTS]
SUFFIXES = ("_bucket", "_count", "_sum")


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in files()])
def test_what_is_made_is_fresh(path: Path) -> None:
    assert path.read_text() == files()[path], "run `make docs`"


@pytest.mark.e2e
def test_promtool_accepts_the_rules(promtool: Path, repository: Path) -> None:
    run(promtool, "check", "rules", repository / "dashboards" / "spanchain.rules.yaml")


@pytest.mark.e2e
def test_the_rules_do_what_they_say(promtool: Path) -> None:
    run(promtool, "test", "rules", CASES)


@pytest.mark.e2e
def test_a_slip_in_a_rule_would_be_seen(promtool: Path, repository: Path, tmp_path: Path) -> None:
    right = (repository / "dashboards" / "spanchain.rules.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(right.replace("ratio_rate5m > 0.01", "ratio_rate5m > 0.1"))
    (tmp_path / "cases.yaml").write_text(
        CASES.read_text().replace("../../dashboards/spanchain.rules.yaml", "wrong.yaml")
    )
    with pytest.raises(AssertionError, match="SpanchainRecordsRejected"):
        run(promtool, "test", "rules", tmp_path / "cases.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    cases = [
        case
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert any(case["exp_alerts"] for case in cases)
    # An incident is quiet where the other series of the same case is.
    assert name == "SpanchainIncidentOpen" or any(not case["exp_alerts"] for case in cases)


@pytest.mark.parametrize("rule", RECORDINGS, ids=lambda rule: rule["record"])
def test_recording_rules_are_named_level_metric_operations(rule: dict[str, Any]) -> None:
    level, metric, operations = rule["record"].split(":")
    assert level.startswith("job_instance")
    assert metric.startswith(PREFIX)
    assert re.fullmatch(r"(p99_|ratio_)?rate5m", operations)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alerts_say_what_an_on_call_engineer_needs(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Spanchain([A-Z][a-z]+)+", alert["alert"])
    severity = alert["labels"]["severity"]
    assert severity in {"critical", "warning", "info", "{{ $labels.severity }}"}
    annotations = alert["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert len(annotations["summary"]) < len(annotations["description"])
    anchor = annotations["runbook_url"].partition("#")[2]
    sections = [line[3:].lower() for line in runbooks().splitlines() if line.startswith("## ")]
    assert anchor in sections


def test_the_address_of_the_runbooks_can_be_put_in() -> None:
    made = rules("https://wiki.example/runbooks")["groups"][1]["rules"]
    assert made[0]["annotations"]["runbook_url"] == "https://wiki.example/runbooks#spanchainincidentopen"


@pytest.mark.parametrize("rule", [*RECORDINGS, *ALERTS], ids=lambda rule: rule.get("record") or rule["alert"])
def test_rules_ask_only_for_what_exists(rule: dict[str, Any]) -> None:
    recorded = {each["record"] for each in RECORDINGS}
    for name in re.findall(r"[a-z_0-9:]*spanchain_[a-z_0-9:]+", rule["expr"]):
        plain = name.removeprefix(PREFIX)
        for suffix in SUFFIXES:
            if plain.removesuffix(suffix) in METRICS and METRICS[plain.removesuffix(suffix)].kind == "histogram":
                plain = plain.removesuffix(suffix)
        assert name in recorded or plain in METRICS, name


def test_the_runbook_of_incidents_knows_every_kind() -> None:
    [incident] = [alert for alert in TABLE["alerts"] if alert["alert"] == "SpanchainIncidentOpen"]
    text = " ".join(incident["steps"])
    assert [kind.name for kind in Kind if f"`{kind.name.lower()}`" not in text] == []


def test_every_runbook_says_what_to_do() -> None:
    for alert in TABLE["alerts"]:
        assert len(alert["steps"]) >= 2
        assert alert["meaning"].endswith(".")
