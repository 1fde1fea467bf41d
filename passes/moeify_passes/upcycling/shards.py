"""Cutting a copy of the FFN into experts, and scaling what they say."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moeify.errors import UsageError
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
    """The same neurons with outputs `factor` times as large.

    Gated: up and down rows share the factor, the gate stays, for act(s z) is not s act(z). Two-matrix: down alone. The part of
    up is a power of two, so that a factor that is one loses nothing in any dtype.
    """
    if factor == 1:
        return weights
    if "gate" not in weights:
        return weights | {"down": _times(weights["down"], factor)}
    of_up = 2.0 ** round(math.log2(factor) / 2)
    factors = {"up": of_up, "up_bias": of_up, "down": factor / of_up}
    return weights | {name: _times(weights[name], part) for name, part in factors.items() if name in weights and part != 1}


def is_lossless(factor: float, dtype: torch.dtype) -> bool:
    """Does scaling by it keep all that the dtype holds, or nearly (float32 and wider)?"""
    return math.log2(factor).is_integer() or torch.finfo(dtype).bits >= 32


def _times(weight: Tensor, factor: float) -> Tensor:
    return (weight.float() * factor).to(weight.dtype)
