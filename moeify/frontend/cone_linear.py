"""Projections: every way in which a graph multiplies a value with a matrix of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from moeify.frontend.cone_convolution import convolution
from moeify.frontend.cone_ops import is_convolution, is_layout, op_name, real_users, shape
from moeify.frontend.cone_projection import Projection, Weights
from moeify.frontend.traced import Traced


def projections(traced: Traced, model: nn.Module) -> dict[fx.Node, Projection]:
    """All projections of the graph by their output node, in graph order."""
    lookup = Weights(traced, model)
    found = (_projection(node, lookup) for node in traced.graph.graph.nodes if node.op == "call_function")
    merged = (_with_added_bias(p, lookup) for p in found if p is not None)
    return {p.node: p for p in merged}


def _projection(node: fx.Node, weights: Weights) -> Projection | None:
    if is_convolution(node):
        return convolution(node, weights)
    parts = _operands(node)
    matrix = weights.matrix(parts[1]) if parts is not None else None
    if parts is None or matrix is None or weights.tensor(parts[0]) is not None:
        return None
    x, _, bias_node, stored_in_out = parts
    placeholder, flipped, passed = matrix
    in_out = stored_in_out != flipped
    size = tuple(_shape_of(weights.tensor(placeholder)))
    width_in, width_out = size if in_out else size[::-1]
    bias = None if bias_node is None else weights.vector(bias_node, width_out)
    if (bias_node is not None and bias is None) or shape(node)[-1:] != (width_out,):
        return None
    path = weights.traced.lifted[placeholder.name]
    return Projection(node, x, path, bias, in_out, width_in, width_out, passed | {node})


def _operands(node: fx.Node) -> tuple[fx.Node, Any, Any, bool] | None:
    """(x, matrix, bias or None, the matrix is used as [in, out]) of a node that multiplies."""
    name, args = op_name(node), node.args
    found: tuple[Any, Any, Any, bool] | None = None
    if name == "linear":
        found = args[0], args[1], args[2] if len(args) > 2 else None, False
    elif name in ("mm", "matmul", "bmm"):
        found = args[0], args[1], None, True
    elif name == "addmm" and not node.kwargs:
        found = args[1], args[2], args[0], True
    elif name == "einsum" and isinstance(args[1], list | tuple) and len(args[1]) == 2:
        in_out = _einsum_form(str(args[0]))
        found = None if in_out is None else (args[1][0], args[1][1], None, in_out)
    return found if found is not None and isinstance(found[0], fx.Node) else None


def _einsum_form(equation: str) -> bool | None:
    """Whether "btd,dn->btn" multiplies with [in, out] (True) or, as "btd,nd->btn", [out, in]; None: neither."""
    left, _, result = equation.replace(" ", "").partition("->")
    x, _, matrix = left.partition(",")
    if len(matrix) != 2 or len(x) < 1 or x[:-1] != result[:-1] or not result:
        return None
    return {x[-1] + result[-1]: True, result[-1] + x[-1]: False}.get(matrix)


def _with_added_bias(projection: Projection, weights: Weights) -> Projection:
    """The projection with a bias that is added in a step of its own."""
    node, passed = projection.node, set(projection.nodes)
    while projection.bias is None and projection.axis == -1:
        users = list(real_users(node))
        if len(users) != 1 or len(node.users) != 1:
            break
        user = users[0]
        passed.add(user)
        if op_name(user) == "add" and len(user.args) == 2 and not user.kwargs:
            other = user.args[1] if user.args[0] is node else user.args[0]
            bias = weights.vector(other, projection.width_out)
            bias = bias if shape(user) == shape(node) else None  # [1, 1, width] can add a dim
            return projection if bias is None else replace(projection, node=user, bias=bias, nodes=frozenset(passed))
        if not is_layout(user) or user.meta.get("dropout"):
            break
        node = user
    return projection


def _shape_of(value: Tensor | None) -> tuple[int, ...]:
    assert value is not None
    return tuple(value.shape)
