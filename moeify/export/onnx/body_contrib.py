"""The operator `com.microsoft::MoE` of ONNX Runtime in a body, for any gates.

Its kernel takes the softmax of the logits that it is given, computes the experts with a share above 0 and adds them by their
shares. Given log(gate), the shares are gate / sum of gates; so y is its output times that sum, and an expert that is off costs
nothing (log 0). Choice and ties stay ours, as everywhere (its own top-k would prefer the higher index), and k an input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir

    Values = dict[str, ir.Value]

CONTRIB = "com.microsoft"

#: Our activation -> its `activation_type`. Its gelu is the tanh form; checked against the float64 reference.
PLAIN = {"relu": "relu", "gelu-tanh": "gelu", "silu": "silu", "identity": "identity"}
#: act(gate) * up: one kind, with the rows of gate and up interleaved. Other layouts pass its checks and give other numbers.
GATED = {"silu": {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}}


def contrib_operator(op: Operations, shape: BodyShape, size: int, x: ir.Value, rows: Values, factor: ir.Value) -> ir.Value:
    """[tokens, output] of x [tokens, hidden] and the gates, factor [tokens, experts] >= 0. size: rows of each expert."""
    total = op("ReduceSum", factor, op.constant([1]), keepdims=1)
    none = op("Equal", total, op.constant(0.0))
    logits = op("Log", op("Where", none, op.constant(1.0), factor))
    into, bias = _into(op, shape, size, rows)
    down = op("Reshape", rows["down"], op.constant([shape.experts, size, -1]))
    out = op("Transpose", down, perm=[0, 2, 1])
    kind = GATED[shape.activation] if "gate" in rows else {"activation_type": PLAIN[shape.activation]}
    y = op("MoE", x, logits, into, bias, out, domain=CONTRIB, k=shape.experts, normalize_routing_weights=0, **kind)
    return op("Mul", y, total)


def _into(op: Operations, shape: BodyShape, size: int, rows: Values) -> tuple[ir.Value, ir.Value | None]:
    """The matrices going in [experts, size (gated: 2 size), hidden] and their biases."""
    if "gate" not in rows:
        return _by_expert(op, shape, size, rows["up"], -1), _biases(op, shape, size, rows)
    pairs = [op("Unsqueeze", rows[name], op.constant([1])) for name in ("gate", "up")]
    return _by_expert(op, shape, 2 * size, op("Concat", *pairs, axis=1), -1), _biases(op, shape, size, rows)


def _biases(op: Operations, shape: BodyShape, size: int, rows: Values) -> ir.Value | None:
    if "gate" not in rows:
        return _by_expert(op, shape, size, rows["up_bias"]) if "up_bias" in rows else None
    if not {"up_bias", "gate_bias"} & set(rows):
        return None
    zeros = op.full(0.0, op("Shape", rows["up"], end=1))
    pairs = [op("Unsqueeze", rows.get(name, zeros), op.constant([1])) for name in ("gate_bias", "up_bias")]
    return _by_expert(op, shape, 2 * size, op("Concat", *pairs, axis=1))


def _by_expert(op: Operations, shape: BodyShape, size: int, w: ir.Value, *rest: int) -> ir.Value:
    return op("Reshape", w, op.constant([shape.experts, size, *rest]))
