"""The network that is trained (PyTorch, the `train` extra), and the same network written down as ONNX.

How it works. A causal Transformer with pre-normalisation reads the features of a lane and answers one query per
position; a small perceptron turns the features of candidates into vectors; products of the two are logits. `write`
builds the ONNX graph by hand from the weights: no exporter, no tracing, one file without external data, the same bytes
for the same weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from detectors.sequence_transformer.tokens import FEATURES, LENGTH

WIDTH, HEADS, BLOCKS = 64, 4, 2
OPSET = 20


class Block(nn.Module):  # type: ignore[misc]  # PyTorch may be absent where types are checked
    """Attention and perceptron, each after a normalisation and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5 + mask, dim=-1)
        x = x + self.mix((weights @ v).transpose(1, 2).reshape(batch, n, WIDTH))
        out: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return out


class Network(nn.Module):  # type: ignore[misc]
    """tokens [b, n <= LENGTH, FEATURES], candidates [m, FEATURES] -> queries [b, n, WIDTH], vectors [m, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(FEATURES, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.vector1, self.vector2 = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.triu(torch.full((LENGTH, LENGTH), -1e9), 1))

    def forward(self, tokens: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = tokens.shape[1]
        x = self.enter(tokens) + self.position[:n]
        for block in self.blocks:
            x = block(x, self.mask[:n, :n])
        return self.query(self.norm(x)), self.vector2(nn.functional.gelu(self.vector1(candidates)))


class Graph:
    """An ONNX graph in the making."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = {name: value.detach().cpu().numpy().astype(np.float32) for name, value in state.items()}
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, value: Any) -> str:
        """A named initializer."""
        self.constants[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The output of a new node."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, layer: str) -> str:
        """x W^T + b of a torch.nn.Linear."""
        weight = self.constant(f"{layer}.weight", self.state[f"{layer}.weight"].T)
        bias = self.constant(f"{layer}.bias", self.state[f"{layer}.bias"])
        return self.add("Add", self.add("MatMul", x, weight), bias)

    def norm(self, x: str, layer: str) -> str:
        """LayerNorm over the last axis."""
        parts = [self.constant(f"{layer}.{name}", self.state[f"{layer}.{name}"]) for name in ("weight", "bias")]
        return self.add("LayerNormalization", x, *parts, axis=-1, epsilon=1e-5)

    def block(self, x: str, layer: str, mask: str) -> str:
        """A Block."""
        qkv = self.linear(self.norm(x, f"{layer}.norm1"), f"{layer}.qkv")
        split = self.add("Reshape", qkv, self.constant("split", np.array([0, 0, 3, HEADS, WIDTH // HEADS], np.int64)))
        turned = self.add("Transpose", split, perm=[2, 0, 3, 1, 4])
        q, k, v = (
            self.add("Gather", turned, self.constant(f"part{i}", np.array(i, np.int64)), axis=0) for i in range(3)
        )
        scale = self.constant("scale", np.array((WIDTH // HEADS) ** -0.5, np.float32))
        products = self.add("Mul", self.add("MatMul", q, self.add("Transpose", k, perm=[0, 1, 3, 2])), scale)
        weights = self.add("Softmax", self.add("Add", products, mask), axis=-1)
        joined = self.add("Transpose", self.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        flat = self.add("Reshape", joined, self.constant("join", np.array([0, 0, WIDTH], np.int64)))
        x = self.add("Add", x, self.linear(flat, f"{layer}.mix"))
        inner = self.add("Gelu", self.linear(self.norm(x, f"{layer}.norm2"), f"{layer}.up"))
        return self.add("Add", x, self.linear(inner, f"{layer}.down"))

    def of_network(self) -> Any:
        """The ONNX model of a Network."""
        n = self.add("Slice", self.add("Shape", "tokens"), *(self.constant(f"i{i}", np.array([i])) for i in (1, 2)))
        zero = self.constant("zero", np.array([0]))
        position = self.constant("position", self.state["position"])
        mask = self.constant("mask", self.state["mask"])
        x = self.add("Add", self.linear("tokens", "enter"), self.add("Slice", position, zero, n, zero))
        square = self.add("Slice", self.add("Slice", mask, zero, n, zero), zero, n, self.constant("one", np.array([1])))
        for number in range(BLOCKS):
            x = self.block(x, f"blocks.{number}", square)
        queries = self.linear(self.norm(x, "norm"), "query")
        vectors = self.linear(self.add("Gelu", self.linear("candidates", "vector1")), "vector2")
        for name, made in (("queries", queries), ("vectors", vectors)):
            self.nodes.append(helper.make_node("Identity", [made], [name]))
        graph = helper.make_graph(
            self.nodes,
            "lanes",
            [
                helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", "length", FEATURES]),
                helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["events", FEATURES]),
            ],
            [
                helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["batch", "length", WIDTH]),
                helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["events", WIDTH]),
            ],
            [self.constants[name] for name in sorted(self.constants)],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def write(network: Network, path: Path) -> str:
    """Writes the ONNX file; answers its SHA-256 in hex."""
    model = Graph(network.state_dict()).of_network()
    onnx.checker.check_model(model)
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
