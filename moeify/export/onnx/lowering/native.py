"""The bare node: the file runs with the native library only, and says so where it is missing.

That is a promise that no deployment falls back to slower operations unnoticed; portable has the same kernel, and a body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.body_shape import DOMAIN, VERSION
from moeify.export.onnx.forms import Form
from moeify.export.onnx.lowering.choice import Choice, description

if TYPE_CHECKING:
    import onnx_ir as ir


def choose(layer: MoENode, tokens: tuple[int, ...]) -> Choice:
    return Choice(None, description(layer) if layer.shape.choosing else "all experts on")


def write(model: ir.Model, node: ir.Node, layer: MoENode, form: Form | None) -> None:
    node.overload = ""
    model.graph.opset_imports[DOMAIN] = VERSION
