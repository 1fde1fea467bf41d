"""How much each token counts where layers are fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify_passes.held_site import token_chunks

#: Squared norms of outputs above so many times the median are damped.
_ORDINARY = 10.0

#: Tokens that the median is taken over.
_TOKENS = 4096


@dataclass(frozen=True)
class TokenWeights:
    """1 / (1 + |y|^2 / scale), y the dense FFN's output without its bias, at a scale of ten times the median of |y|^2.

    In decoders the first token of a text has outputs hundreds of times as large as others in some layers ("massive
    activations", Sun et al. 2024, section 2), and a plain sum of squares would be about it alone. What follows a layer is
    normalised, so that an error counts by its size against the token's own. Ordinary tokens weigh nearly the same.
    """

    scale: float

    @classmethod
    def of(cls, site: FeedForward, inputs: Tensor) -> TokenWeights:
        """site: with its weights in memory. inputs: [tokens, hidden] of the FFN."""
        some = inputs[:: max(1, len(inputs) // _TOKENS)]
        squares = torch.cat([squared_norms(site, x) for x in token_chunks(some, max(site.neurons, site.output))])
        return cls(_ORDINARY * float(squares.median()))

    def weights(self, outputs: Tensor) -> Tensor:
        """[tokens] for dense outputs without the output bias, [tokens, output]."""
        if self.scale <= 0:
            return torch.ones(len(outputs))
        return 1 / (1 + outputs.square().sum(1) / self.scale)


def squared_norms(site: FeedForward, x: Tensor) -> Tensor:
    """|y|^2 of the dense FFN without its output bias, [tokens]."""
    return (site.neuron_outputs(x) @ site.down.read()).square().sum(1)
