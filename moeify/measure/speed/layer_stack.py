"""Stacks of equal layers as ONNX files, dense and converted, with inputs that load their experts evenly.

No cache holds a stack, and no run sees an input twice: what is measured is what a layer costs within a large model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeify.export.onnx.attach import attach_bodies
from moeify.export.onnx.body import OPSET
from moeify.export.onnx.body_activations import BODY_ACTIVATIONS
from moeify.export.onnx.body_shape import DOMAIN, INPUTS, OPERATOR, VERSION
from moeify.export.onnx.operations import Operations
from moeify.measure.speed.layer_shape import LayerShape

if TYPE_CHECKING:
    import onnx_ir as ir

    #: Adds a layer to a graph: y [tokens, hidden] of x.
    Build = Callable[["StackGraph", ir.Value, "LayerWeights"], ir.Value]

Array = NDArray[Any]

#: Dense weights of a stack, in last-level caches.
CACHES = 4


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Of one layer, neuron-major as in docs/moe-layer.md; router [hidden, experts]."""

    shape: LayerShape
    up: Array
    down: Array
    gate: Array
    router: Array
    low_rank_in: Array
    low_rank_out: Array


def layers_beyond(cache: int, shape: LayerShape) -> int:
    """How many layers have dense float32 weights of more than 4 such caches; at least 2."""
    return max(2, CACHES * cache // (4 * shape.dense_weights) + 1)


def draw_weights(shape: LayerShape, rng: np.random.Generator) -> LayerWeights:
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
    return LayerWeights(shape, up, down, gate, router, normal(shape.rank, d, scale=d**-0.5), low_rank_out)


@dataclass(frozen=True)
class EvenInputs:
    """x [tokens, hidden] whose choices load the experts evenly, up to one token."""

    shape: LayerShape
    cached: bool = False
    unit: str = "tokens"

    def draw(self, tokens: int, rng: np.random.Generator) -> dict[str, Array]:
        x = rng.standard_normal((tokens, self.shape.hidden), dtype=np.float32)
        scores = rng.uniform(-1, 0, (tokens, self.shape.experts))
        for row, chosen in zip(scores, self.choices(tokens, rng)):
            row[chosen] = rng.uniform(1, 2, self.shape.top_k)
        x[:, : self.shape.experts] = scores
        return {"x": x}

    def choices(self, tokens: int, rng: np.random.Generator) -> list[list[int]]:
        """top_k experts for each token; they come up in random order, round after round."""
        waiting: list[int] = []
        found = []
        for _ in range(tokens):
            chosen: list[int] = []
            while len(chosen) < self.shape.top_k:
                if not set(waiting) - set(chosen):
                    waiting += rng.permutation(self.shape.experts).tolist()
                chosen.append(next(e for e in waiting if e not in chosen))
                waiting.remove(chosen[-1])
            found.append(chosen)
        return found


class StackGraph(Operations):
    """Nodes and weights of a graph in the making."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[ir.Value] = []

    def weight(self, array: Array, name: str = "w") -> ir.Value:
        import onnx_ir as ir

        name = f"{len(self.weights)}.{name}"
        self.weights.append(ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name)))
        return self.weights[-1]


def dense_matmul(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    return op("MatMul", _hidden(op, w, lambda m: op("MatMul", x, op.weight(m.T))), op.weight(w.down))


def dense_gemm(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    return op("Gemm", _hidden(op, w, lambda m: op("Gemm", x, op.weight(m), transB=1)), op.weight(w.down))


def _hidden(op: StackGraph, w: LayerWeights, linear: Callable[[Array], ir.Value]) -> ir.Value:
    act = BODY_ACTIVATIONS[w.shape.activation]
    return op("Mul", act(op, linear(w.gate)), linear(w.up)) if w.shape.gated else act(op, linear(w.up))


def converted(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    """moeify::MoE; softmax gates, normalised, or a threshold with gates of 1."""
    config, s = w.shape.config, w.shape
    given = {
        "x": x,
        "scores": op("MatMul", x, op.weight(w.router)),
        "up": op.weight(w.up, "up"),
        "down": op.weight(w.down),
        "offsets": op.weight(np.array(config.offsets, dtype=np.int64)),
    }
    if config.top_k is not None:
        given["k"] = op.weight(np.array(config.top_k, dtype=np.int64))
    if config.threshold is not None:
        given["threshold"] = op.weight(np.array(config.threshold, dtype=np.float32))
    if s.gated:
        given["gate"] = op.weight(w.gate)
    if s.rank:
        given |= {"low_rank_in": op.weight(w.low_rank_in), "low_rank_out": op.weight(w.low_rank_out)}
    rule = {"gate_rule": config.gate_rule, "normalize": int(config.normalize)}
    return op(OPERATOR, *(given.get(name) for name in INPUTS), domain=DOMAIN, activation=s.activation, **rule)


def save_stack(path: Path, build: Build, layers: Sequence[LayerWeights]) -> Path:
    """x [tokens, hidden] => y; each layer adds to x what it computes. Weights go into a file beside it."""
    import onnx_ir as ir

    op = StackGraph()
    x = y = ir.val("x", ir.DataType.FLOAT, ["tokens", layers[0].shape.hidden])
    for w in layers:
        y = op("Add", y, build(op, y, w))
    y.name, y.type, y.shape = "y", x.type, x.shape
    imports = {"": OPSET, DOMAIN: VERSION, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=op.nodes, initializers=op.weights, opset_imports=imports, name="stack")
    model = ir.Model(graph, ir_version=10)
    attach_bodies(model)
    ir.save(model, path, external_data=f"{path.name}.data")
    return path
