"""Norms in the form that ONNX Runtime's fusions look for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def divide_by_roots(model: ir.Model) -> None:
    """x * Reciprocal(Sqrt(v)) => x / Sqrt(v), as `rsqrt` is translated: ONNX Runtime then has one SimplifiedLayerNormalization
    for an RMSNorm. In place."""
    import onnx_ir as ir

    for node in list(model.graph):
        root = node.inputs[0].producer() if node.op_type == "Reciprocal" and node.inputs[0] is not None else None
        if root is None or root.op_type != "Sqrt":
            continue
        for product, place in list(node.outputs[0].uses()):
            other = product.inputs[1 - place] if product.op_type == "Mul" else None
            if other is None or other is node.outputs[0]:
                continue
            quotient = ir.node("Div", [other, root.outputs[0]], name=product.name)
            old, new = product.outputs[0], quotient.outputs[0]
            new.name, new.type, new.shape = old.name, old.type, old.shape
            ir.convenience.replace_nodes_and_values(model.graph, product, [product], [quotient], [old], [new])
