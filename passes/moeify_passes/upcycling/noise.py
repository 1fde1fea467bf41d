"""Experts that differ a little from the start."""

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
class Noise:
    """Adds normal noise to every matrix of every copy; biases stay.

    std: of the noise, in standard deviations of the matrix that it is added to.
    """

    std: float = 0.01

    kind: ClassVar[str] = "noise"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise UsageError(f"noise.std is {self.std}: choose a number above 0, such as 0.01")

    def copy(self, site: FeedForward, dense: NeuronWeights, number: int, context: PassContext) -> NeuronWeights:
        """The weights of copy `number` (from 0)."""
        generator = context.generator(f"upcycling/noise/{number}", site)
        return {name: self._noisy(w, generator) if w.ndim == 2 else w for name, w in dense.items()}

    def output_bias(self, site: FeedForward, context: PassContext) -> Tensor | None:
        """The layer's output bias; None: the dense FFN's own."""
        return None

    def _noisy(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        values = weight.float()
        noise = torch.randn(values.shape, generator=generator) * (self.std * values.std(correction=0))
        return (values + noise).to(weight.dtype)
