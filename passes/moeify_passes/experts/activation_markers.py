"""Experts by co-activation: neurons that are among the strongest on the same tokens (CMoE, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.experts.k_means import balanced_k_means
from moeify_passes.experts.markers import markers


@dataclass(frozen=True)
class ActivationMarkers:
    """Balanced k-means on binary columns: neuron i is marked on a token when it is among the strongest there.

    top: how many neurons a token marks, a count (10) or a fraction of them (0.1). weighted: strength is |h| times the norm of
    the neuron's output row, what it can do to the output; else |h|. iterations: at most so many.

    CMoE marks the 10 largest |h| of row-normalised weights and inputs, starts from the columns with the highest rates and stops
    after one assignment by L1 distance; here h is the FFN's own, the start is k-means++, and squared L2 is iterated until it
    stands still. (Between binary columns both distances are the same.)
    """

    top: int | float = 0.1
    weighted: bool = True
    iterations: int = 20

    kind: ClassVar[str] = "activation-markers"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.top <= 0 or (isinstance(self.top, float) and self.top > 1):
            raise UsageError(f"activation-markers.top is {self.top}: choose a count from 1 or a fraction of at most 1.0")
        if self.iterations < 1:
            raise UsageError(f"activation-markers.iterations is {self.iterations}: choose 1 or more")

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes."""
        inputs = context.get(site, ActivationSample).inputs
        columns = torch.cat([chunk[:, neurons].T for chunk in markers(site, inputs, self.top, self.weighted)], dim=1)
        found = balanced_k_means(columns, torch.tensor(sizes), self.iterations, context.generator("experts/markers", site))
        context.measure(site, clustering_objective=found.objectives[-1], clustering_rounds=len(found.objectives))
        return tuple(neurons[group] for group in found.groups())
