"""Shares by the measured error curve of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.shares.output_effects import check_noise, output_effects
from moeify_passes.shares.share_rule import ShareRule
from moeify_passes.token_weights import TokenWeights

#: Values of a curve that are kept: ranks in equal steps.
_POINTS = 4096
#: Bytes that a walk through the model may hold between two layers.
_MEMORY = 1 << 30


@dataclass(frozen=True)
class ErrorCurves:
    """Gives by what errors do to the model's output and by how the error of each layer falls with its active fraction.

    Neuron i adds the gain h_i(x)^2 |down_i|^2 to the squared output of a token x (neurons taken as uncorrelated). The layer's
    error, where the neurons of the largest gains run on each token, is the sum of the other gains, and falls as the curve of
    their sums over all tokens and neurons of a sample. Weighted by the effect a of an error on the model's output (see
    `exponential`), the sum over layers is least where a neuron runs if its gain, a / weights and one level reach 1 together.

    Curves are those of the best choice, which a router comes near to in some layers more than in others.
    """

    noise: float = 0.3

    kind: ClassVar[str] = "curves"

    def __post_init__(self) -> None:
        check_noise(self.kind, self.noise)

    def rules(self, graph: ModelGraph, batches: Sequence[Batch], context: PassContext) -> list[ShareRule]:
        """One for each site. Raises ConversionError where the model's output is not finite."""
        effects = output_effects(graph, batches, self.noise, context)
        with graph.host.walk(batches, "dense", _MEMORY) as walk:
            curves = [_log_gains(site, walk.inputs(site)) for site in graph.sites]
        worth = [math.log(a / site.parameters) for a, site in zip(effects, graph.sites)]
        return [partial(_share, curve, w) for curve, w in zip(curves, worth)]


def _log_gains(site: FeedForward, inputs: Iterator[Tensor]) -> Tensor:
    """Logarithms of the gains of all neurons on all tokens, in units of their mean, rising; thinned to [_POINTS] ranks."""
    dense, x = held_site(site), torch.cat([batch.float() for batch in inputs])
    weights, norms = TokenWeights.of(dense, x), dense.down.read().square().sum(1)
    parts = []
    for chunk in token_chunks(x, max(site.neurons, site.output)):
        h = dense.neuron_outputs(chunk)
        parts.append(h.square() * norms * weights.weights(h @ dense.down.read())[:, None])
    gains = torch.cat(parts).flatten().sort().values
    ranks = torch.linspace(0, len(gains) - 1, min(_POINTS, len(gains))).round().long()
    return (gains[ranks] / gains.mean(dtype=torch.float64)).clamp(min=1e-30).log()


def _share(log_gains: Tensor, worth: float, level: float) -> float:
    """The part of the gains that are worth their price."""
    return 1 - int(torch.searchsorted(log_gains, -worth - level)) / len(log_gains)
