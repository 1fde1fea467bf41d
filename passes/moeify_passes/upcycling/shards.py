"""Cutting a copy of the FFN into experts, and scaling what they say."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.copies import row_factors
from moeify.ir.feed_forward import FeedForward
from moeify_passes.upcycling.dense_weights import NeuronWeights


def shard_size(site: FeedForward, shards: int) -> int:
    """The neurons of one shard. Raises UsageError, naming the nearest counts that divide, where shards cannot be equal."""
    if site.neurons % shards == 0:
        return site.neurons // shards
    counts = [n for n in range(1, site.neurons + 1) if site.neurons % n == 0]
    near = [*[n for n in counts if n < shards][-1:], *[n for n in counts if n > shards][:1]]
    raise UsageError(
        f"upcycle-experts.shards is {shards}: the {site.neurons} neurons of {site.path} do not divide by it; "
        f"choose {' or '.join(map(str, near))}"
    )


def scaled(weights: NeuronWeights, factor: float) -> NeuronWeights:
    """The same neurons with outputs `factor` times as large (`moeify.ir.copies.row_factors`)."""
    if factor == 1:
        return weights
    factors = row_factors(factor, "gate" in weights).items()
    return weights | {name: _times(weights[name], part) for name, part in factors if name in weights and part != 1}


def is_lossless(factor: float, dtype: torch.dtype) -> bool:
    """Does scaling by it keep all that the dtype holds, or nearly (float32 and wider)?"""
    return math.log2(factor).is_integer() or torch.finfo(dtype).bits >= 32


def _times(weight: Tensor, factor: float) -> Tensor:
    return (weight.float() * factor).to(weight.dtype)
