"""The rows of an upcycled layer whose copies are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.ir.copies import copy_factors
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.upcycling.checkpoints import Checkpoints
from moeify_passes.upcycling.copies import Copies
from moeify_passes.upcycling.dense_weights import dense_weights
from moeify_passes.upcycling.drop import Drop
from moeify_passes.upcycling.noise import Noise
from moeify_passes.upcycling.shards import scaled

#: Strategies that make each copy.
Copying = Copies | Noise | Drop | Checkpoints


def copied_rows(
    by: Copying, site: FeedForward, copies: int, shards: int, shared: bool, context: PassContext
) -> dict[str, Tensor]:
    """The rows that differ from the dense ones by name, the shared copy first, and an output bias that does."""
    of_shared, of_routed = copy_factors(shards, shared)
    found: dict[str, Tensor] = {}
    if not (by.exact and of_shared == of_routed == 1):
        dense = dense_weights(site)
        made = [scaled(dense, of_shared)] if shared else []
        made += [scaled(by.copy(site, dense, number, context), of_routed) for number in range(copies)]
        changed = [name for name in dense if any(copy[name] is not dense[name] for copy in made)]
        found = {name: torch.cat([copy[name] for copy in made]) for name in changed}
    bias = by.output_bias(site, context)
    return found if bias is None else found | {"output_bias": bias}
