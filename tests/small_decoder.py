"""An ONNX decoder with a cache and one MoE layer, made without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from moeify.export.onnx.body import OPSET
from moeify.export.onnx.lowering.lower import lower
from moeify.speed.layer_draws import draw_weights
from moeify.speed.layer_shape import LayerShape
from moeify.speed.layer_stack import StackGraph, converted

#: Its tokens.
VOCABULARY = 40


def small_decoder(path: Path) -> None:
    """One MoE layer between a table and a head. The logits show what mask, positions and cache it was given."""
    shape, rng = LayerShape(16, 32, 4, 2, "silu", gated=True), np.random.default_rng(0)
    op = StackGraph()
    ids = ir.val("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    mask = ir.val("attention_mask", ir.DataType.INT64, ["batch", "total_sequence"])
    places = ir.val("position_ids", ir.DataType.INT64, ["batch", "sequence"])
    past = ir.val("past_key_values.0.key", ir.DataType.FLOAT, ["batch", 2, "past_sequence", 4])
    x = op("Gather", op.weight(rng.standard_normal((VOCABULARY, 16), dtype=np.float32)), ids)
    y = converted(op, x, draw_weights(shape, rng))
    # Keys [batch, 2, tokens, 4] are parts of x, and their mean is added: the logits show what was read before.
    part = op("Slice", x, op.constant([0]), op.constant([8]), op.constant([2]))
    new = op("Transpose", op("Reshape", part, op.constant([0, 0, 2, 4])), perm=[0, 2, 1, 3])
    keys = op("Concat", past, new, axis=2)
    given = op("Cast", op("Add", op("ReduceSum", mask), op("Add", places, op.constant(1))), to=1)
    y = op("Add", op("Mul", y, op("Unsqueeze", given, op.constant([2]))), op("ReduceMean", keys, keepdims=0))
    logits = op("MatMul", y, op.weight(rng.standard_normal((16, VOCABULARY), dtype=np.float32)))
    logits.name, logits.type, logits.shape = "logits", past.type, ir.Shape(["batch", "sequence", VOCABULARY])
    keys.name, keys.type, keys.shape = "present.0.key", past.type, ir.Shape(["batch", 2, "total_sequence", 4])
    imports = {"": OPSET, "moeify": 1}
    graph = ir.Graph(
        [ids, mask, places, past], [logits, keys], nodes=op.nodes, initializers=op.weights, opset_imports=imports, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    lower(model)
    ir.save(model, path)
