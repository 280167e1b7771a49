"""Vectors of event texts: hashed by default, by a sentence model when one is configured, each text once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collector_processor.config import RetrievalConfig
from detectors.retrieval.detector import embedder
from detectors.retrieval.embedding import EventVectors, HashedEmbedder, OnnxEmbedder
from tests.extras import training

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "debit", "##ed", "account", "<", "*", ">", "mail"]


def sentence_model(folder: Path, inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> tuple[Path, str]:
    """A model that looks each piece up in a table: one-hot by piece, unpooled."""
    onnx = training("onnx")
    helper, tensor = onnx.helper, onnx.TensorProto
    table = onnx.numpy_helper.from_array(np.eye(len(VOCABULARY), dtype=np.float32), "table")
    given = [helper.make_tensor_value_info(name, tensor.INT64, [1, "n"]) for name in inputs]
    hidden = helper.make_tensor_value_info("hidden", tensor.FLOAT, [1, "n", len(VOCABULARY)])
    node = helper.make_node("Gather", ["table", inputs[0]], ["hidden"])
    graph = helper.make_graph([node], "sentences", given, [hidden], [table])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    (folder / "model.onnx").write_bytes(data)
    return folder / "model.onnx", hashlib.sha256(data).hexdigest()


def test_a_rare_word_weighs_more_than_one_that_all_texts_have() -> None:
    hashed = HashedEmbedder()
    for name in ("order", "basket", "ticket", "invoice", "seat"):
        hashed.embed(f"request for {name} received")
    common, rare = hashed.embed("request received"), hashed.embed("deadlock")
    both = hashed.embed("request received deadlock")
    assert both @ rare > both @ common


def made(vectors: EventVectors, events: list[int], texts: list[str]) -> Any:
    vectors.make(events, texts)
    return vectors.vectors[vectors.row_of[events]]


def test_each_text_is_embedded_once_and_the_number_of_vectors_is_bounded() -> None:
    vectors = EventVectors(HashedEmbedder(), limit=4)
    texts = [f"text number {i}" for i in range(20)]
    first = made(vectors, [1, 2, 1], texts)
    assert (first[0] == first[2]).all()
    assert vectors.embedder.texts == 2  # type: ignore[attr-defined]
    for event in range(20):
        vectors.make([event], texts)
    assert len(vectors.events) <= 4


def test_a_snapshot_takes_vectors_and_frequencies_along() -> None:
    one, other = EventVectors(HashedEmbedder(), 100), EventVectors(HashedEmbedder(), 100)
    texts = [f"word{i} received" for i in range(10)]
    one.make([0, 1, 2], texts)
    other.restore(one.snapshot())
    assert (made(one, [0, 5], texts) == made(other, [0, 5], texts)).all()


def test_a_sentence_model_is_used_when_configured(tmp_path: Path) -> None:
    path, digest = sentence_model(tmp_path)
    model = embedder(RetrievalConfig(embedding_model=str(path), embedding_sha256=digest))
    assert isinstance(model, OnnxEmbedder)
    assert model.tokens("Debited account") == [2, 4, 5, 6, 3]
    assert model.embed("debited account") @ model.embed("account debited") == pytest.approx(1.0)
    assert model.embed("debited account") @ model.embed("mail") < 0.8
    assert model.tokens("zebra")[1:-1] == [1]


def test_a_sentence_model_with_another_digest_or_other_inputs_is_refused(tmp_path: Path) -> None:
    path, _ = sentence_model(tmp_path)
    with pytest.raises(ValueError, match="SHA-256"):
        OnnxEmbedder(path, "0" * 64)
    path, digest = sentence_model(tmp_path, ("ids",))
    with pytest.raises(ValueError, match="ids"):
        OnnxEmbedder(path, digest)


def test_a_vocabulary_without_the_special_pieces_is_refused(tmp_path: Path) -> None:
    path, digest = sentence_model(tmp_path)
    (tmp_path / "vocab.txt").write_text("debit\n", encoding="utf-8")
    with pytest.raises(ValueError, match="CLS"):
        OnnxEmbedder(path, digest)
