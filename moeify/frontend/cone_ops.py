"""What the nodes of a traced graph do to the features: nothing, each value for itself, or more.

Features stand in the last dimension (axis -1) or, as convolutions have them, in dim 1 (axis 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

#: Ops that compute each value for itself but that torch does not tag so.
_POINTWISE = {"multiply", "divide", "subtract", "hardswish", "log_sigmoid", "__and__", "__or__", "zeros_like", "ones_like"}
#: Ops that hand their first argument on: in another shape, memory or float type, or (dropouts) as it is in eval mode.
_SHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand"}
_COPIES = {"contiguous", "clone", "alias", "detach", "detach_", "lift_fresh_copy", "to", "_to_copy", "type_as"}
_DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout"}
_MOVES = {"transpose", "permute", "t", "movedim", "swapaxes", "roll"}
_NORMS = {
    "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "native_group_norm", "instance_norm",
    "batch_norm", "_native_batch_norm_legit_no_training", "mean", "var", "var_mean", "std", "sum", "amax", "linalg_vector_norm",
}  # fmt: skip
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}
CHANGES_PLACES = "its hidden values change places between its matrices"
#: Nodes that check or measure a value and compute nothing of it.
_CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size", "sym_constrain_range_for_size"}


def op_name(node: fx.Node) -> str:
    """`gelu` for aten.gelu.default; the function's name for others; empty for placeholders and outputs."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).split(".")[1]
    return str(getattr(node.target, "__name__", node.target))


def settled(size: int | torch.SymInt) -> int | torch.SymInt:
    """The size as a number where tracing has fixed it."""
    return int(size) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size


def is_pointwise(node: fx.Node) -> bool:
    """Every value of its output depends on the values at the same place of its inputs alone."""
    tags = getattr(node.target, "tags", ())
    return op_name(node) not in _COPIES and (torch.Tag.pointwise in tags or op_name(node) in _POINTWISE)


def is_layout(node: fx.Node, axis: int = -1) -> bool:
    """It hands on its first argument's values with the features whole and all tokens in their order."""
    name = op_name(node)
    if name in _DROPOUTS:
        return not bool(node.args[2])
    if name in _COPIES:
        return _float(node) and _float(node.all_input_nodes[0])
    if name not in _SHAPES or not node.all_input_nodes:
        return False
    before, after = shape(node.all_input_nodes[0]), shape(node)
    if name == "expand":
        return before == after
    if not before or not after:
        return False
    if axis == 1:
        return min(len(before), len(after)) > 2 and before[:2] == after[:2]
    return isinstance(after[-1], int) and before[-1] == after[-1]


def obstacle(node: fx.Node) -> str | None:
    """A step that may stand between the matrices of something near a feed-forward network: what it is, in words."""
    name = op_name(node)
    if name in _NORMS:
        return "a normalisation stands between its matrices"
    if name in _CONVOLUTIONS:
        return "a convolution stands between its matrices"
    if name in _MOVES or name in _SHAPES:
        return CHANGES_PLACES
    return None


def is_convolution(node: fx.Node) -> bool:
    return op_name(node) in _CONVOLUTIONS


def is_check(node: fx.Node) -> bool:
    """It only checks or measures a value."""
    return op_name(node) in _CHECKS


def lead(node: fx.Node, axis: int) -> tuple[int | str, ...]:
    """Its traced shape without the features."""
    sizes = list(shape(node))
    del sizes[axis]
    return tuple(sizes)


def shape(node: fx.Node) -> tuple[int | str, ...]:
    """The traced shape; open sizes as the text of their symbol. Empty for what is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(known if isinstance(known := settled(size), int) else str(known) for size in value.shape)


def stripped(node: fx.Node, axis: int = -1) -> fx.Node:
    """The node without the layout steps in front of it; changes of the float type and dropouts are not passed."""
    while is_layout(node, axis) and op_name(node) != "type_as" and not node.meta.get("dropout"):
        if _dtype(node) != _dtype(node.all_input_nodes[0]):
            break
        node = node.all_input_nodes[0]
    return node


def real_users(node: fx.Node) -> Iterator[fx.Node]:
    """The users that compute something of the node's value."""
    return (user for user in node.users if not is_check(user))


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _float(node: fx.Node) -> bool:
    dtype = _dtype(node)
    return dtype is not None and dtype.is_floating_point
