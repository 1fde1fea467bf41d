"""Convolutions that see one place at a time, as projections over dim 1."""

from __future__ import annotations

from math import prod

from torch import Tensor, fx

from moeify.frontend.cone_ops import op_name, shape
from moeify.frontend.cone_projection import Projection, Weights


def convolution(node: fx.Node, weights: Weights) -> Projection | None:
    """None for a convolution with a larger kernel, a stride or padding."""
    weight = weights.tensor(node.args[1])
    x, bias_node = node.args[0], node.args[2] if len(node.args) > 2 else None
    if weight is None or not isinstance(x, fx.Node) or not _sees_one_place(node, weight):
        return None
    assert isinstance(node.args[1], fx.Node)
    path, width_out, width_in = weights.traced.lifted[node.args[1].name], weight.shape[0], shape(x)[1]
    bias = None if bias_node is None else weights.vector(bias_node, width_out)
    if (bias_node is not None and bias is None) or not isinstance(width_in, int) or len(shape(x)) != weight.ndim:
        return None
    grouped = width_in != weight.shape[1]
    return Projection(node, x, path, bias, False, width_in, width_out, frozenset({node}), axis=1, grouped=grouped)


def _sees_one_place(node: fx.Node, weight: Tensor) -> bool:
    """Kernel 1, stride 1, no padding."""
    stride, padding = (*node.args, *(None, None, None, 1, 0)[len(node.args) :])[3:5]
    ones, zeros = ([value] * (weight.ndim - 2) for value in (1, 0))
    still = stride in (1, [1], ones) and padding in (0, "valid", "same", [0], zeros)
    transposed = op_name(node) == "convolution" and node.args[6]
    return weight.ndim > 2 and prod(weight.shape[2:]) == 1 and still and not transposed
