"""How the gains of a layer's neurons are spread over the tokens of a sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.token_weights import TokenWeights

#: Values of a curve that are kept: ranks in equal steps.
_POINTS = 4096


@dataclass(frozen=True, eq=False)
class GainCurve:
    """Neuron i adds the gain h_i(x)^2 |down_i|^2 to the squared output of a token x, neurons taken as uncorrelated; tokens
    count as moeify_passes.token_weights says.

    logs: logarithms of the gains of all neurons on all tokens, in units of their mean, rising; thinned to [_POINTS] ranks.
    """

    logs: Tensor
    mean: float
    weights: TokenWeights

    @classmethod
    def of(cls, site: FeedForward, inputs: Iterable[Tensor]) -> Self:
        """inputs: [tokens, hidden] of the FFN, batch by batch."""
        dense, x = held_site(site), torch.cat([batch.float() for batch in inputs])
        weights, parts = TokenWeights.of(dense, x), []
        for chunk in token_chunks(x, max(site.neurons, site.output)):
            h = dense.neuron_outputs(chunk)
            parts.append(_gains(h, dense.down.read(), weights))
        gains = torch.cat(parts).flatten().sort().values
        mean = float(gains.mean(dtype=torch.float64))
        ranks = torch.linspace(0, len(gains) - 1, min(_POINTS, len(gains))).round().long()
        return cls((gains[ranks] / mean).clamp(min=1e-30).log(), mean, weights)

    def share_above(self, log_gain: float) -> float:
        """The part of the gains that are at least so large."""
        return 1 - int(torch.searchsorted(self.logs, log_gain)) / len(self.logs)

    def running(self, h: Tensor, down: Tensor, share: float) -> Tensor:
        """bool [tokens, neurons]: the neurons of the largest gains, of the sample's `share` of them; h [tokens, neurons]."""
        below = round((1 - share) * len(self.logs))
        if below == 0:
            return torch.ones_like(h, dtype=torch.bool)
        lowest = float(self.logs[below].exp()) if below < len(self.logs) else torch.inf
        return _gains(h, down, self.weights) >= lowest * self.mean


def _gains(h: Tensor, down: Tensor, weights: TokenWeights) -> Tensor:
    return h.square() * down.square().sum(1) * weights.weights(h @ down)[:, None]
