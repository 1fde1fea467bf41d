"""The operations of a layer in place of its node: no operator of moeify's own is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.errors import ConversionError
from moeify.export.onnx.attach import MoENode, given_inputs
from moeify.export.onnx.body import moe_operations
from moeify.export.onnx.body_contrib import CONTRIB
from moeify.export.onnx.forms import Form
from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir


def write_inline(model: ir.Model, node: ir.Node, layer: MoENode, form: Form | None) -> None:
    """Changes the model; what stood for the node is left to `tidy`."""
    import onnx_ir as ir

    if form is None or node.graph is None:
        raise ConversionError(f"{layer.name}: no operations to put in place of the node")
    given = given_inputs(node)
    op, old = Operations(), node.outputs[0]
    y = moe_operations(op, layer.shape, form, given)
    for i, new in enumerate(op.nodes):
        new.name = f"{node.name}/{new.op_type}_{i}"
        for j, value in enumerate(new.outputs):
            value.name = f"{node.name}/{i}.{j}"
    y.type, y.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], list(op.nodes), [old], [y])
    if "contrib" in form.kinds:
        model.graph.opset_imports[CONTRIB] = 1


def tidy(model: ir.Model) -> None:
    """Drops what nothing uses any more and what is there twice; the values of k stay apart from each other."""
    from onnx_ir import passes
    from onnx_ir.passes import common

    passes.Sequential(common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass())(model)
    common.RemoveUnusedOpsetsPass()(model)
