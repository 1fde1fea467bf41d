"""The sum that the output of a feed-forward network goes into: in most models the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from moeify.frontend.cone_ops import op_name, real_users, shape
from moeify.frontend.match import Call

#: What hands tokens on in their order, in another shape or float type (dropouts do so in eval mode).
_AS_THEY_ARE = {
    "view", "reshape", "_unsafe_view", "unflatten", "flatten", "to", "_to_copy", "contiguous", "clone", "alias", "detach",
    "dropout",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class OutputSum:
    """total = the FFN's output + others, all of one shape; `ready` is the last of the others and the FFN's input to be
    computed, and nothing of the FFN is before it."""

    total: fx.Node
    others: tuple[fx.Node, ...]
    ready: fx.Node


def output_sum(call: Call, index: Mapping[fx.Node, int]) -> OutputSum | None:
    """Follows the output through additions for as long as nothing else reads it; None where there is none to follow.

    index: the positions of the nodes in the order of execution.
    """
    if call.channels:
        return None
    node, total, others = call.y, None, list[fx.Node]()
    begins = min(index[inner] for inner in (*call.inside, call.y))
    while len(users := list(real_users(node))) == 1:
        user = users[0]
        if op_name(user) == "add" and (other := _other(user, node)) is not None and index[other] < begins:
            others.append(other)
            total = user
        elif op_name(user) not in _AS_THEY_ARE or shape(user)[-1:] != shape(node)[-1:]:
            break
        node = user
    return None if total is None else OutputSum(total, tuple(others), max((*others, call.x), key=index.__getitem__))


def _other(add: fx.Node, node: fx.Node) -> fx.Node | None:
    """What is added to the node, if it has its shape and comes in once and as it is."""
    if add.kwargs or len(add.args) != 2:
        return None
    first, second = add.args
    other = second if first is node else first
    return other if isinstance(other, fx.Node) and other is not node and shape(other) == shape(node) == shape(add) else None
