"""ONNX files whose weights are integers, which are no start for a conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

#: Operators that compute with integers in place of weights, or make floats of them.
_INTEGERS = frozenset(
    {
        "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
        "QLinearConv", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits",
        "MatMulBnb4", "MatMulFpQ4", "QAttention", "QEmbedLayerNormalization", "QOrderedMatMul", "QMoE", "GatherBlockQuantized",
        "BlockQuantizedMatMul", "DequantizeBFP", "NhwcMaxPoolQuant",
    }
)  # fmt: skip


def quantised_reason(model: ir.Model) -> str | None:
    """Why such a model is refused, and what to do; None for one of floats."""
    import onnx_ir as ir

    found = sorted({node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.op_type in _INTEGERS})
    if found:
        return (
            f"its weights are integers ({', '.join(found[:3])}), and neurons are told apart by what was rounded away: give the "
            "float32 file that it was quantised from, and round the result (moeify export OUT --to onnx --precision int8)"
        )
    half = [value.name for graph in model.graphs() for value in graph.initializers.values() if _is_half_matrix(value)]
    if half:
        return (
            f"its weights are in half precision ({half[0]}), which ONNX Runtime's CPU computes by way of float32: give the "
            "float32 file, and round the result (moeify export OUT --to onnx --precision fp16)"
        )
    return None


def _is_half_matrix(value: ir.Value) -> bool:
    """A kernel of a convolution counts as one; a single number does not."""
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) > 1 < tensor.size and tensor.dtype.name in ("FLOAT16", "BFLOAT16")
