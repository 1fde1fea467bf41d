"""A `moeify::MoE` node that carries a body: without the native library the body runs, with it the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.body import OPSET, moe_function
from moeify.export.onnx.body_contrib import CONTRIB
from moeify.export.onnx.body_shape import DOMAIN, VERSION
from moeify.export.onnx.forms import Form

if TYPE_CHECKING:
    import onnx_ir as ir


def attach_body(model: ir.Model, node: ir.Node, layer: MoENode, form: Form | None) -> None:
    """Layers of one shape and form share a function. Changes the model."""
    function = moe_function(layer.shape, model.graph.opset_imports.get("", OPSET), form)
    node.overload = function.overload
    model.functions.setdefault(function.identifier(), function)
    model.graph.opset_imports[DOMAIN] = VERSION
    if CONTRIB in function.opset_imports:
        model.graph.opset_imports[CONTRIB] = 1
