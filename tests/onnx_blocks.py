"""Small modules with an MoE layer, for the tests of the ONNX export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer

HIDDEN = 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moe_layer(
    top_k: int | None = 2, activation: str = "gelu", offsets: tuple[int, ...] = (3, 5, 8, 12, 17), **options: Any
) -> MoELayer:
    """Four experts of 2 to 5 rows, a linear router."""
    config = MoEConfig(HIDDEN, HIDDEN, activation, True, offsets, RouterConfig("linear"), top_k=top_k, **options)
    layer = MoELayer(config)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    return layer.eval()


class Block(nn.Module):
    """Two inputs, two outputs, a dense and an MoE part; [batch, tokens, hidden]."""

    moe: MoELayer

    def __init__(self, moe: MoELayer) -> None:
        super().__init__()
        self.first = nn.Linear(HIDDEN, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.second.weight = self.first.weight
        self.moe = moe

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x) * scale
        return {"y": x + self.moe(self.second(hidden)), "hidden": hidden}


def inputs(batch: int = 2, tokens: int = 5) -> dict[str, Tensor]:
    return {"x": normal(batch, tokens, HIDDEN, seed=7), "scale": normal(batch, tokens, 1, seed=8)}
