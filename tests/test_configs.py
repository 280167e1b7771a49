"""Every configuration that is shipped is accepted by the program it is for, and says what its comments promise."""

from __future__ import annotations

import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from verdicts import incident, rows, verdicts

from collector_processor.config_file import load
from collector_processor.model import Symbols
from detectors.context.rules import Rules
from exporters.prometheus.telemetry import Telemetry
from exporters.store.exporter import StoreExporter
from exporters.store.reader import Reader
from tests.e2e.postgres import PASSWORD, Postgres

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
COLLECTOR = sorted([ROOT / "otel-collector.yaml", *CONFIGS.glob("collector-*.yaml")])
RULES = sorted(CONFIGS.glob("rules-*.yaml"))
SPANCHAIN = sorted([CONFIGS / "demo.yaml", *CONFIGS.glob("spanchain*.yaml")])
OTHERS = {CONFIGS / name for name in ("prometheus.yml", "alertmanager.yml", "vector.yaml")}


def name(path: Path) -> str:
    return path.name


def check(*command: str | Path) -> subprocess.CompletedProcess[str]:
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_every_shipped_configuration_is_checked_here() -> None:
    assert {path for path in CONFIGS.iterdir() if path.suffix in {".yaml", ".yml"}} <= {
        *COLLECTOR,
        *SPANCHAIN,
        *OTHERS,
        *RULES,
    }


@pytest.mark.e2e
@pytest.mark.parametrize("path", COLLECTOR, ids=name)
def test_the_collector_accepts(path: Path, collector: Path) -> None:
    done = check(collector, "validate", f"--config={path}")
    assert done.returncode == 0, done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("right", "wrong"), [("queue_size:", "queue_sise:"), ("exporters: [otlp_grpc/backend]", "exporters: [otlp_grpc/b]")]
)
def test_the_collector_would_refuse_a_slip(right: str, wrong: str, collector: Path, tmp_path: Path) -> None:
    text = (ROOT / "otel-collector.yaml").read_text()
    assert right in text
    (tmp_path / "slip.yaml").write_text(text.replace(right, wrong))
    assert check(collector, "validate", f"--config={tmp_path / 'slip.yaml'}").returncode != 0


@pytest.mark.parametrize("path", SPANCHAIN, ids=name)
def test_spanchain_accepts(path: Path) -> None:
    load(path)


@pytest.mark.e2e
def test_the_store_that_is_configured_is_filled(postgres: Postgres, tmp_path: Path) -> None:
    """As an operator has it: a role and a database, the password from the environment; then what is found is read."""
    with postgres.database() as database:
        environment = {
            "SPANCHAIN_STORE_URL": postgres.url(database, password=None),
            "SPANCHAIN_STORE_PASSWORD": PASSWORD,
        }
        config = load(CONFIGS / "spanchain-postgres.yaml", environment).exporters.store
        exporter = StoreExporter(config, tmp_path, tmp_path / "queues", rows(), Telemetry("1"))
        exporter.start()
        exporter.export(verdicts(3, 1), [incident(1)])
        exporter.shutdown(30)
        with closing(Reader(config, tmp_path)) as reader:
            [found] = reader.incidents(tenant="default")
        assert found["incident_id"] == incident(1).incident_id


@pytest.mark.e2e
def test_promtool_accepts_the_scrape_configuration(promtool: Path) -> None:
    done = check(promtool, "check", "config", CONFIGS / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
def test_amtool_accepts_the_routes(amtool: Path) -> None:
    done = check(amtool, "check-config", CONFIGS / "alertmanager.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "on-call"), ("warning", "on-call"), ("info", "nobody")]
)
def test_severities_are_routed(severity: str, receiver: str, amtool: Path) -> None:
    done = check(
        amtool, "config", "routes", "test", f"--config.file={CONFIGS / 'alertmanager.yml'}", f"severity={severity}"
    )
    assert done.stdout.split() == [receiver]


def pipelines(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["service"]["pipelines"]
    return found


def test_the_tee_has_no_loop_and_takes_nothing_from_the_backend() -> None:
    """What comes from spanchain never goes to spanchain; what goes to spanchain also goes to the backend."""
    for pipeline in pipelines(ROOT / "otel-collector.yaml").values():
        if "otlp/spanchain" in pipeline["receivers"]:
            assert "otlp_grpc/spanchain" not in pipeline["exporters"]
        assert "otlp_grpc/backend" in pipeline["exporters"]


def test_a_slow_spanchain_never_holds_up_the_backend_in_tee_mode() -> None:
    queue = yaml.safe_load((ROOT / "otel-collector.yaml").read_text())["exporters"]["otlp_grpc/spanchain"][
        "sending_queue"
    ]
    assert queue["block_on_overflow"] is False


def test_inline_mode_has_no_way_past_spanchain_and_drops_nothing() -> None:
    path = CONFIGS / "collector-inline.yaml"
    for name, pipeline in pipelines(path).items():
        to_spanchain = pipeline["receivers"] == ["otlp"] and name != "metrics"
        assert pipeline["exporters"] == ["otlp_grpc/spanchain" if to_spanchain else "otlp_grpc/backend"]
    for exporter in yaml.safe_load(path.read_text())["exporters"].values():
        assert exporter["sending_queue"]["block_on_overflow"] is True
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"


def test_inline_mode_sends_to_the_receiver_that_leads_to_the_backend() -> None:
    """Else everything would come back to spanchain, for ever."""
    otlp = load(CONFIGS / "spanchain-inline.yaml").exporters.otlp
    assert (otlp.enabled, otlp.mode) == (True, "inline")
    path = CONFIGS / "collector-inline.yaml"
    receivers = yaml.safe_load(path.read_text())["receivers"]
    address = receivers["otlp/spanchain"]["protocols"]["grpc"]["endpoint"].partition(":-")[2].rstrip("}")
    assert otlp.endpoint == f"http://{address}"
    for pipeline in pipelines(path).values():
        if "otlp/spanchain" in pipeline["receivers"]:
            assert pipeline["exporters"] == ["otlp_grpc/backend"]


@pytest.mark.parametrize("path", COLLECTOR, ids=name)
def test_towards_spanchain_requests_are_compressed_with_what_it_can_read(path: Path) -> None:
    for key, exporter in yaml.safe_load(path.read_text())["exporters"].items():
        if key.startswith("otlp_grpc/") and key != "otlp_grpc/backend":
            assert exporter["compression"] == "gzip"


def test_vector_sends_each_signal_to_its_address_as_otlp() -> None:
    config = yaml.safe_load((CONFIGS / "vector.yaml").read_text())
    assert config["sources"]["otel"]["use_otlp_decoding"] is True
    sent = {}
    for sink in config["sinks"].values():
        assert sink["type"] == "opentelemetry"
        assert sink["protocol"]["type"] == "http"
        assert sink["protocol"]["encoding"] == {"codec": "otlp"}
        [source] = sink["inputs"]
        sent[source] = sink["protocol"]["uri"].rpartition("4318")[2]
    assert sent == {"otel.traces": "/v1/traces", "otel.logs": "/v1/logs"}


@pytest.mark.parametrize("path", RULES, ids=name)
def test_spanchain_accepts_the_rules(path: Path) -> None:
    kept = sorted(set(re.findall(r"payment\.[a-z.]+", path.read_text())))
    assert Rules([str(path)], kept, Symbols()).rules
