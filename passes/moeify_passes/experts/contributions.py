"""How much each neuron adds to the output, on average."""

from __future__ import annotations

from torch import Tensor

from moeify.ir.facts import NeuronStatistics
from moeify.ir.feed_forward import FeedForward


def contributions(site: FeedForward, statistics: NeuronStatistics) -> Tensor:
    """E[h_i^2] ||down_i||^2, the mean squared norm of what neuron i adds, float64 [neurons] (FLAP, An et al. 2023, section 3.2,
    about zero instead of the mean)."""
    return statistics.second_moment.double() * site.down.read().double().square().sum(1)


def fluctuations(site: FeedForward, statistics: NeuronStatistics) -> Tensor:
    """Var[h_i] ||down_i||^2, what is lost of neuron i where its mean is put in its place, float64 [neurons] (FLAP, section 3.2,
    for one layer)."""
    variance = statistics.second_moment.double() - statistics.mean.double().square()
    return variance.clamp(min=0) * site.down.read().double().square().sum(1)
