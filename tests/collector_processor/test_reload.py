"""Models exchanged while the service runs: at epoch boundaries only, the same again after a crash, never a bad one."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from otlp import MS, T0, span, traces
from sinks import eventually

from collector_processor.config import Config
from collector_processor.decide.verdicts import verdict_rows
from collector_processor.engine import Engine, Output
from collector_processor.model import Payload, Signal
from collector_processor.reload import DETECTOR, Entry, Reloader, with_shipped_model
from collector_processor.runtime import Service, StartError
from collector_processor.training.registry import promote
from detectors.sequence_transformer.promoted import SHIPPED
from detectors.sequence_transformer.transformer import Lanes

pytestmark = pytest.mark.slow  # models are tried out in processes of their own

SECOND = 1_000_000_000
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def config(models: Path | str = "general", **sections: Any) -> Config:
    """An epoch a second; nothing is learned within a test, so that values are the model's alone."""
    settings: dict[str, Any] = {
        "join": {
            "wait_initial_s": 0.4,
            "wait_min_s": 0.4,
            "wait_max_s": 0.4,
            "chains_max": 5000,
            "records_max": 50_000,
        },
        "engine": {"epoch_s": 1},
        "decide": {"quarantine_s": 3600},
        "detectors": {DETECTOR: {"model": str(models)}},
    }
    return Config.model_validate(settings | sections)


def payment(trace: int, start_ms: float) -> list[Any]:
    return [
        span(trace, 1, name="pay", start_ms=start_ms, ms=20),
        span(trace, 2, 1, name=f"debit {trace % 3}", service="ledger", start_ms=start_ms + 5),
    ]


@dataclass
class Constant:
    """A model by which everything is as improbable as its number says."""

    number: int

    @property
    def name(self) -> str:
        return f"constant-{self.number}"

    def probabilities(self, lanes: Lanes, _vocabulary: Any) -> Any:
        return np.full(lanes.events.size, np.exp(-1.0 - self.number / 100))


class Bench:
    """An engine with traffic, and what it said."""

    def __init__(self) -> None:
        self.engine = Engine(config())
        self.now_ns = T0
        self.traces = 0
        self.lines: list[bytes] = []
        self.values: dict[str, set[float]] = {}  # model -> values of chains that say it scored them

    def run(self, seconds: float) -> None:
        """Forty payments a second, in four payloads."""
        for _ in range(int(4 * seconds)):
            spans = [one for n in range(10) for one in payment(self.traces + n + 1, (self.now_ns - T0) / MS)]
            self.traces += 10
            self.now_ns += SECOND // 4
            payload = Payload(Signal.TRACES, "default", traces(*spans), self.now_ns)
            self.take(self.engine.process((payload,), self.now_ns))

    def take(self, output: Output) -> None:
        column = list(self.engine.detectors).index(DETECTOR)
        for verdicts in output.verdicts:
            values = verdicts.training["value"][:, column].round(6).tolist()
            self.values.setdefault(verdicts.models[DETECTOR], set()).update(values)
            rows = verdict_rows(verdicts, np.arange(len(verdicts)))
            self.lines += [orjson.dumps(row, option=orjson.OPT_SORT_KEYS) for row in rows]


@pytest.mark.slow
def test_hundreds_of_changes_under_load_lose_no_chain_and_mix_no_two_models() -> None:
    bench = Bench()
    bench.run(1)
    for number in range(200):
        bench.engine.change_model(DETECTOR, Constant(number), bench.engine.boundary_ns)
        bench.run(1)
    bench.take(bench.engine.flush())
    traces_seen = [json.loads(line)["trace_id"] for line in bench.lines]
    assert len(traces_seen) == len(set(traces_seen)) == bench.traces
    changed = [values for version, values in bench.values.items() if "constant" in version]
    assert all(len(values) == 1 for values in changed), "a verdict names the model that scored it"
    assert len(set().union(*changed)) == len(changed) == 200


