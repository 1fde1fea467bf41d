"""Feed-forward networks written as 1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo_modules import HIDDEN, NEURONS


def convolutions() -> nn.Sequential:
    """A picture's places are its tokens. [batch, hidden, height, width] -> the same."""
    return nn.Sequential(nn.Conv2d(HIDDEN, NEURONS, 1), nn.GELU(), nn.Conv2d(NEURONS, HIDDEN, 1), nn.Dropout(0.1))


class PositionWise(nn.Module):
    """FastSpeech's FFN (Ren et al. 2019, section 3.1) with kernels of 1. [batch, tokens, hidden] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Conv1d(HIDDEN, NEURONS, 1), nn.Conv1d(NEURONS, HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.relu(self.w_1(x.transpose(1, 2))), 0.1, self.training)
        y: Tensor = self.w_2(h).transpose(1, 2)
        return y


class GatedConvolutions(nn.Module):
    """One convolution gives gate and up. [batch, hidden, height, width] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(HIDDEN, 2 * NEURONS, 1, bias=False), nn.Conv2d(NEURONS, HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.chunk(self.up(x), 2, dim=1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y
