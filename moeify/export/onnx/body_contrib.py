"""The operators `com.microsoft::MoE` and `QMoE` of ONNX Runtime in a body, for any gates.

Their kernels take the softmax of the logits that they are given, compute the experts with a share above 0 and add them by their
shares. Given log(gate), the shares are gate / sum of gates; so y is its output times that sum, and an expert that is off costs
nothing (log 0). Choice and ties stay ours, as everywhere (their own top-k would prefer the higher index), and k an input.

Where down is stored as integers, a neuron has a scale; in QMoE an output has one. Where h_i grows with up_i as it does with
its own factor (act(gate) * up, ReLU), the neuron's scale moves into up, and the scales of the outputs are 1: the same values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
#: act(c z) = c act(z) for c >= 0.
_HOMOGENEOUS = ("relu", "identity")


def keeps_integers(shape: BodyShape) -> bool:
    """Is it QMoE that computes the experts of the layer? Else their floats are restored for MoE."""
    return shape.bits == 8 and (shape.gated or shape.activation in _HOMOGENEOUS)


def contrib_operator(op: Operations, shape: BodyShape, size: int, x: ir.Value, rows: Values, factor: ir.Value) -> ir.Value:
    """[tokens, output] of x [tokens, hidden] and the gates, factor [tokens, experts] >= 0.

    size: rows of each expert. rows: with the scales of up, gate and down where the operator `keeps_integers`.
    """
    total = op("ReduceSum", factor, op.constant([1]), keepdims=1)
    none = op("Equal", total, op.constant(0.0))
    logits = op("Log", op("Where", none, op.constant(1.0), factor))
    rows = _with_scales_of_down(op, rows) if keeps_integers(shape) else rows
    into = _paired(op, shape, size, rows, "gate", "up", -1)
    bias = _biases(op, shape, size, rows)
    down = op("Transpose", op("Reshape", rows["down"], op.constant([shape.experts, size, -1])), perm=[0, 2, 1])
    kind = GATED[shape.activation] if shape.gated else {"activation_type": PLAIN[shape.activation]}
    options: dict[str, Any] = {"domain": CONTRIB, "k": shape.experts, "normalize_routing_weights": 0, **kind}
    if keeps_integers(shape):
        scales = _paired(op, shape, size, rows, "gate_scale", "up_scale"), op.full(1.0, op("Shape", down, end=2))
        y = op("QMoE", x, logits, into, scales[0], bias, down, scales[1], expert_weight_bits=8, **options)
    else:
        y = op("MoE", x, logits, into, bias, down, **options)
    return op("Mul", y, total)


def _with_scales_of_down(op: Operations, rows: Values) -> Values:
    """up, scaled by what a neuron is scaled by on its way out."""
    out = rows["down_scale"]
    scaled = rows | {"up_scale": op("Mul", rows["up_scale"], out)}
    if "up_bias" in rows:
        scaled["up_bias"] = op("Mul", rows["up_bias"], op("Squeeze", out, op.constant([1])))
    return scaled


def _biases(op: Operations, shape: BodyShape, size: int, rows: Values) -> ir.Value | None:
    given = {"gate_bias", "up_bias"} & set(rows)
    if not given:
        return None
    zeros = op.full(0.0, op("Shape", rows["up"], end=1))
    return _paired(op, shape, size, dict.fromkeys(("gate_bias", "up_bias"), zeros) | rows, "gate_bias", "up_bias")


def _paired(op: Operations, shape: BodyShape, size: int, rows: Values, gate: str, up: str, *rest: int) -> ir.Value:
    """By experts: [experts, size, *rest] of up, or [experts, 2 size, *rest] with the rows of gate and up interleaved."""
    if not shape.gated:
        return op("Reshape", rows[up], op.constant([shape.experts, size, *rest]))
    pairs = [op("Unsqueeze", rows[name], op.constant([1])) for name in (gate, up)]
    return op("Reshape", op("Concat", *pairs, axis=1), op.constant([shape.experts, 2 * size, *rest]))
