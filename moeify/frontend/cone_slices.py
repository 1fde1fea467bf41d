"""Cuts of the features: how one wide projection gives several branches. axis: -1 or 1, where the features stand."""

from __future__ import annotations

import operator

from torch import fx

from moeify.frontend.cone_ops import op_name, shape

#: Ops that give all parts at once; a getitem picks one.
SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split"}


def is_slice(node: fx.Node, axis: int) -> bool:
    """It cuts the features."""
    return op_name(node) in SPLITS or bool(cuts(node, axis))


def cuts(node: fx.Node, axis: int) -> list[tuple[int, int]] | None:
    """The run (start, stop) of the features that a slice or an item of a split takes, both runs that a `glu` multiplies;
    None for any other node."""
    return _glu_cuts(node, axis) if op_name(node) == "glu" else _cut(node, axis)


def _glu_cuts(node: fx.Node, axis: int) -> list[tuple[int, int]] | None:
    if not _is_dim(node, node.args[1] if len(node.args) > 1 else -1, axis):
        return None
    size = shape(node.all_input_nodes[0])[axis]
    if not isinstance(size, int):
        return None
    return [(0, size // 2), (size // 2, size)]


def _cut(node: fx.Node, axis: int) -> list[tuple[int, int]] | None:
    """The run of the features that a slice, or an item of a split, takes; None for any other node."""
    name = op_name(node)
    if node.target is operator.getitem and op_name(node.all_input_nodes[0]) in SPLITS:
        parent, item = node.all_input_nodes[0], node.args[1]
        dim = parent.args[2] if len(parent.args) > 2 else 0
        if not _is_dim(parent, dim, axis) or not isinstance(item, int):
            return None
        sizes = [part.shape[axis] for part in parent.meta["val"]]
        return [(sum(sizes[:item]), sum(sizes[: item + 1]))]
    if name == "slice" and len(node.args) <= 4 and _is_dim(node, node.args[1] if len(node.args) > 1 else 0, axis):
        size = shape(node.all_input_nodes[0])[axis]
        start, stop = [*node.args[2:], None, None][:2]
        if isinstance(size, int) and isinstance(start, int | None) and isinstance(stop, int | None):
            picked = range(size)[slice(start, stop)]
            return [(picked.start, picked.stop)]
    if name == "narrow" and _is_dim(node, node.args[1], axis):
        first, count = node.args[2:4]
        return [(first, first + count)] if isinstance(first, int) and isinstance(count, int) else None
    return None


def _is_dim(node: fx.Node, dim: object, axis: int) -> bool:
    dims = len(shape(node.all_input_nodes[0]))
    return isinstance(dim, int) and dims > 1 and dim % dims == axis % dims
