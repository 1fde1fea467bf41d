"""How much each token counts where layers are fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.ir.token_weights import ORDINARY, damped
from moeify_passes.held_site import token_chunks

#: Tokens that the median is taken over.
_TOKENS = 1024


@dataclass(frozen=True)
class TokenWeights:
    """moeify.ir.token_weights.damped, at a scale of ten times the median of |y|^2 over many tokens, y the dense FFN's output
    without its bias. Ordinary tokens weigh nearly the same.
    """

    scale: float

    @classmethod
    def of(cls, site: FeedForward, inputs: Tensor) -> TokenWeights:
        """site: with its weights in memory. inputs: [tokens, hidden] of the FFN."""
        some = inputs[:: max(1, len(inputs) // _TOKENS)]
        squares = torch.cat([squared_norms(site, x) for x in token_chunks(some, max(site.neurons, site.output))])
        return cls(ORDINARY * float(squares.median()))

    def weights(self, outputs: Tensor) -> Tensor:
        """[tokens] for dense outputs without the output bias, [tokens, output]."""
        return damped(outputs.square().sum(1), self.scale)


def squared_norms(site: FeedForward, x: Tensor) -> Tensor:
    """|y|^2 of the dense FFN without its output bias, [tokens]."""
    return (site.neuron_outputs(x) @ site.down.read()).square().sum(1)
