"""Does the traced graph compute what the model computes: at the example, and at a second shape?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from moeify.errors import InputError
from moeify.frontend.cone_ops import settled
from moeify.frontend.trace_shapes import FREE_DIMS, other_size, resized
from moeify.frontend.traced import Traced
from moeify.ir.model_graph import Batch

#: Largest difference allowed, relative to the largest output: the graph runs the same kernels as the model.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2

Sizes = dict[int, dict[int, int]]


def run_eager(model: nn.Module, batch: Batch) -> list[Any]:
    """The flattened outputs of the model itself. Raises what the model raises."""
    with torch.no_grad():
        return pytree.tree_leaves(model(**batch) if isinstance(batch, dict) else model(*batch))


def check_example(traced: Traced, model: nn.Module, example: Batch, expected: list[Any]) -> None:
    """Raises InputError where the graph differs from the model at the example itself."""
    difference = _difference(traced.run(model, example), expected)
    if difference:
        raise InputError(
            f"the traced graph of {type(model).__name__} does not compute what the model computes ({difference}): "
            "its forward draws random numbers in eval mode, or keeps state between calls"
        )


def check_other_shapes(traced: Traced, model: nn.Module, example: Batch) -> tuple[bool, tuple[str, ...]]:
    """Whether the graph holds at other batch and sequence sizes, and a note where it does not."""
    leaves, spec = pytree.tree_flatten(example)
    for sizes in _fixed_sizes(traced, leaves):
        if _eager_at(model, _batch(leaves, spec, sizes)) is not None:
            dim, size = next((d, leaves[i].shape[d]) for i, dims in sizes.items() for d in dims)
            return False, (f"the traced graph holds for a size of {size} in dim {dim} only: tracing made it a constant",)
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
        difference = _difference(traced.run(model, batch), expected)
    except Exception as error:  # what a graph raises at a shape that it was not made for is open
        difference = one_line(error)
    if not difference:
        return True, ()
    return False, (f"the traced graph holds for inputs of the example's shape only ({difference})",)


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
                limits = symbolic.node.shape_env.var_to_range[symbol]
                high = int(limits.upper) if limits.upper.is_Integer else None
                new[symbol] = other_size(leaves[i].shape[dim], dim, int(limits.lower), high) or leaves[i].shape[dim]
            found.setdefault(i, {})[dim] = int(symbol.subs(new))
    return found


def _fixed_sizes(traced: Traced, leaves: list[Any]) -> Iterator[Sizes]:
    """For every free dim and size that became a constant: another size in all leaves that have it."""
    groups: dict[tuple[int, int], Sizes] = {}
    for i, dim, symbolic in _dims(traced, leaves):
        size = leaves[i].shape[dim]
        other = other_size(size, dim, low=1)
        if not isinstance(symbolic, torch.SymInt) and other is not None:
            groups.setdefault((dim, size), {}).setdefault(i, {})[dim] = other
    yield from groups.values()


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


def _difference(found: list[Any], expected: list[Any]) -> str:
    """What is different, in a few words; empty where nothing is. Tensors on the meta device are compared by shape."""
    ours, theirs = ([leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves in (found, expected))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return f"shapes {[list(t.shape) for t in ours]}, not {[list(t.shape) for t in theirs]}"
    for a, b in zip(ours, theirs):
        if a.device.type == "meta" or not a.numel():
            continue
        if not b.is_floating_point():
            if not torch.equal(a, b):
                return "integer outputs are not equal"
            continue
        far = torch.nan_to_num(a.double() - b.double(), 0.0).abs().max().item()
        scale = 1 + torch.nan_to_num(b.double(), 0.0, 0.0, 0.0).abs().max().item()
        if far > _TOLERANCE.get(b.dtype, _HALF_TOLERANCE) * scale or not torch.equal(a.isnan(), b.isnan()):
            return f"largest difference {far:.1e}"
    return ""


def one_line(error: BaseException) -> str:
    """The first line of an error's text that says something, cut at 200 characters."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]
