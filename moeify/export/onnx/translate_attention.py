"""Attention on 3-D tensors, which torch.onnx.export leaves out: 4-D attention with one head."""

from __future__ import annotations

from typing import Any


def translate_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """[batch, tokens, width] => [batch, 1, tokens, width] and back; 4-D tensors as the exporter does it."""
    from onnxscript import opset20 as op
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if len(query.shape) != 3:
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, **options)
    wide = [_one_head(op, tensor) for tensor in (query, key, value)]
    if attn_mask is not None and len(attn_mask.shape) == 3:
        attn_mask = _one_head(op, attn_mask)
    return op.Squeeze(aten_scaled_dot_product_attention(*wide, attn_mask, **options), op.Constant(value_ints=[1]))


def _one_head(op: Any, tensor: Any) -> Any:
    import onnx_ir as ir

    wide = op.Unsqueeze(tensor, op.Constant(value_ints=[1]))
    wide.dtype = tensor.dtype
    wide.shape = ir.Shape([tensor.shape[0], 1, *tensor.shape[1:]])  # what the exporter's own translation asks for
    return wide
