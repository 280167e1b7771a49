"""`spanchain doctor`: is everything there that the service needs, and can it be reached?

How it works. Each check answers with a line: what was looked at, whether it is well, and what to do when it is not.
Nothing is changed; a check that needs a file writes it to the data folder and removes it again.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from collector_processor.config import Config
from collector_processor.ingest.auth import InsecureAddressError, check_addresses, host_and_port
from collector_processor.journal.checkpoint import read_checkpoint
from collector_processor.training.registry import try_out
from detectors.sequence_transformer.promoted import folder_of, in_use

PACKAGES = ("numpy", "numba", "protobuf", "grpcio", "opentelemetry-proto", "river", "onnxruntime", "prometheus-client")
REACH_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    what: str
    well: bool
    detail: str


def examine(config: Config, data: Path) -> Iterator[Finding]:
    """Every check in turn; a check that fails itself is a finding, not an error."""
    checks: tuple[Callable[[Config, Path], Iterator[Finding]], ...] = (
        _installation,
        _kernels,
        _folder,
        _model,
        _addresses,
        _sinks,
        _store,
    )
    for check in checks:
        try:
            yield from check(config, data)
        except Exception as error:  # noqa: BLE001 (what is broken here is what doctor is asked about)
            yield Finding(check.__name__.strip("_"), False, repr(error))  # noqa: FBT003


def _installation(_config: Config, _data: Path) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), python)
    for name in PACKAGES:
        try:
            yield Finding(name, well=True, detail=version(name))
        except PackageNotFoundError:
            yield Finding(name, well=False, detail="not installed; `make install` installs it")


def _kernels(_config: Config, _data: Path) -> Iterator[Finding]:
    from collector_processor.warmup import warm_up

    started = time.monotonic()
    chains = warm_up()
    took = time.monotonic() - started
    yield Finding("engine", chains > 0, f"{chains} chains judged; kernels ready in {took:.1f} s")


def _folder(config: Config, data: Path) -> Iterator[Finding]:
    there = next(folder for folder in (data, *data.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"spanchain")
    except OSError as error:
        yield Finding("data folder", well=False, detail=f"{there}: {error.strerror}")
        return
    yield Finding("data folder", well=True, detail=f"{data} can be {'written' if there == data else 'created'}")
    found = read_checkpoint(data / config.journal.dir)
    detail = "none yet" if found is None else f"at journal position {found[0]}"
    yield Finding("checkpoint", well=True, detail=detail)


def _model(config: Config, _data: Path) -> Iterator[Finding]:
    folder = folder_of(config)
    if folder is None:
        return
    try:
        model = in_use(folder)
        try_out(model.path, model.sha256)
    except (OSError, ValueError) as error:
        yield Finding("sequence model", well=False, detail=str(error))
    else:
        yield Finding("sequence model", well=True, detail=f"{model.name} of {folder}")


def _addresses(config: Config, _data: Path) -> Iterator[Finding]:
    try:
        check_addresses(config.receivers)
    except InsecureAddressError as error:
        yield Finding("receivers", well=False, detail=str(error))
    for name, endpoint in (
        ("OTLP over gRPC", config.receivers.grpc.endpoint),
        ("OTLP over HTTP", config.receivers.http.endpoint),
        ("metrics", f"{config.exporters.prometheus.host}:{config.exporters.prometheus.port}"),
        ("health", f"{config.service.health.host}:{config.service.health.port}"),
    ):
        host, port = host_and_port(endpoint)
        taken = _answers(host, port)
        yield Finding(
            name, well=not taken, detail=f"{endpoint} is {'taken: is spanchain running?' if taken else 'free'}"
        )


def _sinks(config: Config, _data: Path) -> Iterator[Finding]:
    exporters = config.exporters
    for name, enabled, where in (
        ("OTLP sink", exporters.otlp.enabled, exporters.otlp.endpoint),
        ("Alertmanager", exporters.alertmanager.enabled, exporters.alertmanager.url),
    ):
        if enabled:
            address = urlsplit(where if "//" in where else f"//{where}")
            port = address.port or (443 if address.scheme == "https" else 80)
            well = _answers(address.hostname or "", port)
            yield Finding(name, well, f"{where} {'answers' if well else 'does not answer'}")


def _store(config: Config, data: Path) -> Iterator[Finding]:
    if not config.exporters.store.enabled:
        return
    from exporters.store.reader import Reader, StoreError

    try:
        reader = Reader(config.exporters.store, data)
        reader.incidents(tenant=None, limit=1)
    except StoreError as error:
        yield Finding("store", well=False, detail=str(error))
    else:
        yield Finding("store", well=True, detail=f"{reader} can be read")
        reader.close()


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), REACH_S):
            return True
    except OSError:
        return False
