"""The null without routing: the best neurons, always on, at the same active fraction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moeify.measure.dense_ffn import DenseFFN


@dataclass(frozen=True, eq=False)
class StaticMask:
    """These neurons (int64 indices) are on for every token; bias [output]: what the others say on average."""

    ffn: DenseFFN
    kept: Tensor
    bias: Tensor

    @property
    def fraction(self) -> float:
        """The active fraction."""
        return len(self.kept) / self.ffn.neurons

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        """y [tokens, output] of x [tokens, hidden] and h [tokens, neurons], the outputs of all neurons of the dense FFN."""
        return self.ffn.output(h[:, self.kept], self.kept) + self.bias.to(h.dtype)


def static_mask(ffn: DenseFFN, mean: Tensor, second_moment: Tensor, fraction: float) -> StaticMask:
    """Keeps the neurons with the largest E[h^2] ||down row||^2, as many as hold that fraction of the FFN's weights, and adds
    the mean of the others as a bias: what the recipe `static` does. mean, second_moment: of h, [neurons] float64."""
    down = ffn.rows.down
    gains = second_moment.to(down.device) * down.double().square().sum(-1)
    count = min(max(round(fraction * ffn.neurons), 1), ffn.neurons)
    kept = gains.argsort(descending=True, stable=True)[:count].sort().values
    off = torch.ones(ffn.neurons, dtype=torch.bool, device=down.device).index_fill_(0, kept, False)
    return StaticMask(ffn, kept, (mean.to(down.device)[off] @ down[off].double()).float())
