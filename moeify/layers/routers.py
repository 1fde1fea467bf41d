"""Routers: scores [tokens, experts] of x [tokens, hidden], one module for each kind of RouterConfig."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeify.errors import UsageError
from moeify.ir.activations import activation
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.router_scores import router_scores
from moeify.layers.stochastic_router import StochasticRouter


class ScoringRouter(nn.Module):
    """Scores by its parameters alone: those of RouterConfig.shapes, zeros until loaded.

    Raises UsageError for a kind without parameters, an unknown activation, and a width that is missing.
    """

    def __init__(
        self,
        hidden: int,
        experts: int,
        config: RouterConfig,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        activation(config.activation or "identity")
        self.config = config
        self._names = tuple(config.shapes(hidden, experts))
        for name, shape in config.shapes(hidden, experts).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)))

    def forward(self, x: Tensor) -> Tensor:
        return router_scores(self.config, {name: getattr(self, name) for name in self._names}, x)


class AverageKeyRouter(nn.Module):
    """The score of an expert is the mean pre-activation of its neurons (EMoE, Qiu et al. 2024, section 3).

    weight [experts, hidden] and bias [experts] are buffers, not parameters: they follow the mean key row (gate row if gated,
    else up row) and the mean key bias of each expert. `forward` uses what is stored; `follow` computes both anew from the
    keys, with gradients flowing into the keys, and stores them. MoELayer calls `follow` in every training forward, when it
    leaves training, and before its state is saved.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, hidden: int, experts: int, bias: bool, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(experts, hidden, dtype=dtype, device=device))
        self.register_buffer("bias", torch.zeros(experts, dtype=dtype, device=device) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def follow(self, x: Tensor, keys: Tensor, key_bias: Tensor | None, offsets: tuple[int, ...]) -> Tensor:
        """Scores [tokens, experts] by the current keys [rows, hidden] and key_bias [rows]; stores their means."""
        weight = _means(keys, offsets).to(self.weight.dtype)
        bias = None if self.bias is None or key_bias is None else _means(key_bias, offsets).to(self.weight.dtype)
        with torch.no_grad():
            self.weight.copy_(weight)
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)
        return F.linear(x, weight, bias)


def _means(rows: Tensor, offsets: tuple[int, ...]) -> Tensor:
    """The mean of each routed expert's rows, [experts, ...] of [rows, ...]."""
    shared, *sizes = (b - a for a, b in zip((0, *offsets), offsets))
    routed = rows[shared:]
    if len(set(sizes)) == 1:
        return routed.view(len(sizes), sizes[0], *rows.shape[1:]).mean(1)
    return torch.stack([run.mean(0) for run in torch.split_with_sizes(routed, sizes)])


Router = ScoringRouter | AverageKeyRouter | StochasticRouter


def build_router(shape: MoEConfig, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Router | None:
    """The router of a layer of that shape, None where it has none.

    Raises UsageError for a kind that is not in the table, a kind without its width, and an average-key router with a bias where
    the keys have none.
    """
    config = shape.router
    if config is None:
        return None
    if config.kind == "stochastic":
        return StochasticRouter(shape.experts, config)
    if config.kind == "average-key":
        if config.bias and not (shape.gate_bias if shape.gated else shape.up_bias):
            raise UsageError("an average-key router with a bias needs keys with a bias: set bias to False")
        return AverageKeyRouter(shape.hidden, shape.experts, config.bias, dtype, device)
    return ScoringRouter(shape.hidden, shape.experts, config, dtype, device)
