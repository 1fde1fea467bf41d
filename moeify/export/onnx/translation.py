"""`torch.ops.moeify.moe` in a traced model => one opaque `moeify::MoE` node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeify.export.onnx.body_shape import DOMAIN, OPERATOR, VERSION
from moeify.export.onnx.schema import register_schema
from moeify.export.onnx.translate_attention import translate_attention


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch.onnx.export's custom_translation_table."""
    import torch

    import moeify.layers.operator
    import moeify.layers.stochastic_router  # noqa: F401 - registers torch.ops.moeify.draw

    register_schema()
    return {
        torch.ops.moeify.draw.default: _translate_draw,
        torch.ops.moeify.moe.default: _translate,
        torch.ops.aten.scaled_dot_product_attention.default: translate_attention,
    }


def _translate_draw(like: Any, seed: int) -> Any:
    """One generator a layer: ONNX Runtime goes on with it from run to run, and begins anew with a session."""
    from onnxscript import opset20 as op

    return op.RandomUniformLike(like, dtype=1, seed=float(seed))


def _translate(
    x: Any,
    scores: Any,
    up: Any,
    down: Any,
    offsets: Any,
    k: Any,
    threshold: Any,
    gate: Any,
    up_bias: Any,
    gate_bias: Any,
    selection_bias: Any,
    output_bias: Any,
    idle: Any,
    low_rank_in: Any,
    low_rank_out: Any,
    activation: str,
    gate_rule: str,
    normalize: bool,
    detach_sum: bool = False,
) -> Any:
    # One parameter an argument: the exporter reads which are inputs (Any) and which are attributes off this signature.
    # detach_sum is for the gradient alone.
    from onnxscript.values import Opset

    inputs = [
        x, scores, up, down, offsets, k, threshold, gate, up_bias, gate_bias, selection_bias, output_bias, idle, low_rank_in,
        low_rank_out,
    ]  # fmt: skip
    while inputs[-1] is None:
        inputs.pop()
    operator = getattr(Opset(DOMAIN, VERSION), OPERATOR)
    return operator(*inputs, activation=activation, gate_rule=gate_rule, normalize=int(normalize))
