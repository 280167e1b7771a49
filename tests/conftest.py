"""What tests share: the labelled recordings, the real components, free ports, and processes that end with their test.

How it works. What is not on the machine makes a test skip with the reason and the remedy. Under `CI` a missing
component is a failure instead; the labelled recordings may be absent there too: they are not part of the repository.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.e2e import components
from tests.e2e.postgres import Postgres
from tests.e2e.processes import Processes
from tests.e2e.site import Binaries

ROOT = Path(__file__).parents[1]

# What is imported and collected stays until the end: the collector of garbage need not look at it again and again.
gc.disable()

# Where tests start servers that fill a machine; and where each reads a recording or a set of its own for long.
SERVERS = ("tests/e2e/", "tests/soak/", "tests/dashboards/test_queries.py", "tests/test_service_unit.py")
APART = ("test_recordings_changed.py", "test_sequence_sets.py", "test_long_runs.py")

# No deadline: a busy machine is no defect. `make check` takes the quick profile, `make test` the whole one.
settings.register_profile("whole", deadline=None, print_blob=True)
settings.register_profile("quick", parent=settings.get_profile("whole"), max_examples=20)
settings.load_profile("whole")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the labelled recordings: SPANCHAIN_DATA, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("SPANCHAIN_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "recordings").is_dir():
        pytest.skip(f"no labelled recordings in {folder}; set SPANCHAIN_DATA to the folder that holds recordings/")
    return folder


def company(nodeid: str) -> str:
    """The name of those whom a test runs together with, one after the other, where tests run on several cores."""
    path = nodeid.partition("::")[0]
    if path.startswith(SERVERS):
        return "servers"
    return nodeid if path.endswith(APART) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Whoever is free takes the next company, in the order of collection."""

    class Companies(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return company(nodeid)

    config.option.loadscopereorder = False
    return Companies(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Servers come first, since they take longest. The tests of training come last: they need PyTorch, which nothing
    else should have loaded beside it."""
    items.sort(key=lambda item: (item.path.name == "test_train.py", not item.nodeid.startswith(SERVERS)))


def pytest_collection_finish() -> None:
    """From here on garbage is collected as ever, but for what the tests themselves are made of."""
    gc.collect()
    gc.freeze()
    gc.enable()


def component(name: str) -> Path:
    """The executable of component `name`; without it the test fails in CI, and skips elsewhere."""
    path = components.find(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(components.advice(name))
        pytest.skip(components.advice(name))
    return path


@pytest.fixture(scope="session")
def collector() -> Path:
    """The OpenTelemetry Collector built from `tests/e2e/collector/manifest.yaml`."""
    return component("collector")


@pytest.fixture(scope="session")
def telemetrygen() -> Path:
    """OpenTelemetry's own load generator."""
    return component("telemetrygen")


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """The Prometheus server."""
    return component("prometheus")


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' checker of rules and configurations."""
    return component("promtool")


@pytest.fixture(scope="session")
def alertmanager() -> Path:
    """The Alertmanager server."""
    return component("alertmanager")


@pytest.fixture(scope="session")
def amtool() -> Path:
    """Alertmanager's checker of configurations."""
    return component("amtool")


@pytest.fixture(scope="session")
def bubblewrap() -> Path:
    """The command that runs a program without root, on a root that it cannot write to."""
    return component("bwrap")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL."""
    with Postgres(component("postgres"), component("initdb")) as server:
        yield server


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts programs that are ended when the test is over; their output is in files under `tmp_path`."""
    with Processes(tmp_path) as started:
        yield started


@pytest.fixture(scope="session")
def soak_s() -> Callable[[float], float]:
    """Seconds that a long test runs: its own short form, or `SPANCHAIN_SOAK_S` (3600) under `make soak`."""

    def seconds(short: float) -> float:
        return float(os.environ.get("SPANCHAIN_SOAK_S", "3600")) if os.environ.get("SPANCHAIN_SOAK") else short

    return seconds


@pytest.fixture(scope="session")
def binaries(collector: Path, prometheus: Path, alertmanager: Path) -> Binaries:
    """The servers of a whole site."""
    return Binaries(collector, prometheus, alertmanager)
