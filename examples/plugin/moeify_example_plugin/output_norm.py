"""Experts by importance: the neurons that say most stand together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.ir.facts import Fact, NeuronStatistics
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class OutputNorm:
    """Neurons in the order of what they add to the output, strongest first, then cut.

    What neuron i adds is measured by the norm of its output row, times the root of the mean square of its h_i where
    calibration data tell it (the magnitude criterion of structured pruning; Han et al. 2015 use |weight| alone). The experts
    are unequal in worth on purpose: it is the split to hold a router's choice against, as most of the output is in the first.
    """

    kind: ClassVar[str] = "output-norm"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = (NeuronStatistics,)

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes."""
        strength = site.down.read()[neurons].double().norm(dim=1)
        statistics = context.find(site, NeuronStatistics)
        if statistics is not None:
            strength = strength * statistics.second_moment[neurons].double().sqrt()
        order = strength.argsort(descending=True, stable=True)
        context.measure(site, first_expert_share=float(strength[order[: sizes[0]]].sum() / strength.sum().clamp(min=1e-300)))
        return tuple(torch.split(neurons[order], list(sizes)))
