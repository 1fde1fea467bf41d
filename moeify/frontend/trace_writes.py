"""In-place writes as functional steps, where nobody else can see the memory that is written."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


def without_writes(graph: fx.Graph) -> bool:
    """Turns `a.add_(b)` into `a2 = a + b`, later uses of a reading a2. True where no write is left.

    It does so where a is fresh memory (no view, no input) of which no view was taken before. Other writes, and graphs
    inside the graph, stay: they need a full decomposition, which costs twice as much as the export itself.
    """
    clean = True
    for node in list(graph.nodes):
        if node.op == "call_function" and not is_functional(node):
            target = _functional_op(node)
            if target is None or not _unseen(node):
                clean = False
                continue
            written = node.args[0]
            assert isinstance(written, fx.Node)
            written.replace_all_uses_with(node, delete_user_cb=_after(node).__contains__)
            node.target = target
    return clean


def is_functional(node: fx.Node) -> bool:
    """It neither writes in place nor hides a graph of its own."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    return not (isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable)


def _functional_op(node: fx.Node) -> torch._ops.OpOverload | None:
    """`aten.add.Tensor` for `aten.add_.Tensor` where it gives the same dtype; None where there is none."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    namespace, name, overload = str(node.target).split(".")
    writes = [a.alias_info is not None and a.alias_info.is_write for a in node.target._schema.arguments]
    dtypes = {
        arg.meta["val"].dtype for arg in node.args if isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), torch.Tensor)
    }
    if not name.endswith("_") or writes != [True] + [False] * (len(writes) - 1) or len(dtypes) != 1:
        return None
    found: Any = getattr(getattr(getattr(torch.ops, namespace), name[:-1], None), overload, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _unseen(node: fx.Node) -> bool:
    written = node.args[0]
    if not isinstance(written, fx.Node) or not _fresh(written):
        return False
    later = _after(node)
    return all(_fresh(user) for user in written.users if user is not node and user not in later)


def _fresh(node: fx.Node) -> bool:
    """Its output is memory of its own."""
    if node.target is operator.getitem:
        return _fresh(node.all_input_nodes[0])
    if not isinstance(node.target, torch._ops.OpOverload) or "dropout" in str(node.target):
        return False
    return all(r.alias_info is None for r in node.target._schema.returns)


def _after(node: fx.Node) -> set[fx.Node]:
    """The users of what the node writes that come after it."""
    written = node.args[0]
    assert isinstance(written, fx.Node)
    return {user for user in written.users if user is not node and node < user}
