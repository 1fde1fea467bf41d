"""Features in dim 1, as convolutions have them, to features in the last dimension, and back."""

from __future__ import annotations

from torch import Tensor, nn


def features_last(x: Tensor) -> Tensor:
    """[batch, features, ...] -> [batch, ..., features], a view."""
    return x.movedim(1, -1)


class OverChannels(nn.Module):
    """A layer on [..., hidden] in place of 1x1 convolutions: x [batch, hidden, ...] -> [batch, output, ...]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(features_last(x))
        return y.movedim(-1, 1).contiguous()  # a convolution's output may be viewed in any shape
