"""Mean and second moment of every neuron's output, streamed."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.ir.facts import NeuronStatistics
from moeify.ir.feed_forward import FeedForward
from moeify_passes.held_site import held_site, token_chunks


class Moments:
    """Sums of h and h^2 over tokens, in float64."""

    def __init__(self, site: FeedForward, memory: int) -> None:
        """memory: bytes that all [chunk, neurons] matrices of a chunk may take together."""
        self.site, self.limit = held_site(site), memory // 4  # projections, activation, product
        self.tokens = 0
        self.sum = torch.zeros(site.neurons, dtype=torch.float64)
        self.squares = torch.zeros(site.neurons, dtype=torch.float64)

    def add(self, inputs: Tensor) -> None:
        """Takes inputs of the FFN, [tokens, hidden]."""
        for chunk in token_chunks(inputs, self.site.neurons, self.limit):
            h = self.site.neuron_outputs(chunk)
            self.sum += h.sum(0, dtype=torch.float64)
            self.squares += h.square_().sum(0, dtype=torch.float64)
        self.tokens += len(inputs)

    def statistics(self) -> NeuronStatistics:
        """The fact. At least one token must have come."""
        mean, second = self.sum / self.tokens, self.squares / self.tokens
        return NeuronStatistics(self.tokens, mean.float(), second.float())
