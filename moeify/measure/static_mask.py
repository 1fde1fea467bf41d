"""The null without routing: the best neurons, always on, at the same active fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moeify.measure.dense_ffn import DenseFFN

#: Rows that are held in float64 at a time.
_RUN = 1024


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
    gains = second_moment.to(down.device) * torch.cat([rows.double().square().sum(-1) for rows in _runs(down)])
    count = min(max(round(fraction * ffn.neurons), 1), ffn.neurons)
    kept = gains.argsort(descending=True, stable=True)[:count].sort().values
    off = torch.ones(ffn.neurons, dtype=torch.bool, device=down.device).index_fill_(0, kept, False)
    means = mean.to(down.device).masked_fill(~off, 0.0)
    parts = [part @ rows.double() for part, rows in zip(_runs(means), _runs(down))]
    return StaticMask(ffn, kept, torch.stack(parts).sum(0).float())


def _runs(rows: Tensor) -> Sequence[Tensor]:
    """A few at a time: in float64 all of them would take more than the FFN."""
    found: Sequence[Tensor] = torch.split(rows, _RUN)
    return found
