"""Equal experts (sparse upcycling, Komatsuzaki et al. 2023, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.upcycling.dense_weights import NeuronWeights


@dataclass(frozen=True)
class Copies:
    """Every expert is the dense FFN as it is: what makes them differ is the router, from the first step of training on."""

    kind: ClassVar[str] = "copies"
    exact: ClassVar[bool] = True

    def copy(self, site: FeedForward, dense: NeuronWeights, number: int, context: PassContext) -> NeuronWeights:
        """The weights of copy `number` (from 0)."""
        return dense

    def output_bias(self, site: FeedForward, context: PassContext) -> Tensor | None:
        """The layer's output bias; None: the dense FFN's own."""
        return None
