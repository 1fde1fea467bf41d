"""Equal initializers of a graph become one: tied weights, also where one is the transpose of the other, and constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Kept = dict[tuple[int, tuple[int, ...], bytes], list[ir.Value]]

#: Smaller transposes are not worth a node.
_WORTH = 4096


def store_once(model: ir.Model) -> None:
    """Changes the main graph. A transpose becomes a node on the one that is kept: runtimes fold it when they load."""
    kept: Kept = {}
    initializers = model.graph.initializers
    # Weights that kept their own name come first: they are the ones to keep.
    for name in sorted(initializers, key=lambda name: name.startswith("val_")):
        value = initializers[name]
        if value.const_value is None or value.is_graph_input() or value.is_graph_output():
            continue
        array = value.const_value.numpy()
        twin = _twin(kept, value, array)
        if twin is None and array.ndim == 2 and array.size >= _WORTH:
            other = _twin(kept, value, array.T)
            twin = None if other is None else _transposed(model, other)
        if twin is None:
            kept.setdefault(_key(value, array), []).append(value)
        else:
            value.replace_all_uses_with(twin)
            del initializers[name]


def _twin(kept: Kept, value: ir.Value, array: Array) -> ir.Value | None:
    for other in kept.get(_key(value, array), ()):
        assert other.const_value is not None
        if np.array_equal(other.const_value.numpy(), array):
            return other
    return None


def _key(value: ir.Value, array: Array) -> tuple[int, tuple[int, ...], bytes]:
    """What equal tensors share; a sample of values tells most others apart."""
    assert value.const_value is not None
    sample = array[tuple(slice(None, None, max(1, size // 16)) for size in array.shape)]
    return int(value.const_value.dtype), array.shape, sample.tobytes()


def _transposed(model: ir.Model, value: ir.Value) -> ir.Value:
    import onnx_ir as ir

    node = ir.node("Transpose", [value], {"perm": [1, 0]})
    node.outputs[0].name = f"{value.name}.transposed"
    node.outputs[0].type = value.type
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]
