"""A traced graph => the same one with its weights in a lower precision (docs/quantisation.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.precision.choices import PRECISIONS
from moeify.export.onnx.precision.dense_products import MICROSOFT, DenseProducts
from moeify.export.onnx.precision.half_weights import halve
from moeify.export.onnx.precision.moe_products import quantise_moe
from moeify.export.onnx.precision.router_nodes import router_nodes
from moeify.export.onnx.report import StoredMatrix

if TYPE_CHECKING:
    import onnx_ir as ir


def lower_precision(model: ir.Model, precision: str) -> tuple[StoredMatrix, ...]:
    """In place, before bodies are attached. precision: of PRECISIONS. What makes scores stays float32."""
    bits = PRECISIONS[precision]
    if bits == 32:
        return ()
    routers = router_nodes(model)
    if bits == 16:
        return tuple(halve(model, routers))
    return tuple(_quantise(model, bits, routers))


def _quantise(model: ir.Model, bits: int, routers: set[ir.Node]) -> list[StoredMatrix]:
    import onnx_ir as ir
    from onnx_ir.passes import common

    dense = DenseProducts(model, bits)
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node not in routers:
            dense.replace(node)
    found = dense.found + quantise_moe(model, bits)
    common.RemoveUnusedNodesPass()(model)  # and the floats that nothing reads any more
    if dense.found:
        model.graph.opset_imports[MICROSOFT] = 1
    return found
