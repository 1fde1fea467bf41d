"""Batches of other sizes, made from the example by repeating and slicing, so that integers stay in their range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from moeify.ir.model_graph import Batch

#: Dims that may change from batch to batch: the first (batch) and the second (sequence).
FREE_DIMS = 2


def without_ones(example: Batch) -> Batch:
    """The example with batch and sequence sizes of 1 repeated to 2: torch.export makes a size of 1 a constant.

    The first dim is repeated where all tensors have a first dim of 1, the second dim of integer tensors where it is 1.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.ndim]
    single = all(tensor.shape[0] == 1 for tensor in tensors)

    def grown(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        sizes = {0: 2} if single else {}
        if leaf.ndim > 1 and leaf.shape[1] == 1 and not leaf.is_floating_point():
            sizes[1] = 2
        return resized(leaf, sizes)

    grown_example: Batch = pytree.tree_map(grown, example)
    return grown_example


def distinct(example: Batch) -> Batch:
    """The example with each tensor an object of its own: torch.export takes one object in two places for one input."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return leaf.clone()

    apart: Batch = pytree.tree_map(own, example)
    return apart


def resized(value: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """The tensor with other sizes of some dims: {dim: size}. Sliced where smaller, repeated where larger."""
    for dim, size in sizes.items():
        value = value.index_select(dim, torch.arange(size, device=value.device) % value.shape[dim])
    return value


def other_size(size: int, dim: int, low: int = 2, high: int | None = None) -> int | None:
    """Another size for a dim within [low, high]; None where there is none. One more for a batch, one less for a sequence
    (a sequence may already be as long as the model can take)."""
    tries = (size + 1, size - 1) if dim == 0 else (size - 1, size + 1)
    return next((t for t in tries if t >= max(low, 1) and (high is None or t <= high)), None)
