"""Small layers whose experts are drawn, and a model of token ids around one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.model_hooks import watcher_of
from moeify.layers.moe_layer import MoELayer
from moeify.layers.stochastic_router import StochasticRouter
from moeify.layers.token_input import TokenInput

HIDDEN, SIZE = 6, 5


def stochastic_layer(experts: int = 4, *, shared: int = 0, top_k: int = 1, seed: int = 3, **router: Any) -> MoELayer:
    """Copies that differ: normal weights; gated, with all biases."""
    offsets = tuple(range(shared, shared + SIZE * experts + 1, SIZE))
    config = MoEConfig(
        HIDDEN, HIDDEN, "silu", True, offsets, RouterConfig("stochastic", seed=seed, **router), normalize=True, top_k=top_k,
        up_bias=True, gate_bias=True, output_bias=True, neurons=SIZE, shards=1,
    )  # fmt: skip
    layer = MoELayer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.eval()


class TokenModel(nn.Module):
    """Ids -> the layer's output and, unless told otherwise, the scores of its router."""

    def __init__(self, layer: MoELayer, *, scores: bool = True) -> None:
        super().__init__()
        self.scores = scores
        self.embedding = nn.Embedding(50, HIDDEN)
        self.moe = layer
        router_of(layer).tokens = watcher_of(self, TokenInput)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        return {"y": self.moe(x)} | ({"scores": router_of(self.moe)(x)} if self.scores else {})


def router_of(layer: MoELayer) -> StochasticRouter:
    assert isinstance(layer.router, StochasticRouter)
    return layer.router


def inputs(*lead: int, seed: int = 1) -> Tensor:
    return torch.randn(*lead, HIDDEN, generator=torch.Generator().manual_seed(seed))


def chosen(layer: MoELayer, x: Tensor) -> Tensor:
    """The first expert chosen for each token, [...]."""
    scores: Tensor = router_of(layer)(x)
    return scores.argmax(-1)


def experts_of(layer: MoELayer, x: Tensor) -> list[Tensor]:
    """E_e(x) for every expert, [..., output], output bias included."""
    config = replace(layer.config, router=RouterConfig("linear", bias=True), normalize=False, top_k=1)
    found = []
    for e in range(config.experts):
        one = MoELayer(config).eval()
        bias = torch.nn.functional.one_hot(torch.tensor(e), config.experts).float()
        router = {"router.weight": torch.zeros(config.experts, HIDDEN), "router.bias": bias}
        one.load_state_dict(layer.state_dict() | router)
        found.append(one(x))
    return found
