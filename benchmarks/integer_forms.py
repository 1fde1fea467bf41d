"""Layers of 8 bits for benchmarks/kernel_integers.py: dense in the forms that ONNX Runtime has, and as MoE layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeify.export.onnx.body_activations import BODY_ACTIVATIONS
from moeify.export.onnx.body_shape import DOMAIN, QUANTISED, QUANTISED_INPUTS
from moeify.export.onnx.precision.rounding import rounded
from moeify.speed.layer_draws import LayerWeights

if TYPE_CHECKING:
    import onnx_ir as ir

    from moeify.speed.layer_stack import Build, StackGraph

Array = NDArray[Any]
MICROSOFT = "com.microsoft"
#: Weights that share a scale of MatMulNBits: the fastest size.
BLOCK = 256


def dense_dynamic(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    """DynamicQuantizeMatMul, signed weights. One scale for x of all tokens."""
    return _dense(op, x, w, _dynamic)


def dense_nbits(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    """MatMulNBits, x rounded to 8 bits."""
    return _dense(op, x, w, _nbits)


def _dense(
    op: StackGraph, x: ir.Value, w: LayerWeights, product: Callable[[StackGraph, ir.Value, Array], ir.Value]
) -> ir.Value:
    act = BODY_ACTIVATIONS[w.shape.activation]
    if w.shape.gated:
        return product(op, op("Mul", act(op, product(op, x, w.gate)), product(op, x, w.up)), w.down.T)
    return product(op, act(op, product(op, x, w.up)), w.down.T)


def _dynamic(op: StackGraph, x: ir.Value, rows: Array) -> ir.Value:
    parts = rounded(np.ascontiguousarray(rows), 8)
    return op("DynamicQuantizeMatMul", x, op.weight(parts.values.T), op.weight(parts.scale[:, 0]), domain=MICROSOFT)


def _nbits(op: StackGraph, x: ir.Value, rows: Array) -> ir.Value:
    count, width = rows.shape
    parts = rounded(np.ascontiguousarray(rows).reshape(-1, BLOCK), 8)
    operands = op.weight(parts.unsigned.reshape(count, -1, BLOCK)), op.weight(parts.scale.reshape(count, -1))
    sizes = {"K": width, "N": count, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    return op("MatMulNBits", x, *operands, domain=MICROSOFT, **sizes)


def native(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    """moeify::QMoE; softmax gates, normalised."""
    config = w.shape.config
    given = {"x": x, "scores": op("MatMul", x, op.weight(w.router)), "k": op.weight(np.array(config.top_k, dtype=np.int64))}
    given["offsets"] = op.weight(np.array(config.offsets, dtype=np.int64))
    for name, matrix in {"up": w.up, "down": w.down, **({"gate": w.gate} if w.shape.gated else {})}.items():
        parts = rounded(matrix, 8)
        given |= {name: op.weight(parts.unsigned, name), f"{name}_scale": op.weight(parts.scale)}
    attributes = {"gate_rule": config.gate_rule, "normalize": int(config.normalize), "bits": 8}
    operands = [given.get(name) for name in QUANTISED_INPUTS]
    return op(QUANTISED, *operands, domain=DOMAIN, activation=w.shape.activation, **attributes)


def contrib(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    """com.microsoft::QMoE, a scale a row; swiglu wants the rows of gate and up interleaved."""
    s = w.shape
    into = np.stack([w.gate, w.up], axis=1).reshape(-1, s.hidden) if s.gated else w.up
    first, second = into.reshape(s.experts, -1, s.hidden), w.down.reshape(s.experts, -1, s.hidden).transpose(0, 2, 1)
    operands: list[ir.Value | None] = [x, op("MatMul", x, op.weight(w.router))]
    for experts in (first, second):
        parts = rounded(np.ascontiguousarray(experts).reshape(-1, experts.shape[2]), 8)
        operands += [op.weight(parts.unsigned.reshape(experts.shape)), op.weight(parts.scale.reshape(experts.shape[:2])), None]
    kind = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
    kind = kind if s.gated else {"activation_type": "relu"}
    sizes = {"k": s.top_k, "expert_weight_bits": 8, "normalize_routing_weights": 1}
    return op("QMoE", *operands, domain=MICROSOFT, **sizes, **kind)


DENSE: Mapping[str, Build] = {"dense DynamicQuantizeMatMul": dense_dynamic, "dense MatMulNBits": dense_nbits}
MOE: Mapping[str, Build] = {"native": native, "com.microsoft::QMoE": contrib}
