"""The folder of models: what is in it, which one is in use, and taking one into use or back out.

How it works. A version is a folder (`detectors/sequence_transformer/promoted.py` shows the layout). `promote` takes a
model only when it loads: ONNX, complete in itself, with the digest that its description gives, tried in a process of
its own with little memory and time. It writes down that digest, and from then on nothing else is loaded in its place.
The file is written beside the old one and renamed, so that a reader sees one or the other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from collector_processor.config import RetrievalConfig
from collector_processor.training.trial import EMBEDDING, SEQUENCE
from detectors.sequence_transformer.promoted import DESCRIPTION, PROMOTED, described

TRIAL_S = 60.0
TRIAL_CPU_S = 20
EARLIER_MAX = 20


class ModelError(ValueError):
    """A model that cannot be promoted, or a folder with nothing to roll back to; the message says why."""


@dataclass(frozen=True, slots=True)
class Version:
    """One model of the folder."""

    version: str
    current: bool


def versions(folder: Path) -> list[Version]:
    """The models in `folder` by name; empty when there is no such folder.

    Raises:
        ModelError: it cannot be told which one is in use.
    """
    current = _promoted(folder).get("current")
    found = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    return [Version(path.name, path.name == current) for path in found]


def promote(folder: Path, version: str, *, force: bool = False) -> None:
    """Takes `version` into use; a service that runs notices it. force: even if it was no better than the n-gram model.

    Raises:
        ModelError: there is no such version, it does not load, or it did not beat the n-gram model.
    """
    path = folder / version
    if Path(version).name != version or not (path / DESCRIPTION).exists():
        known = ", ".join(entry.version for entry in versions(folder)) or "none"
        raise ModelError(f"{folder} has no version {version!r}; it has: {known}")
    try:
        model = described(path)
        facts = orjson.loads((path / DESCRIPTION).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(str(error)) from error
    alone, together = facts.get("nats_ngram"), facts.get("nats_with_model")
    if not force and alone is not None and together is not None and not together < alone:
        raise ModelError(f"{version} does not beat the n-gram model: {together} against {alone} nats an event")
    try_out(model.path, model.sha256)
    before = _promoted(folder)
    earlier = [*before.get("earlier", []), *([before["current"]] if "current" in before else [])]
    _write(folder, {"current": version, "sha256": model.sha256, "earlier": earlier[-EARLIER_MAX:]})


def rollback(folder: Path) -> str | None:
    """Goes back to the version before; answers it, or None when that was the shipped model.

    Raises:
        ModelError: nothing is promoted, or the version before no longer loads.
    """
    before = _promoted(folder)
    if "current" not in before:
        raise ModelError(f"nothing is promoted in {folder}")
    earlier = before.get("earlier", [])
    if not earlier:
        (folder / PROMOTED).unlink()
        return None
    version = str(earlier[-1])
    model = described(folder / version)
    try_out(model.path, model.sha256)
    _write(folder, {"current": version, "sha256": model.sha256, "earlier": earlier[:-1]})
    return version


def try_embedding(config: RetrievalConfig) -> None:
    """Tries out the sentence-embedding model that `config` names, which no promotion has tried.

    Raises:
        ModelError: as `try_out`.
    """
    if config.embedding_model is not None:
        try_out(Path(config.embedding_model), config.embedding_sha256, EMBEDDING)


def try_out(path: Path, sha256: str, kind: str = SEQUENCE, cpu_s: int = TRIAL_CPU_S) -> None:
    """Loads and runs the model in a process with limited memory and time. kind: one of `trial.KINDS`. cpu_s: seconds
    of CPU time that it may take.

    Raises:
        ModelError: it is refused, fails or takes too long.
    """
    command = [sys.executable, "-m", "collector_processor.training.trial", kind, str(path), sha256, str(cpu_s)]
    root = str(Path(__file__).parents[2])
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{path}: the trial took longer than {TRIAL_S:.0f} s") from error
    if done.returncode in {-signal.SIGKILL, -signal.SIGXCPU}:
        raise ModelError(f"{path}: the trial was killed: it computed for more than {cpu_s} s, or took all memory")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"the trial ended with {done.returncode}"])[-1]
        raise ModelError(f"{path}: {said}")


def _promoted(folder: Path) -> dict[str, Any]:
    try:
        found = orjson.loads((folder / PROMOTED).read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{folder / PROMOTED}: not what `models promote` writes")
    return found


def _write(folder: Path, content: dict[str, Any]) -> None:
    temporary = folder / f"{PROMOTED}.new"
    with temporary.open("wb") as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / PROMOTED)
