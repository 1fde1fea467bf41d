"""Rows of `down` in 4 bits: scales that cut weights off, where an MoE layer's outputs are nearer with them.

    y = sum over neurons i of h_i d_i

Products add up over rows: an error of d_i counts by h_i, in each column alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from moeify.export.onnx.attach import given_inputs, moe_nodes
from moeify.export.onnx.body_shape import BLOCK
from moeify.export.onnx.precision.constants import constant_matrix
from moeify.export.onnx.precision.product_inputs import ProductInput
from moeify.export.onnx.precision.rounding import rounded
from moeify.export.onnx.report import Calibrated
from moeify.ir.activations import activation

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Array = NDArray[np.float32]


def calibrate_outputs(model: ir.Model, inputs: Mapping[str, ProductInput]) -> tuple[list[Calibrated], dict[str, Array]]:
    """What was chosen, and the importance of columns by the names of the matrices. Judged by what all experts together say to
    the tokens held out, before their inputs are smoothed."""
    found: dict[str, Calibrated] = {}
    importance = {}
    for node in moe_nodes(model):
        given = given_inputs(node)
        name, seen = str(given["down"].name), inputs.get(str(given["x"].name))
        matrices = {key: constant_matrix(given[key]) for key in ("up", "gate", "down") if key in given}
        known = {str(key): matrix for key, matrix in matrices.items() if matrix is not None}
        if name in found or seen is None or len(known) < len(matrices) or known["down"].shape[1] % BLOCK:
            continue
        h, alike = _hidden(node, given, known, seen.held), np.ones(known["down"].shape[1], np.float32)
        nearest, cut = (_error(h, known["down"], way) for way in (None, alike))
        if cut < nearest:
            importance[name] = alike
        found[name] = Calibrated(f"rows of {name}", "weighted" if cut < nearest else "nearest", nearest, min(cut, nearest))
    return list(found.values()), importance


def _hidden(node: ir.Node, given: Mapping[str, ir.Value], matrices: Mapping[str, Array], x: Array) -> Array:
    """What the neurons of all experts say to x [tokens, hidden]: [tokens, neurons]."""

    def product(name: str) -> Array:
        bias = given.get(f"{name}_bias")
        constant = None if bias is None or bias.const_value is None else bias.const_value.numpy()
        return np.asarray(x @ matrices[name].T + (0 if constant is None else constant), dtype=np.float32)

    inner = activation(str(node.attributes["activation"].value))
    bent = inner(torch.from_numpy(product("gate" if "gate" in matrices else "up"))).numpy()
    return np.asarray(bent * product("up") if "gate" in matrices else bent)


def _error(h: Array, down: Array, importance: Array | None) -> float:
    """The squared error of h times the rounded matrix / its square."""
    exact = h @ down
    off = h @ rounded(down, 4, importance).restored - exact
    return float(np.square(off).sum()) / max(float(np.square(exact).sum()), 1e-30)
