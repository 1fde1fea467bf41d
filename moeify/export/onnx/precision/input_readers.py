"""Which matrices an input of products goes into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moeify.export.onnx.attach import given_inputs, moe_nodes
from moeify.export.onnx.precision.constants import constant_matrix
from moeify.export.onnx.precision.dense_products import name_of, weights_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Reader:
    """A constant matrix that an input x goes into: `matrix` [rows, width], held by `value`, which is laid out that way or
    transposed. node: what reads it, at `place`; whole: is that its only reader? rounded: False for what stays float32."""

    name: str
    node: ir.Node
    place: int
    value: ir.Value
    matrix: NDArray[np.float32]
    transposed: bool
    whole: bool
    rounded: bool = True


def readers_of(model: ir.Model, spared: set[ir.Node]) -> dict[ir.Value, list[Reader]]:
    """In the order of the graph, by the input; without nodes that are spared, and inputs of which nothing is rounded."""
    layers = set(moe_nodes(model))
    found: dict[ir.Value, list[Reader]] = {}
    for node in model.graph:
        if node not in spared:
            for x, reader in _of_layer(node) if node in layers else _of_product(node):
                found.setdefault(x, []).append(reader)
    return {x: readers for x, readers in found.items() if any(reader.rounded for reader in readers)}


def _of_product(node: ir.Node) -> Iterator[tuple[ir.Value, Reader]]:
    matrix, x = weights_of(node), node.inputs[0] if node.inputs else None
    if matrix is not None and x is not None:
        value = node.inputs[1]
        assert value is not None
        rows_first = node.attributes.get_int("transB", 0) == 1
        whole = value.producer() is not None or len(value.uses()) == 1
        yield x, Reader(name_of(node), node, 1, value, matrix.T, not rows_first, whole)


def _of_layer(node: ir.Node) -> Iterator[tuple[ir.Value, Reader]]:
    """Nothing where a matrix is computed: the layer stays as it is."""
    given = given_inputs(node)
    names = [name for name in ("up", "gate", "low_rank_in") if name in given]
    matrices = [constant_matrix(given[name]) for name in names]
    for name, matrix in zip(names, matrices):
        if matrix is not None and all(m is not None for m in matrices):
            value = given[name]
            place = next(i for i, read in enumerate(node.inputs) if read is value)
            whole, floats = len(value.uses()) == 1, name == "low_rank_in"
            yield given["x"], Reader(str(value.name), node, place, value, matrix, False, whole, not floats)
