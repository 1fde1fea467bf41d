"""`moeify::MoE` nodes => `moeify::QMoE` nodes, their matrices stored as integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeify.export.onnx.attach import given_inputs, moe_nodes
from moeify.export.onnx.body_shape import BLOCK, DOMAIN, INTEGERS, QUANTISED, QUANTISED_INPUTS
from moeify.export.onnx.precision.constants import constant_matrix, initializer
from moeify.export.onnx.precision.matrix_rounding import MatrixRounding

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


def quantise_moe(model: ir.Model, bits: int, rounding: MatrixRounding) -> None:
    """Where hidden or output is no multiple of 32, 8 bits take the place of 4. Nodes whose weights are computed stay."""
    stored: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}  # a layer may be called more than once
    for node in moe_nodes(model):
        given = given_inputs(node)
        matrices = {name: constant_matrix(given[name]) for name in INTEGERS if name in given}
        known = {name: matrix for name, matrix in matrices.items() if matrix is not None}
        if len(known) < len(matrices):
            continue
        fits = all(matrix.shape[1] % BLOCK == 0 for matrix in known.values())
        width = bits if fits else 8
        for name, matrix in known.items():
            value = given[name]
            if (value, width) not in stored:
                own, by = value.name or name, value if name == "down" else given["x"]
                parts = rounding(own, f"{DOMAIN}::{QUANTISED}", matrix, width, by)
                stored[value, width] = (_renamed(model, value, parts.unsigned), initializer(model, f"{own}_scale", parts.scale))
            given[name], given[f"{name}_scale"] = stored[value, width]
        _replace(node, given, width)


def _renamed(model: ir.Model, value: ir.Value, array: NDArray[np.uint8]) -> ir.Value:
    """The integers get the name of the floats, by which a layer is known."""
    name = value.name or "weight"
    value.name = f"{name}.floats"
    return initializer(model, name, array)


def _replace(node: ir.Node, given: dict[str, ir.Value], bits: int) -> None:
    import onnx_ir as ir

    inputs = [given.get(name) for name in QUANTISED_INPUTS]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {**{a.name: a.value for a in node.attributes.values()}, "bits": bits}
    new = ir.node(QUANTISED, inputs, attributes, domain=DOMAIN, name=node.name)
    graph = node.graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)
