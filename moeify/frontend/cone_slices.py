"""Cuts of the last dimension: how one wide projection gives several branches."""

from __future__ import annotations

import operator

from torch import fx

from moeify.frontend.cone_ops import op_name, shape

#: Ops that give all parts at once; a getitem picks one.
SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split"}


def is_slice(node: fx.Node) -> bool:
    """It cuts the last dimension."""
    return op_name(node) in SPLITS or bool(cuts(node))


def cuts(node: fx.Node) -> list[tuple[int, int]] | None:
    """The run (start, stop) of the last dimension that a slice or an item of a split takes, both runs that a `glu` multiplies;
    None for any other node."""
    return _glu_cuts(node) if op_name(node) == "glu" else _cut(node)


def _glu_cuts(node: fx.Node) -> list[tuple[int, int]] | None:
    size = shape(node.all_input_nodes[0])[-1]
    if not isinstance(size, int) or not _is_last(node, node.args[1] if len(node.args) > 1 else -1):
        return None
    return [(0, size // 2), (size // 2, size)]


def _cut(node: fx.Node) -> list[tuple[int, int]] | None:
    """The run of the last dimension that a slice, or an item of a split, takes; None for any other node."""
    name = op_name(node)
    if node.target is operator.getitem and op_name(node.all_input_nodes[0]) in SPLITS:
        parent, item = node.all_input_nodes[0], node.args[1]
        dim = parent.args[2] if len(parent.args) > 2 else 0
        sizes = [part.shape[-1] for part in parent.meta["val"]]
        if not _is_last(parent, dim) or not isinstance(item, int):
            return None
        return [(sum(sizes[:item]), sum(sizes[: item + 1]))]
    if name == "slice" and len(node.args) <= 4 and _is_last(node, node.args[1] if len(node.args) > 1 else 0):
        size = shape(node.all_input_nodes[0])[-1]
        start, stop = [*node.args[2:], None, None][:2]
        if isinstance(size, int) and isinstance(start, int | None) and isinstance(stop, int | None):
            picked = range(size)[slice(start, stop)]
            return [(picked.start, picked.stop)]
    if name == "narrow" and _is_last(node, node.args[1]) and isinstance(node.args[2], int) and isinstance(node.args[3], int):
        return [(node.args[2], node.args[2] + node.args[3])]
    return None


def _is_last(node: fx.Node, dim: object) -> bool:
    return dim in (-1, len(shape(node.all_input_nodes[0])) - 1)
