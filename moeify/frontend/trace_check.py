"""Does the traced graph compute what the model computes: at the example, and at a second shape?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from moeify.data.mapped_pages import read_module_by_module
from moeify.errors import InputError
from moeify.frontend.cone_ops import settled
from moeify.frontend.trace_compare import difference, one_line
from moeify.frontend.trace_shapes import FREE_DIMS, other_size, resized
from moeify.frontend.traced import Traced
from moeify.ir.model_graph import Batch

Sizes = dict[int, dict[int, int]]


def run_eager(model: nn.Module, batch: Batch) -> list[Any]:
    """The flattened outputs of the model itself. Raises what the model raises."""
    with torch.no_grad(), read_module_by_module(model):
        return pytree.tree_leaves(model(**batch) if isinstance(batch, dict) else model(*batch))


def check_example(traced: Traced, model: nn.Module, example: Batch, expected: list[Any]) -> None:
    """Raises InputError where the graph differs from the model at the example itself."""
    different = difference(traced.run(model, example), expected)
    if different:
        raise InputError(
            f"the traced graph of {type(model).__name__} does not compute what the model computes ({different}): "
            "its forward draws random numbers in eval mode, keeps state between calls, or knows that it is traced"
        )


def check_other_shapes(traced: Traced, model: nn.Module, example: Batch) -> tuple[bool, tuple[str, ...]]:
    """Whether the graph holds at other batch and sequence sizes, and a note where it does not."""
    leaves, spec = pytree.tree_flatten(example)
    for text, sizes in (*_beyond_fixed(traced, leaves), *_beyond_limits(traced, leaves)):
        batch = _batch(leaves, spec, sizes)
        expected = _eager_at(model, batch)
        if expected is not None and not _holds_at(traced, model, batch, expected)[0]:
            return False, (f"the traced graph holds for {text} only, the model for others too",)
    open_sizes = _open_sizes(traced, leaves)
    for dims in ((0, 1), (0,), (1,)):
        sizes = {
            i: picked for i, all_dims in open_sizes.items() if (picked := {d: s for d, s in all_dims.items() if d in dims})
        }
        batch = _batch(leaves, spec, sizes)
        expected = _eager_at(model, batch) if sizes else None
        if expected is not None:
            return _holds_at(traced, model, batch, expected)
    return False, ("batch and sequence sizes are fixed: the model takes only inputs of the example's shape",)


def _holds_at(traced: Traced, model: nn.Module, batch: Batch, expected: list[Any]) -> tuple[bool, tuple[str, ...]]:
    try:
        different = difference(traced.run(model, batch), expected)
    except Exception as error:  # what a graph raises at a shape that it was not made for is open
        different = one_line(error)
    if not different:
        return True, ()
    return False, (f"the traced graph holds for inputs of the example's shape only ({different})",)


def _eager_at(model: nn.Module, batch: Batch) -> list[Any] | None:
    """The model's outputs; None where it does not take such a batch."""
    try:
        return run_eager(model, batch)
    except Exception:  # any model may refuse a shape in its own way
        return None


def _open_sizes(traced: Traced, leaves: list[Any]) -> Sizes:
    """Other sizes for the free dims: {leaf: {dim: size}}; equal symbols get equal sizes."""
    new: dict[Any, int] = {}
    found: Sizes = {}
    for i, dim, symbolic in _dims(traced, leaves):
        if isinstance(symbolic, torch.SymInt):
            symbol = symbolic.node.expr
            if symbol.is_Symbol and symbol not in new:
                new[symbol] = other_size(leaves[i].shape[dim], dim, *_limits(symbolic)) or leaves[i].shape[dim]
            found.setdefault(i, {})[dim] = int(symbol.subs(new))
    return found


def _beyond_fixed(traced: Traced, leaves: list[Any]) -> Iterator[tuple[str, Sizes]]:
    """For every free dim and size that became a constant: another size in all leaves that have it."""
    groups: dict[tuple[int, int], Sizes] = {}
    for i, dim, symbolic in _dims(traced, leaves):
        size = leaves[i].shape[dim]
        other = other_size(size, dim, low=1)
        if not isinstance(symbolic, torch.SymInt) and other is not None:
            groups.setdefault((dim, size), {}).setdefault(i, {})[dim] = other
    yield from ((f"a size of {size} in dim {dim}", sizes) for (dim, size), sizes in groups.items())


def _beyond_limits(traced: Traced, leaves: list[Any]) -> Iterator[tuple[str, Sizes]]:
    """For every open size that tracing has limited: the nearest size beyond. Far upper limits are not tried (they cost)."""
    for i, dim, symbolic in _dims(traced, leaves):
        if isinstance(symbolic, torch.SymInt) and symbolic.node.expr.is_Symbol:
            low, high = _limits(symbolic)
            same = {j: {d: 0} for j, d, other in _dims(traced, leaves) if str(other) == str(symbolic)}
            for text, size in ((f"sizes from {low}", low - 1), (f"sizes up to {high}", (high or 0) + 1)):
                if 2 <= size <= 4 * leaves[i].shape[dim]:
                    yield f"{text} in dim {dim}", {j: dict.fromkeys(dims, size) for j, dims in same.items()}


def _limits(symbolic: torch.SymInt) -> tuple[int, int | None]:
    limits = symbolic.node.shape_env.var_to_range[symbolic.node.expr]
    return int(limits.lower), int(limits.upper) if limits.upper.is_Integer else None


def _dims(traced: Traced, leaves: list[Any]) -> Iterator[tuple[int, int, int | torch.SymInt]]:
    placeholders = {node.name: node for node in traced.graph.graph.nodes if node.op == "placeholder"}
    for i, name in enumerate(traced.user_inputs):
        if isinstance(leaves[i], Tensor):
            shape = placeholders[name].meta["val"].shape
            yield from ((i, dim, settled(shape[dim])) for dim in range(min(FREE_DIMS, len(shape))))


def _batch(leaves: list[Any], spec: pytree.TreeSpec, sizes: Sizes) -> Batch:
    batch: Batch = pytree.tree_unflatten(
        [resized(leaf, sizes[i]) if i in sizes else leaf for i, leaf in enumerate(leaves)], spec
    )
    return batch
