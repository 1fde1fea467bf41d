"""A traced graph => the same one with its weights in a lower precision (docs/quantisation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeify.export.onnx.precision.calibrated_inputs import calibrate
from moeify.export.onnx.precision.choices import PRECISIONS
from moeify.export.onnx.precision.dense_products import MICROSOFT, DenseProducts
from moeify.export.onnx.precision.half_weights import halve
from moeify.export.onnx.precision.matrix_rounding import MatrixRounding
from moeify.export.onnx.precision.moe_outputs import calibrate_outputs
from moeify.export.onnx.precision.moe_products import quantise_moe
from moeify.export.onnx.precision.product_inputs import ProductInput
from moeify.export.onnx.precision.router_nodes import router_nodes
from moeify.export.onnx.report import Calibrated, StoredMatrix

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Lower:
    """The matrices that are not as they were, and what calibration chose."""

    stored: tuple[StoredMatrix, ...] = ()
    chosen: tuple[Calibrated, ...] = ()


def lower_precision(model: ir.Model, precision: str, inputs: Mapping[str, ProductInput]) -> Lower:
    """In place, before bodies are attached. precision: of PRECISIONS. inputs: what `product_inputs` saw on calibration data,
    empty without. What makes scores stays float32."""
    bits = PRECISIONS[precision]
    if bits == 32:
        return Lower()
    routers = router_nodes(model)
    if bits == 16:
        return Lower(tuple(halve(model, routers)))
    return _quantise(model, bits, routers, inputs)


def _quantise(model: ir.Model, bits: int, routers: set[ir.Node], inputs: Mapping[str, ProductInput]) -> Lower:
    import onnx_ir as ir
    from onnx_ir.passes import common

    of_rows, rows = calibrate_outputs(model, inputs) if bits == 4 else ([], {})
    of_inputs, columns = calibrate(model, bits, routers, inputs)
    rounding = MatrixRounding(columns | rows)
    dense = DenseProducts(model, bits, rounding)
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node not in routers:
            dense.replace(node)
    quantise_moe(model, bits, rounding)
    common.RemoveUnusedNodesPass()(model)  # and the floats that nothing reads any more
    if dense.replaced:
        model.graph.opset_imports[MICROSOFT] = 1
    return Lower(tuple(rounding.stored), (*of_inputs, *of_rows))
