"""The dashboard keeps the rules of Grafana's dashboard-linter, shows exemplars, asks only for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.board import board
from exporters.prometheus.metrics import METRICS, PREFIX

BOARD: dict[str, Any] = json.loads(board())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

panels = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
targets = pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{t}-{n}" for n, (t, _) in enumerate(TARGETS)])


def test_the_format_is_the_classic_one_and_nobody_edits_it_in_place() -> None:
    assert BOARD["schemaVersion"] == 42
    assert BOARD["editable"] is False
    assert BOARD["uid"]
    assert BOARD["title"]
    assert BOARD["description"]


def test_the_data_source_is_a_variable() -> None:
    variable = VARIABLES["datasource"]
    assert (variable["type"], variable["query"], variable["label"]) == ("datasource", "prometheus", "Data source")


@pytest.mark.parametrize("name", ["job", "instance"])
def test_jobs_and_instances_can_be_chosen(name: str) -> None:
    variable = VARIABLES[name]
    assert variable["type"] == "query"
    assert variable["datasource"] == SOURCE
    assert variable["multi"] is True
    assert variable["includeAll"] is True
    assert variable["allValue"] == ".+"
    assert variable["label"].lower() == name


def test_variables_follow_the_time_range() -> None:
    assert {v["refresh"] for v in VARIABLES.values() if v["type"] == "query"} == {2}


@panels
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == SOURCE
    assert panel["targets"]


def test_panels_and_queries_can_be_told_apart() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in PANELS:
        assert [target["refId"] for target in panel["targets"]] == list("ABCD"[: len(panel["targets"])])


def test_no_two_panels_have_one_title_or_one_place() -> None:
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    places = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not places & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells


@targets
def test_every_query_is_limited_to_the_chosen_jobs_and_instances(title: str, target: dict[str, Any]) -> None:
    assert target["datasource"] == SOURCE
    selectors = re.findall(r"(?:spanchain|process)_[a-z_]+(\{[^}]*\})?", target["expr"])
    assert selectors
    for selector in selectors:
        assert 'job=~"$job"' in selector
        assert 'instance=~"$instance"' in selector


@targets
def test_rates_follow_the_scrape_interval(title: str, target: dict[str, Any]) -> None:
    for window in re.findall(r"\[([^\]]*)\]", target["expr"]):
        assert window in {"$__rate_interval", "$__range"}
    for function in re.findall(r"\b(rate|increase|irate)\(", target["expr"]):
        assert function != "irate"


@targets
def test_queries_ask_only_for_metrics_that_exist(title: str, target: dict[str, Any]) -> None:
    for name in re.findall(r"\bspanchain_[a-z_0-9]+", target["expr"]):
        plain = name.removeprefix(PREFIX)
        for suffix in ("_bucket", "_count", "_sum"):
            if plain.removesuffix(suffix) in METRICS:
                plain = plain.removesuffix(suffix)
        assert plain in METRICS, name


@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if metric.exemplars])
def test_exemplars_are_shown_where_a_metric_carries_them(metric: str) -> None:
    assert any(PREFIX + metric in target["expr"] and target.get("exemplar") for _, target in TARGETS)


def test_exemplars_lead_to_traces(repository: Path) -> None:
    sources = yaml.safe_load((repository / "dashboards" / "datasources.yaml").read_text())["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    [prometheus] = [source for source in sources if source["type"] == "prometheus"]
    [destination] = prometheus["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["name"] == "trace_id"
    assert by_uid[destination["datasourceUid"]]["type"] == "tempo"
