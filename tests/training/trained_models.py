"""Small models with MoE layers, to be trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from layers.dense_sites import dense_site, split_spec
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer
from zoo import ZOO
from zoo_rows import HIDDEN as WIDTH
from zoo_rows import NEURONS

HIDDEN, EXPERTS = 6, 4


def moe_layer(seed: int = 0, **changes: Any) -> MoELayer:
    """4 experts, top-2, gate one, a linear router; in training mode. changes: of the spec."""
    site = dense_site(seed)
    spec = split_spec(site, experts=EXPERTS, top_k=2, seed=seed + 1)
    return MoELayer.from_spec(site, replace(spec, **changes))


class Stack(nn.Module):
    """Two residual MoE layers and a head: x [..., hidden] -> [..., 3]. The mask is for whoever looks at the call."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.first = moe_layer(0, **changes)
        self.second = moe_layer(5, **changes)
        self.head = nn.Linear(HIDDEN, 3)
        with torch.no_grad():
            self.head.weight.copy_(values(3, HIDDEN, seed=8))
            self.head.bias.zero_()

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = x + self.first(x)
        y: Tensor = self.head(x + self.second(x))
        return y


def values(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of all parameters by name, 0 for none; the model's are let go."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def llama(**changes: Any) -> nn.Module:
    """A small Llama in training mode, as drop-upcycle makes it: 2 layers with 3 experts, top-2; changes: of their config."""
    model = ZOO["llama"]().model
    for i in range(2):
        offsets = (0, NEURONS, 2 * NEURONS, 3 * NEURONS)
        config = MoEConfig(WIDTH, WIDTH, "silu", True, offsets, RouterConfig("linear"), "softmax", True, 2, detach_sum=True)
        layer = MoELayer(replace(config, **changes))
        with torch.no_grad():
            for j, parameter in enumerate(layer.parameters()):
                parameter.copy_(0.3 * values(*parameter.shape, seed=10 * i + j))
        model.set_submodule(f"model.layers.{i}.mlp", layer)
    return model.train()


def batches(count: int, padded: bool = False) -> list[dict[str, Tensor]]:
    """Of 4 sequences of 10 tokens, with labels; padded: with a mask, the labels of padding -100."""
    found = []
    for seed in range(count):
        ids = torch.randint(3, 40, (4, 10), generator=torch.Generator().manual_seed(seed))
        batch = {"input_ids": ids, "labels": ids.clone()}
        if padded:
            mask = torch.arange(10) < torch.tensor([10, 7, 4, 9]).unsqueeze(1)
            batch = {
                "input_ids": ids.masked_fill(~mask, 0),
                "labels": ids.masked_fill(~mask, -100),
                "attention_mask": mask.long(),
            }
        found.append(batch)
    return found
