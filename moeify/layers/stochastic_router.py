"""The router that draws experts instead of computing scores (THOR, Zuo et al. 2022, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moeify.ir.draws import hashed, ring_scores
from moeify.ir.moe_config import RouterConfig
from moeify.layers.token_input import TokenInput


class StochasticRouter(nn.Module):
    """Scores [..., experts] of x [..., hidden], of which only the shape matters (docs/moe-layer.md, 'Stochastic choice').

    tokens: what the model was called with; whoever puts the layer into a model sets that of the model. calls: how often it has
    drawn in `random` inference; a compiled graph draws from torch's generator in inference too.
    """

    def __init__(self, experts: int, config: RouterConfig) -> None:
        super().__init__()
        self.experts = experts
        self.config = config
        self.tokens = TokenInput()
        self.calls = 0

    @property
    def mode(self) -> str:
        """What it does now; in training always "random"."""
        return "random" if self.training else self.config.inference

    def forward(self, x: Tensor) -> Tensor:
        ids, positions = self.tokens.at(x)
        if self.mode == "fixed":
            drawn = hashed(ids, positions, self.config.seed) % self.experts
        else:
            drawn = self._drawn(x, *ids.shape).expand(ids.shape)
        return ring_scores(drawn.reshape(x.shape[:-1]), self.experts).to(x.dtype)

    def _drawn(self, x: Tensor, sequences: int, tokens: int) -> Tensor:
        """int64 [1 or sequences, 1 or tokens], uniform in 0 .. experts - 1."""
        shape = {"forward": (1, 1), "sequence": (sequences, 1), "token": (sequences, tokens)}[self.config.scope]
        if torch.compiler.is_compiling() or self.training:
            zeros = torch.zeros(shape, dtype=torch.float32, device=x.device)
            uniform: Tensor = draw(zeros, self.config.seed)
            return (uniform * self.experts).long().clamp(max=self.experts - 1)
        index = torch.arange(shape[0] * shape[1], device=x.device).view(shape)
        self.calls += 1
        return hashed(index.new_full((), self.calls), index, self.config.seed) % self.experts


def _draw(like: Tensor, seed: int) -> Tensor:
    """Uniform values in [0, 1), float32 in the shape of `like`, from torch's generator; the seed is for exported files."""
    return torch.rand(like.shape, dtype=torch.float32, device=like.device)


# An operator, for an exported graph must show where it draws and with which seed.
draw = torch.library.custom_op("moeify::draw", _draw, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
draw.register_fake(lambda like, seed: torch.empty_like(like))
