"""The null with experts by chance: neurons dealt at random, behind the router that needs no data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.measure.dense_ffn import DenseFFN

#: Of finer experts the router would cost more than chance is worth; then, and without a router to be like, there are so many.
_FINEST, _USUAL = 64, 16


@dataclass(frozen=True, eq=False)
class RandomExperts:
    """A partition by chance. order: the neurons, int64, the shared ones first; sizes [experts]; keys [experts, hidden], bias
    [experts]: the mean key of each expert. rows: of the routed experts, on for each token: whole experts in the order of their
    scores, and of the last one as many of its neurons as still fit.
    """

    ffn: DenseFFN
    order: Tensor
    shared: int
    sizes: Tensor
    keys: Tensor
    bias: Tensor | None
    rows: int

    @property
    def fraction(self) -> float:
        """The active fraction, router included."""
        return (self.shared + self.rows) / self.ffn.neurons + self.keys.numel() / (self.ffn.neurons * self.ffn.row)

    def on(self, x: Tensor) -> Tensor:
        """Which neurons of the dense FFN are on, bool [tokens, neurons], for x [tokens, hidden]."""
        ranked = F.linear(x.float(), self.keys, self.bias).sort(dim=-1, descending=True, stable=True).indices
        ends = self.sizes[ranked].cumsum(-1)
        starts = torch.empty_like(ends).scatter_(-1, ranked, ends - self.sizes[ranked])
        place = torch.cat([torch.arange(size, device=x.device) for size in self.sizes.tolist()])
        within = starts.repeat_interleave(self.sizes, dim=-1) + place < self.rows
        mask = torch.empty(len(x), self.ffn.neurons, dtype=torch.bool, device=x.device)
        mask[:, self.order] = F.pad(within, (self.shared, 0), value=True)
        return mask

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        """y [tokens, output] of x [tokens, hidden] and h [tokens, neurons], the outputs of all neurons of the dense FFN."""
        return self.ffn.output(h * self.on(x))


def random_experts(ffn: DenseFFN, experts: int, shared: float, fraction: float, generator: torch.Generator) -> RandomExperts:
    """Deals the neurons to a shared expert with that part of them and to equal experts, as many as there are (16 of finer
    ones than 64, and where there is one); a token uses as many as that fraction of the FFN's weights pays for, router included.
    """
    count = min(experts if 2 <= experts <= _FINEST else _USUAL, ffn.neurons)
    keys, bias = ffn.rows.keys
    device = keys.device
    order = torch.randperm(ffn.neurons, generator=generator).to(device)
    paid = int(fraction * ffn.neurons - count * keys.shape[1] / ffn.row + 1e-9)
    rows = min(max(paid, 0), ffn.neurons)
    always = min(round(shared * ffn.neurons), rows, ffn.neurons - count)
    sizes = torch.full((count,), (ffn.neurons - always) // count, device=device)
    sizes[: (ffn.neurons - always) % count] += 1
    dealt = torch.split_with_sizes(order[always:], sizes.tolist())
    mean_keys = torch.stack([keys[neurons].float().mean(0) for neurons in dealt])
    mean_bias = None if bias is None else torch.stack([bias[neurons].float().mean() for neurons in dealt])
    return RandomExperts(ffn, order, always, sizes, mean_keys, mean_bias, rows - always)