@pytest.mark.parametrize("at", [3, 9, 12])
def test_a_restored_engine_changes_models_where_the_first_one_did(at: int) -> None:
    """The changes are announced anew; a restart right before, at and long after one makes no difference."""
    changes = {5: Constant(1), 11: Constant(2)}

    def lines(restart: int | None) -> list[bytes]:
        bench, announced = Bench(), list[tuple[int, Constant]]()
        for second in range(16):
            bench.run(1)
            if second == restart:
                state, boundary_ns = bench.engine.snapshot(), bench.engine.boundary_ns
                bench.engine = Engine(config())
                for from_ns, model in announced:
                    bench.engine.change_model(DETECTOR, model, from_ns if from_ns >= boundary_ns else 0)
                bench.engine.restore(state)
            if second in changes:
                announced.append((bench.engine.boundary_ns, changes[second]))
                bench.engine.change_model(DETECTOR, changes[second], bench.engine.boundary_ns)
        bench.take(bench.engine.flush())
        return bench.lines

    assert lines(at) == lines(None)


def test_a_change_in_a_long_silence_happens_at_its_boundary() -> None:
    """Whether the engine is asked ten times a second, or not before the next payload, as in a replay."""

    def lines(*, ticked: bool) -> list[bytes]:
        bench = Bench()
        bench.run(2)
        bench.take(bench.engine.tick(bench.now_ns + 2 * SECOND))
        at = bench.engine.boundary_ns + 1000 * SECOND
        bench.engine.change_model(DETECTOR, Constant(1), at)
        for _ in range(2000):
            bench.now_ns += SECOND
            if ticked:
                bench.take(bench.engine.tick(bench.now_ns))
        bench.run(2)
        bench.take(bench.engine.flush())
        return bench.lines

    assert lines(ticked=True) == lines(ticked=False)


# The folder of models, and the service


def version_in(folder: Path, version: str, shift: int = 0) -> None:
    """The shipped model as a version; with `shift` some of its weights are others."""
    shutil.copytree(SHIPPED, folder / version)
    data = bytearray((folder / version / "model.onnx").read_bytes())
    middle = len(data) // 2
    for at in range(middle, middle + 4000, 4):
        data[at] = (data[at] + shift) % 256
    (folder / version / "model.onnx").write_bytes(data)
    facts = {"name": version, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / version / "model.json").write_bytes(orjson.dumps(facts))


def polled(reloader: Reloader, engine: Engine) -> None:
    """One look, and what comes of it."""
    reloader.poll(engine)
    if reloader._trial is not None:
        reloader._trial.join()
    reloader.poll(engine)


@pytest.mark.slow
def test_a_promotion_is_taken_once_written_down_and_announced_again(tmp_path: Path) -> None:
    models, journal = tmp_path / "models", tmp_path / "journal"
    version_in(models, "first", 1)
    engine, reloader = Engine(config(models)), Reloader(models, journal)
    engine.tick(T0)
    polled(reloader, engine)
    assert (reloader.taken, reloader.refused) == (0, 0), "the shipped model serves until one is promoted"
    promote(models, "first")
    polled(reloader, engine)
    polled(reloader, engine)
    assert (reloader.taken, reloader.refused) == (1, 0)
    assert "general" in engine.detectors[DETECTOR].version(), "the epoch goes on with the model it began with"
    state = engine.snapshot()
    engine.tick(T0 + 2 * SECOND)
    assert "first" in engine.detectors[DETECTOR].version()
    for kept, then in ((state, "general"), (engine.snapshot(), "first")):
        again = Engine(config(models))
        Reloader(models, journal).announce(again, kept["boundary_ns"])
        again.restore(kept)
        assert then in again.detectors[DETECTOR].version()
        again.tick(T0 + 2 * SECOND)
        assert "first" in again.detectors[DETECTOR].version()


TRIED = [pytest.param(broken, marks=pytest.mark.slow) for broken in ("digest", "no model", "record")]


@pytest.mark.parametrize("broken", ["pointer", "gone", *TRIED])
def test_what_cannot_be_used_is_refused_and_the_old_model_goes_on(tmp_path: Path, broken: str) -> None:
    models, journal = tmp_path / "models", tmp_path / "journal"
    version_in(models, "bad")
    engine, reloader = Engine(config(models)), Reloader(models, journal)
    engine.tick(T0)
    before = engine.detectors[DETECTOR].version()
    digest = json.loads((models / "bad" / "model.json").read_bytes())["sha256"]
    if broken == "digest":
        digest = "0" * 64
    elif broken == "no model":
        (models / "bad" / "model.onnx").write_bytes(b"no model")
    elif broken == "gone":
        shutil.rmtree(models / "bad")
    elif broken == "record":
        shutil.rmtree(journal)
        journal.write_bytes(b"")  # where the folder should be
    text = b"{" if broken == "pointer" else orjson.dumps({"current": "bad", "sha256": digest, "earlier": []})
    (models / "promoted.json").write_bytes(text)
    polled(reloader, engine)
    polled(reloader, engine)
    engine.tick(T0 + 5 * SECOND)
    assert (reloader.taken, reloader.refused) == (0, 1)
    assert engine.detectors[DETECTOR].version() == before


