"""The copies of an upcycled FFN, and their mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.copies import copy_factors, row_factors
from moeify.ir.moe_config import MoEConfig
from moeify.layers.dense_ffn.strategy import DenseWeights, check_low_rank, dtype_of, output_bias_of, rows_of
from moeify.layers.moe_layer import MoELayer


@dataclass(frozen=True)
class Mean:
    """The mean of the copies of an upcycled layer, a shared one counting as much as all routed ones together.

    Exact where all copies are equal and their gates sum to 1; else an approximation.
    """

    name: ClassVar[str] = "mean"

    def check(self, config: MoEConfig, neurons: int) -> None:
        if config.shards is None:
            raise UsageError("its experts are parts of its dense network, not copies of it: gather them by concatenate")
        if (size := config.sizes[0] * config.shards) != neurons:
            raise UsageError(f"its copies have {size} neurons, its dense network has place for {neurons}")
        check_low_rank(config)

    def equals(self, config: MoEConfig) -> None:
        return None

    def gather(self, layer: MoELayer) -> DenseWeights:
        found: dict[str, Tensor] = {}
        for share, copy in copies_of(layer):
            for name, value in copy.items():
                found[name] = found[name] + share * value if name in found else share * value
        return {name: value.to(dtype_of(layer)) for name, value in found.items()} | output_bias_of(layer)


def copies_of(layer: MoELayer) -> Iterator[tuple[float, DenseWeights]]:
    """(share, whole FFN in float32 or float64, without the scale that copies have), a shared one first; shares sum to 1."""
    config = layer.config
    shards, shared = config.shards or 1, config.shared > 0
    size = config.sizes[0] * shards
    routed = (config.rows - config.shared) // size
    of_shared, of_routed = copy_factors(shards, shared)
    split = {name: torch.split(value, [*[config.shared] * shared, *[size] * routed]) for name, value in rows_of(layer).items()}
    factors = [*[(0.5, of_shared)] * shared, *[((0.5 if shared else 1.0) / routed, of_routed)] * routed]
    for number, (share, factor) in enumerate(factors):
        scales = row_factors(factor, config.gated)
        yield share, {name: _precise(parts[number]) / scales.get(name, 1.0) for name, parts in split.items()}


def _precise(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
