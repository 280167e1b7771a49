"""Which model of a folder is in use: what `spanchain models promote` writes, and the detector and the service read.

FOLDER/promoted.json        {"current": VERSION, "sha256": ..., "earlier": [VERSION, ...]}
FOLDER/VERSION/model.onnx
FOLDER/VERSION/model.json   name, sha256, what it was trained on and how it did
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from collector_processor.config import Config

MODEL, DESCRIPTION, PROMOTED = "model.onnx", "model.json", "promoted.json"
SHIPPED = Path(__file__).parent / "general"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that may be loaded: only if its SHA-256 is this one."""

    path: Path
    name: str
    sha256: str


def described(folder: Path) -> ModelFile:
    """The model that lies in `folder` itself.

    Raises:
        OSError: there is no description.
        ValueError: it is not one.
    """
    try:
        found = orjson.loads((folder / DESCRIPTION).read_bytes())
        return ModelFile(folder / MODEL, str(found["name"]), str(found["sha256"]))
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(f"{folder / DESCRIPTION}: not the description of a model: {error}") from error


def in_use(folder: Path) -> ModelFile:
    """The promoted model of `folder`, with the digest it was promoted with; as long as none is promoted, the one that
    lies in it directly, or else the shipped one.

    Raises:
        OSError, ValueError: there is no such folder, or as `described`.
    """
    if not (folder / PROMOTED).exists():
        if folder.is_dir() and not (folder / DESCRIPTION).exists():
            return described(SHIPPED)
        return described(folder)
    try:
        promoted = orjson.loads((folder / PROMOTED).read_bytes())
        version, sha256 = str(promoted["current"]), str(promoted["sha256"])
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(f"{folder / PROMOTED}: not what `models promote` writes: {error}") from error
    if Path(version).name != version:
        raise ValueError(f"{folder / PROMOTED}: {version!r} is not the name of a version")
    model = described(folder / version)
    return ModelFile(model.path, model.name, sha256)


def folder_of(config: Config) -> Path | None:
    """The folder in which models are promoted for the detector; None when it uses the shipped one, or none."""
    model = config.detectors.sequence_transformer.model
    return None if model in {"none", "general"} else Path(model)
