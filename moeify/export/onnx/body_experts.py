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

#: From so many experts on they are run at once.
FINE = 128


def split_experts(op: Operations, shape: BodyShape, v: Values) -> tuple[Values | None, list[Values]]:
    """The row-wise weights of the shared expert (None: there is none) and of every routed expert."""
    starts = op("Slice", v["offsets"], op.constant([0]), op.constant([-1]))
    ends = op("Slice", v["offsets"], op.constant([1]), op.constant([shape.experts + 1]))
    sizes = op("Sub", ends, starts)
    if shape.shared:
        sizes = op("Concat", op("Slice", v["offsets"], op.constant([0]), op.constant([1])), sizes, axis=0)
    count = shape.experts + shape.shared
    parts = {name: op.several(count, "Split", v[name], sizes, axis=0) for name in ROWWISE if name in v}
    runs = [{name: part[i] for name, part in parts.items()} for i in range(count)]
    return (runs[0], runs[1:]) if shape.shared else (None, runs)


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


def routed_experts(
    op: Operations, shape: BodyShape, v: Values, experts: list[Values], on: ir.Value, gate: ir.Value | None, y: ir.Value
) -> ir.Value:
    """y [tokens, output] + the experts that are on, each run on its tokens only. on, gate [tokens, experts]."""
    by_expert = op("Transpose", on, perm=[1, 0])
    pairs = op("NonZero", by_expert)  # [2, pairs], sorted by expert, then by token
    counts = op("ReduceSum", op("Cast", on, to=7), op.constant([0]), keepdims=0)
    token = op("Unsqueeze", op("Gather", pairs, op.constant(1), axis=0), op.constant([1]))
    tokens = op.several(shape.experts, "Split", token, counts, axis=0)
    weights: list[ir.Value] = []
    if gate is not None:
        flat = op("Compress", op("Transpose", gate, perm=[1, 0]), op("Reshape", by_expert, op.constant([-1])))
        weights = op.several(shape.experts, "Split", op("Unsqueeze", flat, op.constant([1])), counts, axis=0)
    for e, expert in enumerate(experts):
        part = neurons(op, shape, op("GatherND", v["x"], tokens[e]), expert)
        part = part if gate is None else op("Mul", part, weights[e])
        y = op("ScatterND", y, tokens[e], part, reduction="add")
    return y


def fine_experts(op: Operations, shape: BodyShape, v: Values, on: ir.Value, gate: ir.Value | None) -> ir.Value:
    """The shared expert and the experts that are on, computed at once: rows that no token uses are left where they are, the
    others gathered, and h is 0 where the row's expert is off. [tokens, output] for on, gate [tokens, experts]."""
    slot, shared_on = _slot(op, v), op.constant([0, 1, 0, 0])
    on = op("Pad", op("Cast", on, to=1), shared_on, op.constant(1.0))  # [tokens, 1 + experts]
    used = op("Greater", op("ReduceSum", on, op.constant([0]), keepdims=0), op.constant(0.0))
    places = op("Squeeze", op("NonZero", op("Gather", used, slot, axis=0)), op.constant([0]))
    rows = {name: op("Gather", v[name], places, axis=0) for name in ROWWISE if name in v}
    slots = op("Gather", slot, places, axis=0)
    h = hidden_values(op, shape, v["x"], rows)
    if gate is not None:
        h = op("Mul", h, op("Gather", op("Pad", gate, shared_on, op.constant(1.0)), slots, axis=1))
    off = op("Equal", op("Gather", on, slots, axis=1), op.constant(0.0))
    return op("MatMul", op("Where", off, op.constant(0.0), h), rows["down"])


def gated_rows(op: Operations, shape: BodyShape, v: Values, gate: ir.Value | None) -> ir.Value:
    """All experts on: one dense FFN whose rows are scaled by the gate of their expert. [tokens, output]."""
    h = hidden_values(op, shape, v["x"], v)
    if gate is not None:
        h = op("Mul", h, op("Gather", op("Pad", gate, op.constant([0, 1, 0, 0]), op.constant(1.0)), _slot(op, v), axis=1))
    return op("MatMul", h, v["down"])


def _slot(op: Operations, v: Values) -> ir.Value:
    """[rows] int64: 0 for rows of the shared expert, e + 1 for rows of expert e."""
    count = op("Squeeze", op("Shape", v["up"], end=1))
    row = op("Unsqueeze", op("Range", op.constant(0), count, op.constant(1)), op.constant([1]))
    started = op("Cast", op("GreaterOrEqual", row, v["offsets"]), to=7)  # [rows, experts + 1]
    return op("ReduceSum", started, op.constant([1]), keepdims=0)
