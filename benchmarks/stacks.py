"""Stacks of equal layers as ONNX files, dense and in other forms: what benchmarks/kernel.py measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
Build = Callable[["Graph", ir.Value, "Weights"], ir.Value]


@dataclass(frozen=True)
class Shape:
    """A layer. Active are `shared` rows and top_k of the experts; the router reads as many coordinates as there are experts.

    threshold: experts are chosen by a threshold (as many as top_k) instead of top-k.
    """

    hidden: int
    neurons: int
    experts: int
    top_k: int
    gated: bool = False
    shared: int = 0
    rank: int = 0
    threshold: bool = False

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def dense_bytes(self) -> int:
        return 4 * self.matrices * self.hidden * self.neurons

    @property
    def active(self) -> float:
        """The part of the dense layer's weights that a token uses, router and low-rank term included."""
        rows = self.shared + self.top_k * (self.neurons - self.shared) // self.experts
        used = self.matrices * rows + self.experts + 2 * self.rank
        return used / (self.matrices * self.neurons)


@dataclass(frozen=True, eq=False)
class Weights:
    """Of one layer, neuron-major as in docs/moe-layer.md; router [hidden, experts]."""

    shape: Shape
    up: Array
    down: Array
    gate: Array
    router: Array
    low_rank_in: Array
    low_rank_out: Array


def draw(shape: Shape, rng: np.random.Generator) -> Weights:
    """Normal weights. The first `experts` coordinates pass every layer unchanged and are the scores, so that whoever makes
    the input decides who is chosen in all layers."""

    def normal(*dims: int, scale: float) -> Array:
        return rng.standard_normal(dims, dtype=np.float32) * np.float32(scale)

    d, n, e = shape.hidden, shape.neurons, shape.experts
    down, low_rank_out = normal(n, d, scale=0.3 * n**-0.5), normal(shape.rank, d, scale=0.3)
    down[:, :e] = 0
    low_rank_out[:, :e] = 0
    up, gate = normal(n, d, scale=d**-0.5), normal(n if shape.gated else 0, d, scale=d**-0.5)
    router = np.zeros((d, e), dtype=np.float32)
    router[rng.permutation(e), np.arange(e)] = 1
    return Weights(shape, up, down, gate, router, normal(shape.rank, d, scale=d**-0.5), low_rank_out)


def inputs(shape: Shape, tokens: int, rng: np.random.Generator) -> Array:
    """x [tokens, hidden] whose choices load the experts evenly, up to one token."""
    x = rng.standard_normal((tokens, shape.hidden), dtype=np.float32)
    scores = rng.uniform(-1, 0, (tokens, shape.experts))
    waiting: list[int] = []  # experts in random order, round after round
    for t in range(tokens):
        chosen: list[int] = []
        while len(chosen) < shape.top_k:
            if not set(waiting) - set(chosen):
                waiting += rng.permutation(shape.experts).tolist()
            chosen.append(next(e for e in waiting if e not in chosen))
            waiting.remove(chosen[-1])
        scores[t, chosen] = rng.uniform(1, 2, shape.top_k)
    x[:, : shape.experts] = scores
    return x


class Graph:
    """Nodes and initializers of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def __call__(self, name: str, *operands: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        self.nodes.append(ir.node(name, list(operands), attributes, domain=domain))
        return self.nodes[-1].outputs[0]

    def constant(self, array: Array) -> ir.Value:
        name = f"w{len(self.initializers)}"
        self.initializers.append(ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name)))
        return self.initializers[-1]


def dense_matmul(g: Graph, x: ir.Value, w: Weights) -> ir.Value:
    return g("MatMul", _hidden(g, w, lambda m: g("MatMul", x, g.constant(m.T))), g.constant(w.down))


def dense_gemm(g: Graph, x: ir.Value, w: Weights) -> ir.Value:
    return g("Gemm", _hidden(g, w, lambda m: g("Gemm", x, g.constant(m), transB=1)), g.constant(w.down))


def _hidden(g: Graph, w: Weights, linear: Callable[[Array], ir.Value]) -> ir.Value:
    if not w.shape.gated:
        return g("Relu", linear(w.up))
    gate = linear(w.gate)
    return g("Mul", g("Mul", gate, g("Sigmoid", gate)), linear(w.up))


def native(g: Graph, x: ir.Value, w: Weights) -> ir.Value:
    """moeify::MoE; softmax gates, normalised, as com.microsoft::MoE has them."""
    s = w.shape
    size = (s.neurons - s.shared) // s.experts
    offsets = g.constant(s.shared + size * np.arange(s.experts + 1, dtype=np.int64))
    k = None if s.threshold else g.constant(np.asarray(s.top_k, dtype=np.int64))
    threshold = g.constant(np.asarray(0.5, dtype=np.float32)) if s.threshold else None
    operands = [x, g("MatMul", x, g.constant(w.router)), g.constant(w.up), g.constant(w.down), offsets, k, threshold]
    operands += [g.constant(w.gate) if s.gated else None, None, None, None, None, None]
    operands += [g.constant(w.low_rank_in), g.constant(w.low_rank_out)] if s.rank else []
    rule = {"gate_rule": "one"} if s.threshold else {"gate_rule": "softmax", "normalize": 1}
    return g("MoE", *operands, domain="moeify", activation="silu" if s.gated else "relu", **rule)


def contrib(g: Graph, x: ir.Value, w: Weights) -> ir.Value:
    """com.microsoft::MoE; swiglu wants the rows of gate and up interleaved."""
    s = w.shape
    into = np.stack([w.gate, w.up], axis=1).reshape(-1, s.hidden) if s.gated else w.up
    first = into.reshape(s.experts, -1, s.hidden)
    second = w.down.reshape(s.experts, -1, s.hidden).transpose(0, 2, 1)
    scores = g("MatMul", x, g.constant(w.router))
    kind = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
    kind = kind if s.gated else {"activation_type": "relu"}
    operands = [x, scores, g.constant(first), None, g.constant(second)]
    return g("MoE", *operands, domain="com.microsoft", k=s.top_k, normalize_routing_weights=1, **kind)


def save(path: Path, build: Build, layers: list[Weights]) -> Path:
    """x [tokens, hidden] => y; each layer adds to x what it computes. Weights go into a file beside it."""
    g = Graph()
    hidden = layers[0].shape.hidden
    x = y = ir.val("x", ir.DataType.FLOAT, ["tokens", hidden])
    for w in layers:
        y = g("Add", y, build(g, y, w))
    y.name, y.type, y.shape = "y", x.type, x.shape
    imports = {"": 20, "moeify": 1, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=g.nodes, initializers=g.initializers, opset_imports=imports, name="stack")
    ir.save(ir.Model(graph, ir_version=10), path, external_data=path.name + ".data")
    return path
