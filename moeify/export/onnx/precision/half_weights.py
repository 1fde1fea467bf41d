"""Matrices stored as float16 and cast to float32 where they are used: runtimes do that once, when they load the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeify.export.onnx.precision.constants import initializer
from moeify.export.onnx.precision.rounding import relative_error
from moeify.export.onnx.report import StoredMatrix

if TYPE_CHECKING:
    import onnx_ir as ir

_FLOAT = 1  # of TensorProto.DataType


def halve(model: ir.Model, spared: set[ir.Node]) -> list[StoredMatrix]:
    """All float32 initializers of two dimensions or more, but for those of the nodes `spared` and those with a value beyond
    float16's range (65504)."""
    import onnx_ir as ir

    found: list[StoredMatrix] = []
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is None or value.is_graph_input() or value.is_graph_output():
            continue
        array = value.const_value.numpy()
        spare = any(use.node in spared for use in value.uses())
        if array.dtype != np.float32 or array.ndim < 2 or spare or float(np.abs(array).max(initial=0.0)) > 65504:
            continue
        half = array.astype(np.float16)
        del model.graph.initializers[name]
        stored = initializer(model, f"{name}.float16", half)
        cast = ir.node("Cast", [stored], {"to": _FLOAT})
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, value.type, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        model.graph.insert_before(model.graph[0], cast)
        found.append(StoredMatrix(name, "float16", 16, relative_error(array, half.astype(np.float32))))
    return found
