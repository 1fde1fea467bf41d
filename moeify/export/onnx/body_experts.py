"""Runs of neurons => what they add to y."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.body_activations import BODY_ACTIVATIONS
from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.operations import Operations
from moeify.ir.feed_forward import ROWWISE

if TYPE_CHECKING:
    import onnx_ir as ir

    Values = dict[str, ir.Value]


def split_shared(op: Operations, shape: BodyShape, v: Values) -> tuple[Values | None, Values]:
    """The row-wise weights of the shared expert (None: there is none) and those of all routed experts."""
    return _split(op, shape, v, {name: v[name] for name in ROWWISE if name in v})


def routed_integers(op: Operations, shape: BodyShape, v: Values, stored: Values) -> Values:
    """The rows of all routed experts, of matrices that are stored as integers and of their scales."""
    return _split(op, shape, v, stored)[1]


def _split(op: Operations, shape: BodyShape, v: Values, rows: Values) -> tuple[Values | None, Values]:
    if not shape.shared:
        return None, rows
    first = op("Slice", v["offsets"], op.constant([0]), op.constant([1]))
    sizes = op("Concat", first, op("Sub", op("Shape", v["up"], end=1), first), axis=0)
    parts = {name: op.several(2, "Split", rows[name], sizes, axis=0) for name in rows}
    return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}


def hidden_values(op: Operations, shape: BodyShape, x: ir.Value, w: Values) -> ir.Value:
    """h [tokens, neurons] for x [tokens, hidden]."""
    act = BODY_ACTIVATIONS[shape.activation]
    up = _linear(op, x, w["up"], w.get("up_bias"))
    return op("Mul", act(op, _linear(op, x, w["gate"], w.get("gate_bias"))), up) if "gate" in w else act(op, up)


def neurons(op: Operations, shape: BodyShape, x: ir.Value, w: Values) -> ir.Value:
    """Sum of h_i down_i over the rows of w: [tokens, output] for x [tokens, hidden]."""
    return op("MatMul", hidden_values(op, shape, x, w), w["down"])


def _linear(op: Operations, x: ir.Value, matrix: ir.Value, bias: ir.Value | None) -> ir.Value:
    return op("Gemm", x, matrix, *([] if bias is None else [bias]), transB=1)


def gated_rows(op: Operations, shape: BodyShape, v: Values, gate: ir.Value | None) -> ir.Value:
    """All experts on: one dense FFN whose rows are scaled by the gate of their expert. [tokens, output]."""
    h = hidden_values(op, shape, v["x"], v)
    if gate is not None:
        h = op(
            "Mul", h, op("Gather", op("Pad", gate, op.constant([0, 1, 0, 0]), op.constant(1.0)), expert_of_row(op, v), axis=1)
        )
    return op("MatMul", h, v["down"])


def expert_of_row(op: Operations, v: Values) -> ir.Value:
    """[rows] int64: 0 for rows of the shared expert, e + 1 for rows of expert e."""
    count = op("Squeeze", op("Shape", v["up"], end=1))
    row = op("Unsqueeze", op("Range", op.constant(0), count, op.constant(1)), op.constant([1]))
    started = op("Cast", op("GreaterOrEqual", row, v["offsets"]), to=7)  # [rows, experts + 1]
    return op("ReduceSum", started, op.constant([1]), keepdims=0)
