"""Experts of which a part starts anew (Drop-Upcycling, Nakamura et al. 2025, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.upcycling.dense_weights import NeuronWeights


@dataclass(frozen=True)
class Drop:
    """Re-initialises a random part of the neurons of every copy, another part in each.

    share: of the neurons (0 to 1; 0.5 in the paper). A neuron that is drawn loses its gate, up and down row together, biases
    included; the new values are normal, with the mean and standard deviation of the slice that they replace, for each tensor.
    """

    share: float = 0.5

    kind: ClassVar[str] = "drop"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"drop.share is {self.share}: choose a share of the neurons above 0 and up to 1, such as 0.5")

    def copy(self, site: FeedForward, dense: NeuronWeights, number: int, context: PassContext) -> NeuronWeights:
        """The weights of copy `number` (from 0)."""
        generator = context.generator(f"upcycling/drop/{number}", site)
        count = max(1, round(self.share * site.neurons))
        dropped = torch.randperm(site.neurons, generator=generator)[:count]
        return {name: _redrawn(weight, dropped, generator) for name, weight in dense.items()}

    def output_bias(self, site: FeedForward, context: PassContext) -> Tensor | None:
        """The layer's output bias; None: the dense FFN's own."""
        return None


def _redrawn(weight: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    replaced = weight[rows].float()
    std, mean = torch.std_mean(replaced, correction=0)
    fresh = mean + std * torch.randn(replaced.shape, generator=generator)
    return weight.index_copy(0, rows, fresh.to(weight.dtype))
