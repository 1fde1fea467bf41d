"""Weights stored as integers (docs/moe-layer.md, `moeify::QMoE`) => floats, in standard ONNX operators.

Casts and products instead of DequantizeLinear, which needs opset 21 for blocks. ONNX Runtime folds them when it loads a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeify.export.onnx.body_shape import BLOCK
from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir

_FLOAT = 1  # of TensorProto.DataType


def restored(op: Operations, stored: ir.Value, scale: ir.Value, bits: int) -> ir.Value:
    """[rows, width] float32 of uint8 [rows, width * bits / 8] and scale [rows, blocks] float32."""
    if bits == 8:
        return op("Mul", op("Sub", op("Cast", stored, to=_FLOAT), op.constant(128.0)), scale)
    last = op.constant([-1])
    low = op("BitwiseAnd", stored, _byte(op, 15))
    high = op("BitShift", stored, _byte(op, 4), direction="RIGHT")
    pairs = op("Concat", op("Unsqueeze", low, last), op("Unsqueeze", high, last), axis=-1)
    blocks = op("Reshape", pairs, op("Concat", op("Shape", scale), op.constant([BLOCK]), axis=0), allowzero=1)
    values = op("Sub", op("Cast", blocks, to=_FLOAT), op.constant(8.0))
    return op("Flatten", op("Mul", values, op("Unsqueeze", scale, last)), axis=1)


def _byte(op: Operations, value: int) -> ir.Value:
    import onnx_ir as ir

    return op("Constant", value=ir.tensor(np.array(value, dtype=np.uint8)))
