"""Constant matrices of a traced graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


def constant_matrix(value: ir.Value | None) -> NDArray[np.float32] | None:
    """A float32 matrix that the graph holds, also as the transpose of one that is stored for another use; else None."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and node.domain == "":
        matrix = constant_matrix(node.inputs[0])
        return None if matrix is None or tuple(node.attributes.get_ints("perm", (1, 0))) != (1, 0) else matrix.T
    if value.const_value is None or value.is_graph_input():
        return None
    array = value.const_value.numpy()
    return array if array.dtype == np.float32 and array.ndim == 2 else None


def initializer(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new one of that name, or of `name@1` and so on where the name is taken."""
    import onnx_ir as ir

    taken = model.graph.initializers
    free = next(n for n in (name, *(f"{name}@{i}" for i in range(1, len(taken) + 2))) if n not in taken)
    value = ir.val(free, const_value=ir.tensor(np.ascontiguousarray(array), name=free))
    model.graph.register_initializer(value)
    return value
