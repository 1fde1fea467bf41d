"""Scores => which experts are on for which token, and their gates (docs/moe-layer.md, "Scores, choice, gates")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT, BOOL = 1, 9  # of TensorProto.DataType


def values(op: Operations, shape: BodyShape, scores: ir.Value) -> ir.Value:
    """v [tokens, experts] of scores [tokens, experts], both float32."""
    if shape.gate_rule == "softmax":
        return op("Softmax", scores, axis=-1)
    return op("Sigmoid", scores) if shape.gate_rule == "sigmoid" else scores


def mask(op: Operations, shape: BodyShape, v: dict[str, ir.Value], value: ir.Value) -> ir.Value:
    """Is the expert on? [tokens, experts], bool; for shapes with top-k, a threshold, or both."""
    biased = op("Add", value, v["selection_bias"]) if "selection_bias" in shape.present else value
    # As in MoELayer, NaN counts as the largest value: a broken input shows in the output. (TopK promises nothing for it.)
    biased = op("Where", op("IsNaN", biased), op.constant(float("inf")), biased)
    above = op("GreaterOrEqual", biased, v["threshold"]) if "threshold" in shape.present else None
    if "k" not in shape.present:
        assert above is not None
        return above
    largest = _largest(op, biased, v["k"])
    return largest if above is None else op("And", largest, above)


def _largest(op: Operations, biased: ir.Value, k: ir.Value) -> ir.Value:
    """Among the k largest? [tokens, experts], bool. TopK gives the lower index first where values are equal."""
    _, index = op.several(2, "TopK", biased, op("Reshape", k, op.constant([1])), axis=-1, largest=1, sorted=0)
    off = op("Cast", op.full(0.0, op("Shape", biased)), to=BOOL)
    return op("ScatterElements", off, index, op("Equal", index, index), axis=1)


def gates(op: Operations, shape: BodyShape, value: ir.Value, on: ir.Value | None) -> ir.Value | None:
    """g [tokens, experts] float32, zero for experts that are off; None where all gates are 1. on None: all experts."""
    if shape.gate_rule == "one":
        if not shape.normalize:
            return None
        gate = op.full(1.0, op("Shape", value)) if on is None else op("Cast", on, to=FLOAT)
    else:
        gate = value if on is None else op("Where", on, value, op.constant(0.0))
    if not shape.normalize:
        return gate
    total = op("ReduceSum", gate, op.constant([1]), keepdims=1)
    return op("Div", gate, op("Where", op("Equal", total, op.constant(0.0)), op.constant(1.0), total))
