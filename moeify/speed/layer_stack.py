"""Stacks of equal layers as ONNX files, dense and converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeify.export.onnx.body import OPSET
from moeify.export.onnx.body_activations import BODY_ACTIVATIONS
from moeify.export.onnx.body_shape import DOMAIN, INPUTS, OPERATOR, VERSION
from moeify.export.onnx.lowering.lower import lower
from moeify.export.onnx.operations import Operations
from moeify.export.onnx.precision.rounded_graph import lower_precision
from moeify.speed.layer_draws import LayerWeights
from moeify.speed.workload import Array

if TYPE_CHECKING:
    import onnx_ir as ir

    #: Adds a layer to a graph: y [tokens, hidden] of x.
    Build = Callable[["StackGraph", ir.Value, "LayerWeights"], ir.Value]


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


def save_stack(path: Path, build: Build, layers: Sequence[LayerWeights], precision: str = "fp32") -> Path:
    """x [tokens, hidden] => y; each layer adds to x what it computes. Weights go into a file beside it, in that precision
    as those of a model would be, the router in float32."""
    import onnx_ir as ir

    op = StackGraph()
    x = y = ir.val("x", ir.DataType.FLOAT, ["tokens", layers[0].shape.hidden])
    for w in layers:
        y = op("Add", y, build(op, y, w))
    y.name, y.type, y.shape = "y", x.type, x.shape
    imports = {"": OPSET, DOMAIN: VERSION, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=op.nodes, initializers=op.weights, opset_imports=imports, name="stack")
    model = ir.Model(graph, ir_version=10)
    lower_precision(model, precision, {})
    lower(model)
    ir.save(model, path, external_data=f"{path.name}.data")
    return path
