"""The folder of models: promoted only when it loads and helps, loaded only with its digest, rolled back in one step."""

from __future__ import annotations

import hashlib
import shutil
import struct
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from collector_processor.cli import app
from collector_processor.config import Config, RetrievalConfig
from collector_processor.model import Symbols
from collector_processor.training.registry import ModelError, promote, rollback, try_embedding, try_out, versions
from detectors.sequence_transformer import build
from detectors.sequence_transformer.promoted import SHIPPED, described, in_use
from detectors.sequence_transformer.tokens import FEATURES, LENGTH
from detectors.sequence_transformer.transformer import MODEL_BYTES_MAX, ModelRefusedError, load


def add(folder: Path, version: str, **facts: Any) -> Path:
    """The shipped model as a version of `folder`, its description changed by `facts`."""
    path = folder / version
    shutil.copytree(SHIPPED, path)
    description = orjson.loads((path / "model.json").read_bytes()) | facts
    (path / "model.json").write_bytes(orjson.dumps(description))
    return path


def test_an_empty_folder_has_no_versions(tmp_path: Path) -> None:
    assert versions(tmp_path / "none") == []
    with pytest.raises(ModelError, match="nothing is promoted"):
        rollback(tmp_path)


def test_the_digest_of_the_shipped_model_is_the_recorded_one() -> None:
    model = described(SHIPPED)
    load(model.path, model.sha256)
    assert model.path.stat().st_size <= 1_000_000


@pytest.mark.slow
def test_promote_and_roll_back(tmp_path: Path) -> None:
    add(tmp_path, "first")
    add(tmp_path, "second", name="other", nats_ngram=3.0, nats_with_model=2.5)
    promote(tmp_path, "first")
    promote(tmp_path, "second")
    assert [(v.version, v.current) for v in versions(tmp_path)] == [("first", False), ("second", True)]
    section = Config().detectors.sequence_transformer.model_copy(update={"model": str(tmp_path)})
    detectors = Config().detectors.model_copy(update={"sequence_transformer": section})
    assert "other" in build(Config().model_copy(update={"detectors": detectors}), Symbols()).version()
    assert rollback(tmp_path) == "first"
    assert in_use(tmp_path).name == "general"
    assert rollback(tmp_path) is None
    assert in_use(tmp_path) == described(SHIPPED), "as the command says"
    with pytest.raises(ModelError, match="nothing is promoted"):
        rollback(tmp_path)


def test_a_model_that_does_not_beat_the_n_grams_is_not_promoted(tmp_path: Path) -> None:
    add(tmp_path, "worse", nats_ngram=2.0, nats_with_model=2.1)
    with pytest.raises(ModelError, match="does not beat"):
        promote(tmp_path, "worse")
    assert versions(tmp_path)[0].current is False


@pytest.mark.parametrize("version", ["absent", "../elsewhere", ""])
def test_what_is_no_version_is_refused(tmp_path: Path, version: str) -> None:
    add(tmp_path, "there")
    with pytest.raises(ModelError, match="it has: there"):
        promote(tmp_path, version)


@pytest.mark.slow
def test_another_digest_is_refused(tmp_path: Path) -> None:
    path = add(tmp_path, "changed")
    data = bytearray((path / "model.onnx").read_bytes())
    data[-1] ^= 1
    (path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelRefusedError, match="SHA-256"):
        load(path / "model.onnx", described(path).sha256)
    with pytest.raises(ModelError, match="SHA-256"):
        promote(tmp_path, "changed")


def test_a_model_exchanged_after_its_promotion_is_refused(tmp_path: Path) -> None:
    """Even with a description that fits the new file: what counts is the digest at the time of the promotion."""
    path = add(tmp_path, "first")
    promoted = {"current": "first", "sha256": described(path).sha256, "earlier": []}
    (tmp_path / "promoted.json").write_bytes(orjson.dumps(promoted))
    (path / "model.json").write_bytes(orjson.dumps({"name": "evil", "sha256": "0" * 64}))
    assert in_use(tmp_path).sha256 == promoted["sha256"]


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x09" * 100])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelRefusedError):
        load(tmp_path / "model.onnx", hashlib.sha256(data).hexdigest())


def test_a_file_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(MODEL_BYTES_MAX + 1)
    with pytest.raises(ModelRefusedError, match="larger than"):
        load(tmp_path / "model.onnx", "")


