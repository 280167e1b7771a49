"""Training (the `train` extra): the ONNX file is the network, training helps, and a recording becomes a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.extras import training as needed

torch = needed("torch")
needed("onnx")

from collector_processor.config import Config  # noqa: E402 - only where PyTorch is
from collector_processor.simulator.recording import record  # noqa: E402
from collector_processor.training import train as training  # noqa: E402
from collector_processor.training.fit import fit, held_out_nats, prepare  # noqa: E402
from collector_processor.training.general import main as build_general  # noqa: E402
from collector_processor.training.network import Network, write  # noqa: E402
from collector_processor.training.registry import promote, versions  # noqa: E402
from collector_processor.training.synthetic import make_system  # noqa: E402
from detectors.sequence_transformer.promoted import SHIPPED, described  # noqa: E402
from detectors.sequence_transformer.tokens import FEATURES  # noqa: E402
from detectors.sequence_transformer.transformer import load  # noqa: E402


def test_the_file_computes_what_the_network_computes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Network()
    digest = write(network, tmp_path / "model.onnx")
    assert write(network, tmp_path / "again.onnx") == digest
    session: onnxruntime.InferenceSession = load(tmp_path / "model.onnx", digest)
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(3, 11, FEATURES)).astype(np.float32)
    candidates = rng.normal(size=(7, FEATURES)).astype(np.float32)
    queries, vectors = session.run(["queries", "vectors"], {"tokens": tokens, "candidates": candidates})
    with torch.no_grad():
        expected = network(torch.from_numpy(tokens), torch.from_numpy(candidates))
    assert np.allclose(queries, expected[0].numpy(), atol=1e-4)
    assert np.allclose(vectors, expected[1].numpy(), atol=1e-4)


def test_what_was_written_can_be_read_back(tmp_path: Path) -> None:
    network = training.read(SHIPPED / "model.onnx")
    assert write(network, tmp_path / "model.onnx") == described(SHIPPED).sha256


def test_a_step_sees_nothing_of_what_comes_after_it() -> None:
    torch.manual_seed(2)
    network = Network().eval()
    tokens = torch.randn(1, 9, FEATURES)
    changed = tokens.clone()
    changed[0, 5:] += 1.0
    with torch.no_grad():
        one, two = network(tokens, tokens[0])[0], network(changed, tokens[0])[0]
    assert torch.allclose(one[0, :5], two[0, :5])
    assert not torch.allclose(one[0, 5:], two[0, 5:])


@pytest.mark.slow
def test_training_lowers_what_is_held_out() -> None:
    systems = [prepare(make_system(seed)) for seed in range(8)]
    before = held_out_nats(Network(), systems)
    network = fit(systems, steps=250, seed=1)
    assert held_out_nats(network, systems) < before - 1.0


@pytest.mark.slow
def test_a_seed_gives_one_model(tmp_path: Path) -> None:
    build_general(tmp_path / "one", systems=4, steps=20)
    build_general(tmp_path / "two", systems=4, steps=20)
    assert described(tmp_path / "one").sha256 == described(tmp_path / "two").sha256


def test_frequent_events_are_masked_more_and_rare_ones_weigh_more() -> None:
    system = make_system(5)
    part = prepare(system)
    count = np.zeros(len(system.texts))
    for _, _, events, weight in system.lanes:
        np.add.at(count, np.array(events, np.int64), np.sqrt(weight))
    often, rare = int(np.argmax(count)), int(np.argmin(count))
    assert part.masked[often] > part.masked[rare]
    assert part.rarity[rare] > part.rarity[often]


@pytest.mark.slow
def test_a_recording_becomes_a_model_that_can_be_promoted(tmp_path: Path) -> None:
    """Ten minutes of the simulated platform: its lanes are learned, and what is held out gets more probable."""
    record(tmp_path / "recording", hours=0.17, seed=3, faults=())
    facts = training.train([tmp_path / "recording"], tmp_path / "models", Config(), steps=300)
    assert facts["lanes"] >= training.LANES_MIN
    assert facts["nats_with_model"] < facts["nats_ngram"]
    promote(tmp_path / "models", facts["version"])
    assert [v.current for v in versions(tmp_path / "models")] == [True]


def test_a_recording_with_too_little_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "recording", hours=0.01, seed=3, faults=())
    monkeypatch.setattr(training, "LANES_MIN", 1_000_000)
    with pytest.raises(training.TooLittleError, match="at least 1000000"):
        training.train([tmp_path / "recording"], tmp_path / "models", Config(), steps=1)
