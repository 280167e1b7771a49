"""Which model `sequence_transformer` has used since when, and taking a promoted one into use while the service runs.

How it works. The engine's thread calls `poll` several times a second. It looks at the file in which `spanchain models
promote` names a model; when that has changed, a thread tries the model out in a process of its own and loads it. The
next `poll` writes down, durably, from which epoch boundary on the model is used, and announces it to the engine, which
exchanges models there and nowhere else. A restart announces what is written down, so that every boundary that is
replayed sees the model that it saw the first time. A model that is refused is counted and logged; the old one goes on.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import structlog

from collector_processor.config import Config
from collector_processor.engine import Engine
from collector_processor.journal.wal import sync_directory
from collector_processor.model import Symbols
from collector_processor.training.registry import try_out
from detectors.sequence_transformer.promoted import PROMOTED, SHIPPED, ModelFile, described, in_use
from detectors.sequence_transformer.transformer import Transformer, load

LOG = structlog.get_logger(__name__)
DETECTOR = "sequence_transformer"
RECORD = "models.json"
ENTRIES_MAX = 256  # far more than there are changes between the older of two checkpoints and now


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that is in use from an epoch boundary on."""

    from_ns: int
    path: str
    name: str
    sha256: str

    @property
    def model(self) -> ModelFile:
        return ModelFile(Path(self.path), self.name, self.sha256)


class Reloader:
    """The models of one service. All methods are for the engine's thread, or for before it runs."""

    def __init__(self, models: Path, journal: Path) -> None:
        """models: the folder in which models are promoted. journal: that of the journal, where the record is kept.
        Without a record the model in use begins one; when that is broken, the one that ships with spanchain does.

        Raises:
            OSError, ValueError: there is no such folder, or the record cannot be read.
        """
        if not models.is_dir():
            raise FileNotFoundError(f"detectors.sequence_transformer.model: there is no folder {models}")
        self._models = models
        self._record = journal / RECORD
        self.taken = self.refused = 0
        self._seen: tuple[int, ...] | None = ()  # the file of the promotion as it was when last looked at
        self._trial: threading.Thread | None = None
        self._tried: tuple[ModelFile, Transformer] | None = None
        try:
            self._entries = [Entry(**entry) for entry in orjson.loads(self._record.read_bytes())]
        except FileNotFoundError:
            self._write([_entry(0, self._first())])
        except TypeError as error:
            raise ValueError(f"{self._record}: not a list of models and times: {error}") from error

    def _first(self) -> ModelFile:
        try:
            model = in_use(self._models)
            load(model.path, model.sha256)
        except (OSError, ValueError) as error:
            self._seen = self._promotion()  # counted once
            self._refuse(error)
            return described(SHIPPED)
        return model

    def announce(self, engine: Engine, boundary_ns: int = 0) -> None:
        """Gives a new `engine` the model that was in use before the boundary `boundary_ns`, which comes next (0: it
        begins anew), and announces those that followed. One that is gone or changed since is left out, and counted."""
        past = [entry for entry in self._entries if entry.from_ns < boundary_ns]
        loaded: dict[ModelFile, Transformer] = {}
        for entry in [*past[-1:], *self._entries[len(past) :]]:
            model = entry.model
            try:
                loaded[model] = loaded.get(model) or Transformer(model, engine.symbols)
            except (OSError, ValueError) as error:
                self._refuse(error)
                continue
            engine.change_model(DETECTOR, loaded[model], 0 if entry in past else entry.from_ns)

    def poll(self, engine: Engine) -> None:
        """Looks whether another model was promoted, and takes one into use that has been tried out."""
        if self._trial is not None and self._trial.is_alive():
            return
        if self._tried is not None:
            tried, self._tried = self._tried, None
            self._take(engine, *tried)
        present = self._promotion()
        if present != self._seen and engine.boundary_ns:
            self._seen = present
            self._trial = threading.Thread(target=self._try, args=(engine.symbols,), name="model-trial", daemon=True)
            self._trial.start()

    def _promotion(self) -> tuple[int, ...] | None:
        """What changes with every promotion; None while there is none."""
        try:
            found = (self._models / PROMOTED).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _try(self, symbols: Symbols) -> None:
        try:
            model = in_use(self._models)
            current = self._entries[-1]
            if (model.name, model.sha256) != (current.name, current.sha256):
                try_out(model.path, model.sha256)
                self._tried = model, Transformer(model, symbols)
        except (OSError, ValueError) as error:
            self._refuse(error)

    def _take(self, engine: Engine, model: ModelFile, transformer: Transformer) -> None:
        from_ns = engine.boundary_ns
        try:
            self._write([*self._entries, _entry(from_ns, model)][-ENTRIES_MAX:])
        except OSError as error:
            self._refuse(error)
            return
        engine.change_model(DETECTOR, transformer, from_ns)
        self.taken += 1
        LOG.info("another model is taken into use", model=transformer.name, from_ns=from_ns)

    def _refuse(self, error: Exception) -> None:
        self.refused += 1
        LOG.warning("a model is refused; the one before stays in use, or else the shipped one", error=str(error))

    def _write(self, entries: list[Entry]) -> None:
        """Keeps `entries`, all or none of them. Errors: OSError."""
        self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self._record.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            file.write(orjson.dumps([asdict(entry) for entry in entries], option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self._record)
        sync_directory(self._record.parent)
        self._entries = entries


def with_shipped_model(config: Config) -> Config:
    """The same, but for the model, which is the one that ships with spanchain."""
    section = config.detectors.sequence_transformer.model_copy(update={"model": "general"})
    detectors = config.detectors.model_copy(update={"sequence_transformer": section})
    return config.model_copy(update={"detectors": detectors})


def _entry(from_ns: int, model: ModelFile) -> Entry:
    return Entry(from_ns, str(model.path.absolute()), model.name, model.sha256)