@pytest.mark.slow
def test_the_trial_says_why_a_model_fails(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        try_out(tmp_path / "model.onnx", hashlib.sha256(b"nonsense").hexdigest())


@pytest.mark.parametrize("content", [b"[]", b"{}", b"{", b'{"current": "../x", "sha256": "0"}'])
def test_a_broken_promotion_is_an_error_and_not_another_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "promoted.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"promoted\.json"):
        in_use(tmp_path)


def part(number: int, content: bytes | str | int) -> bytes:
    """A field of a protobuf message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def about(name: str, kind: int, *dims: int | str) -> bytes:
    """A tensor that goes in or comes out. kind: of ONNX's types of elements. dims: sizes, or names of free ones."""
    shape = b"".join(part(1, part(2 if isinstance(dim, str) else 1, dim)) for dim in dims)
    return part(1, name) + part(2, part(1, part(1, kind) + part(2, shape)))


def node(operator: str, given: list[str], gives: str, attribute: bytes = b"") -> bytes:
    names = b"".join(part(1, name) for name in given) + b"".join(part(2, name) for name in gives.split())
    return part(1, names + part(4, operator) + attribute)


def model_of(graph: bytes) -> bytes:
    return part(1, 8) + part(7, graph) + part(8, part(1, "") + part(2, 17))


FLOAT, INT64, BOOL = 1, 7, 9
TOKENS, CANDIDATES = about("tokens", FLOAT, "n0", "n1", FEATURES), about("candidates", FLOAT, "n0", FEATURES)


def hostile(shape: bytes, rank: int = 2) -> bytes:
    """An ONNX model of the right inputs and outputs whose answer is as large as the tensor `shape` says."""
    graph = node("ConstantOfShape", ["shape"], "queries") + node("Identity", ["candidates"], "vectors") + part(2, "g")
    graph += part(5, part(8, "shape") + part(1, rank) + part(2, INT64) + shape)
    graph += part(11, TOKENS) + part(11, CANDIDATES)
    graph += part(12, about("queries", FLOAT, "n0", FEATURES)) + part(12, about("vectors", FLOAT, "n0", FEATURES))
    return model_of(graph)


def endless() -> bytes:
    """An ONNX model of the right inputs and outputs that goes round for ever: a Loop whose condition stays true."""
    body = node("Identity", ["on"], "still") + node("Identity", ["x"], "y") + part(2, "body")
    body += part(11, about("round", INT64)) + part(11, about("on", BOOL))
    body += part(11, about("x", FLOAT, "n0", "n1", FEATURES))
    body += part(12, about("still", BOOL)) + part(12, about("y", FLOAT, "n0", "n1", FEATURES))
    looping = part(5, part(1, "body") + part(6, body) + part(20, 5))
    graph = node("Loop", ["", "true", "tokens"], "queries", looping)
    graph += node("Identity", ["candidates"], "vectors") + part(2, "g")
    graph += part(5, part(2, BOOL) + part(8, "true") + part(9, b"\1")) + part(11, TOKENS) + part(11, CANDIDATES)
    graph += part(12, about("queries", FLOAT, "n0", "n1", FEATURES)) + part(12, about("vectors", FLOAT, "n0", FEATURES))
    return model_of(graph)


def refusal(folder: Path, model: bytes) -> str:
    """What the trial says of `model`, whose digest is right."""
    (folder / "model.onnx").write_bytes(model)
    with pytest.raises(ModelError) as raised:
        try_out(folder / "model.onnx", hashlib.sha256(model).hexdigest())
    return str(raised.value)


@pytest.mark.slow
def test_a_model_that_wants_all_memory_fails_in_its_trial_and_not_here(tmp_path: Path) -> None:
    small = refusal(tmp_path, hostile(part(9, (4).to_bytes(8, "little") * 2)))
    assert "answers of shape (4, 4)" in small  # it is a model, and runs
    huge = refusal(tmp_path, hostile(part(9, (1 << 20).to_bytes(8, "little") * 2)))
    assert "answers of shape" not in huge


@pytest.mark.slow
def test_a_model_that_computes_without_end_is_stopped(tmp_path: Path) -> None:
    model = endless()
    (tmp_path / "model.onnx").write_bytes(model)
    load(tmp_path / "model.onnx", hashlib.sha256(model).hexdigest())  # it is a model
    with pytest.raises(ModelError, match="computed for more than 3 s"):
        try_out(tmp_path / "model.onnx", hashlib.sha256(model).hexdigest(), cpu_s=3)


@pytest.mark.slow
@pytest.mark.parametrize("location", ["../secret", "secret", "/etc/passwd"])
def test_a_model_with_data_in_other_files_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes((4).to_bytes(8, "little") * 2)
    outside = part(13, part(1, "location") + part(2, location)) + part(14, 1)
    assert "cannot be loaded by itself" in refusal(tmp_path, hostile(outside))


@pytest.mark.slow
def test_a_model_that_answers_some_runs_only_is_refused(tmp_path: Path) -> None:
    """Right for one lane of full length, and for no other run of the detector."""
    fixed = b"".join(size.to_bytes(8, "little") for size in (1, LENGTH, FEATURES))
    assert f"answers of shape (1, {LENGTH}, {FEATURES})" in refusal(tmp_path, hostile(part(9, fixed), rank=3))


def sentence_model(value: float) -> bytes:
    """An ONNX model that looks each of three word pieces up in a table full of `value`."""
    table = part(1, 3) + part(1, 2) + part(2, FLOAT) + part(8, "table") + part(9, struct.pack("<f", value) * 6)
    graph = node("Gather", ["table", "input_ids"], "hidden") + part(2, "g") + part(5, table)
    graph += part(11, about("input_ids", INT64, 1, "n")) + part(12, about("hidden", FLOAT, 1, "n", 2))
    return model_of(graph)


@pytest.mark.slow
def test_an_embedding_model_goes_through_the_same_trial(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]")
    path = tmp_path / "model.onnx"

    def tried(model: bytes, digest: str | None = None) -> None:
        path.write_bytes(model)
        digest = digest or hashlib.sha256(model).hexdigest()
        try_embedding(RetrievalConfig(embedding_model=str(path), embedding_sha256=digest))

    tried(sentence_model(1.0))
    try_embedding(RetrievalConfig())
    with pytest.raises(ModelError, match="SHA-256"):
        tried(sentence_model(1.0), "0" * 64)
    with pytest.raises(ModelError, match="not finite"):
        tried(sentence_model(float("nan")))
    with pytest.raises(ModelError, match="can be loaded by itself"):
        tried(b"nonsense")


@pytest.mark.slow
def test_a_config_with_a_bad_embedding_model_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "spanchain.yaml").write_text("detectors:\n  retrieval:\n    embedding_model: /no/such/model.onnx\n")
    answer = CliRunner().invoke(app, ["validate", str(tmp_path / "spanchain.yaml")])
    assert answer.exit_code == 2
    assert "embedding_model: " in answer.stderr
    assert "/no/such/model.onnx" in answer.stderr