def test_a_record_that_is_none_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_bytes(b"[1]")
    with pytest.raises(ValueError, match=r"models\.json"):
        Reloader(SHIPPED, tmp_path)


@pytest.mark.parametrize("broken", ["pointer", "model"])
def test_a_start_with_a_broken_promotion_goes_on_with_the_model_before_or_the_shipped_one(
    tmp_path: Path, broken: str
) -> None:
    models, journal = tmp_path / "models", tmp_path / "journal"
    version_in(models, "good", 1)
    version_in(models, "bad", 2)
    for version, before in (("good", "general"), ("bad", "good")):
        digest = json.loads((models / version / "model.json").read_bytes())["sha256"]
        whole = orjson.dumps({"current": version, "sha256": digest, "earlier": []})
        (models / "promoted.json").write_bytes(
            b"{" if broken == "pointer" else whole.replace(b'"sha256":"', b'"sha256":"0')
        )
        reloader = Reloader(models, journal)
        engine = Engine(with_shipped_model(config(models)))
        reloader.announce(engine)
        engine.tick(T0)
        polled(reloader, engine)
        assert before in engine.detectors[DETECTOR].version()
        assert (reloader.taken, reloader.refused) == (0, 1), "counted, and once"
        (models / "promoted.json").write_bytes(whole)
        reloader = Reloader(models, journal)
        reloader._write([Entry(0, str(models / version / "model.onnx"), version, digest)])


def test_a_folder_of_models_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        Reloader(tmp_path / "typo", tmp_path / "journal")
    with pytest.raises(StartError, match="no folder"):
        Service(config(tmp_path / "typo"), tmp_path / "data").start()


def verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    """Trace id -> its verdict."""
    path = folder / "verdicts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["trace_id"]: row for row in map(json.loads, (line for line in lines if line.endswith("}")))}


@pytest.mark.slow
def test_a_service_changes_over_without_a_restart_and_a_crash_replays_every_change(tmp_path: Path) -> None:
    models, first, second = tmp_path / "models", tmp_path / "a", tmp_path / "b"
    version_in(models, "one", 1)
    version_in(models, "two", 2)
    settings = config(
        models,
        receivers={"grpc": {"endpoint": "127.0.0.1:0"}, "http": {"endpoint": "127.0.0.1:0"}},
        exporters={"prometheus": {"port": 0}, "file": {"enabled": True, "verdicts": "all"}},
        service={"health": {"port": 0}},
    )
    service, sent = Service(settings, first), 0
    service.start()
    assert service.receivers is not None
    assert service.receivers.grpc is not None
    with grpc.insecure_channel(f"127.0.0.1:{service.receivers.grpc.port}") as channel:
        send = channel.unary_unary(TRACES)

        def pays_until(version: str) -> None:
            nonlocal sent

            def is_used() -> bool:
                nonlocal sent
                spans = [s for n in range(5) for s in payment(sent + n + 1, time.time() * 1000 - T0 / MS)]
                sent += 5
                send(traces(*spans), timeout=30)
                return any(version in verdict["models"][DETECTOR] for verdict in verdicts(first).values())

            assert eventually(is_used)

        pays_until("general")
        for version in ("one", "two"):
            promote(models, version)
            pays_until(version)
        (models / "promoted.json").write_bytes(b"nonsense")
        registry = service.telemetry.registry
        refused = {"outcome": "refused"}
        assert eventually(lambda: registry.get_sample_value("spanchain_model_changes_total", refused) == 1)
        assert registry.get_sample_value("spanchain_model_changes_total", {"outcome": "taken"}) == 2
        assert eventually(lambda: len(verdicts(first)) == sent)
        shutil.copytree(first, second)  # as the disk is at a crash, but for the verdicts: they are made anew
    service.stop()
    (second / "verdicts.jsonl").unlink()
    (models / "promoted.json").unlink()
    promote(models, "two")
    service = Service(settings, second)
    service.start()
    assert eventually(lambda: len(verdicts(second)) == sent)
    service.stop()
    assert verdicts(second) == verdicts(first)
    assert len({verdict["models"][DETECTOR] for verdict in verdicts(second).values()}) == 3
