"""Experts by co-activation: neurons that are among the strongest on the same tokens (CMoE, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.experts.k_means import balanced_k_means
from moeify_passes.experts.markers import marker_rates, markers


@dataclass(frozen=True)
class ActivationMarkers:
    """Balanced k-means on binary columns: neuron i is marked on a token when it is among the strongest there.

    top: how many neurons a token marks, a count (10) or a fraction of them (0.1). weighted: strength is |h| times the norm of
    the neuron's output row, what it can do to the output; else |h|. normalized: h is that of inputs and rows scaled to norm 1.
    start: centres spread out by k-means++, or the columns of the neurons marked most often. iterations: at most so many.

    CMoE's code is top = 10, weighted = false, normalized = true, start = "rates", iterations = 1; its L1 distance between
    binary columns is the squared L2 distance of k-means, and its assignment, repeated columns and Jonker-Volgenant, is the
    balanced one.
    """

    top: int | float = 0.1
    weighted: bool = True
    normalized: bool = False
    start: Literal["spread", "rates"] = "spread"
    iterations: int = 20

    kind: ClassVar[str] = "activation-markers"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.top <= 0 or (isinstance(self.top, float) and self.top > 1):
            raise UsageError(f"activation-markers.top is {self.top}: choose a count from 1 or a fraction of at most 1.0")
        if self.iterations < 1:
            raise UsageError(f"activation-markers.iterations is {self.iterations}: choose 1 or more")
        if self.start not in ("spread", "rates"):
            raise UsageError(f"activation-markers.start is {self.start!r}: choose spread or rates")

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes."""
        inputs = context.get(site, ActivationSample).inputs
        marked = markers(site, inputs, self.top, self.weighted, self.normalized)
        columns = torch.cat([chunk[:, neurons].T for chunk in marked], dim=1)
        start = None if self.start == "spread" else columns[_most(columns.sum(1), len(sizes))].float()
        generator = context.generator("experts/markers", site)
        found = balanced_k_means(columns, torch.tensor(sizes), self.iterations, generator, start)
        context.measure(site, clustering_objective=found.objectives[-1], clustering_rounds=len(found.objectives))
        return tuple(neurons[group] for group in found.groups())

    def share(self, site: FeedForward, size: int, context: PassContext) -> Tensor:
        """The `size` neurons that are marked most often, ascending (CMoE, section 3.1)."""
        inputs = context.get(site, ActivationSample).inputs
        rates = marker_rates(site, inputs, self.top, self.weighted, self.normalized)
        return _most(rates, size).sort().values


def _most(rates: Tensor, count: int) -> Tensor:
    return rates.argsort(descending=True, stable=True)[:count]
