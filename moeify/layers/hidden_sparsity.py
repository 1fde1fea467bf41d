"""How sparse the hidden activations of a layer are, gathered as its experts run (D2DMoE, Szatkowski et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.layers.router_losses import mean


class HiddenSparsity:
    """Sees h of every expert of a layer that runs, and gives the square-Hoyer loss of a token's active neurons together.

    floor: None: of h itself, as for relu. A number: of max(z, floor) - floor, z the pre-activation of the matrix that decides
    whether a neuron fires, for activations such as gelu and silu, which are never quite 0.
    """

    def __init__(self, x: Tensor, floor: float | None) -> None:
        self._floor = floor
        self._first = self._second = x.new_zeros(x.shape[:-1].numel(), dtype=torch.float32)

    def see(self, z: Tensor, h: Tensor, tokens: Tensor | None) -> None:
        """z, h [rows, neurons] of the tokens with those indices; None: of all, in order."""
        a = (h if self._floor is None else z.clamp(min=self._floor) - self._floor).float()
        self._first = _added(self._first, a.abs().sum(-1), tokens)
        self._second = _added(self._second, a.square().sum(-1), tokens)

    def loss(self, weight: Tensor | None) -> Tensor:
        """The mean over tokens of (sum |a|)^2 / sum a^2: from 1 (one active neuron) to their number (all alike); 0 for none."""
        return mean(self._first.square() / (self._second + 1e-15), weight)


def _added(sums: Tensor, more: Tensor, tokens: Tensor | None) -> Tensor:
    return sums + more if tokens is None else sums.index_add(0, tokens, more)
