"""Routers: scores [tokens, experts] of x [tokens, hidden], one module for each kind of RouterConfig."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeify.errors import UsageError
from moeify.ir.activations import activation
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.stochastic_router import StochasticRouter


class LinearRouter(nn.Module):
    """x weight^T (+ bias): weight [experts, hidden], bias [experts]. Zeros until loaded."""

    def __init__(
        self, hidden: int, experts: int, bias: bool, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, hidden, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(experts, dtype=dtype, device=device)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class MLPRouter(nn.Module):
    """act(x weight_in^T (+ bias_in)) weight_out^T (+ bias_out), then the absolute value for output "abs".

    weight_in [width, hidden], bias_in [width], weight_out [experts, width], bias_out [experts]; zeros until loaded. With
    `bias` there are both biases. Raises UsageError for a width below 1 or an unknown activation.
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
        if config.width is None or config.width < 1:
            raise UsageError(f"width of an mlp router is {config.width}: choose 1 or more")

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

        self.activation = config.activation or "identity"
        activation(self.activation)
        self.absolute = config.output == "abs"
        self.weight_in = zeros(config.width, hidden)
        self.bias_in = zeros(config.width) if config.bias else None
        self.weight_out = zeros(experts, config.width)
        self.bias_out = zeros(experts) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        inner = activation(self.activation)(F.linear(x, self.weight_in, self.bias_in))
        scores = F.linear(inner, self.weight_out, self.bias_out)
        return scores.abs() if self.absolute else scores


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


Router = LinearRouter | MLPRouter | AverageKeyRouter | StochasticRouter


def build_router(shape: MoEConfig, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Router | None:
    """The router of a layer of that shape, None where it has none.

    Raises UsageError for a kind that is not in the table, an mlp without width, and an average-key router with a bias where the
    keys have none.
    """
    config = shape.router
    if config is None:
        return None
    match config.kind:
        case "linear":
            return LinearRouter(shape.hidden, shape.experts, config.bias, dtype, device)
        case "average-key":
            if config.bias and not (shape.gate_bias if shape.gated else shape.up_bias):
                raise UsageError("an average-key router with a bias needs keys with a bias: set bias to False")
            return AverageKeyRouter(shape.hidden, shape.experts, config.bias, dtype, device)
        case "mlp":
            return MLPRouter(shape.hidden, shape.experts, config, dtype, device)
        case "stochastic":
            return StochasticRouter(shape.experts, config)
    raise UsageError(f"router kind is {config.kind!r}: choose one of linear, average-key, mlp, stochastic")
