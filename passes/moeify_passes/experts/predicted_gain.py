"""Experts that a router can tell apart: neurons whose worth it predicts alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.experts.k_means import balanced_k_means
from moeify_passes.routers.gain_regression import gain_fit
from moeify_passes.routers.held_out import held_out


@dataclass(frozen=True)
class PredictedGain:
    """Balanced k-means on what `gain-regression` would say of single neurons.

    The score of neuron i is then z(x) . v_i + c_i, with a z of `rank` uncorrelated parts of variance about 1, so that
    |v_i - v_j|^2 + (c_i - c_j)^2 is the mean squared difference of two neurons' scores: near ones are chosen on the same tokens
    anyway, and a group of them loses little against choosing each by itself. Co-activation also groups by what no router of
    that kind can predict.

    rank, floor, ridge: as of gain-regression. tokens: of the sample to fit on, at most. iterations: of k-means, at most.
    """

    rank: int | float = 0.1
    floor: float = 0.5
    ridge: float = 0.01
    tokens: int = 4096
    iterations: int = 10

    kind: ClassVar[str] = "predicted-gain"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.rank <= 0 or (isinstance(self.rank, float) and self.rank > 1):
            raise UsageError(f"predicted-gain.rank is {self.rank}: choose a count from 1 or a fraction of at most 1.0")
        for name in ("floor", "ridge", "tokens", "iterations"):
            if not getattr(self, name) > 0:
                raise UsageError(f"predicted-gain.{name} is {getattr(self, name)}: choose a number above 0")

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes."""
        x, _ = held_out(site, context.get(site, ActivationSample).inputs, context.generator("held-out", site))
        x = x[:: -(-len(x) // self.tokens)]
        single = MoESpec(torch.split(neurons, 1))
        width = self.rank if isinstance(self.rank, int) else max(1, round(self.rank * site.hidden))
        scores = gain_fit(site, single, x, self.floor).solve(min(width, site.hidden), self.ridge)
        points = torch.cat([scores["weight_out"], scores["bias_out"][:, None]], dim=1)
        generator = context.generator("experts/predicted-gain", site)
        found = balanced_k_means(points, torch.tensor(sizes), self.iterations, generator)
        context.measure(site, clustering_objective=found.objectives[-1], clustering_rounds=len(found.objectives))
        return tuple(neurons[group] for group in found.groups())
