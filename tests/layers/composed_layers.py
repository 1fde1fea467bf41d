"""Layers whose experts stand on a frozen core, with weights drawn at random, and what the reference says of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moe_reference import Float, composed, moe
from moeify.ir.composition import Composition
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer

HIDDEN, NEURONS, OUTPUT = 6, 5, 7

RULES = {"residual": Composition("residual"), "lora": Composition("lora", 2, 3.0)}

#: Caption -> options of the layer.
VARIANTS: dict[str, dict[str, Any]] = {
    "all on, no router": {"router": None},
    "all on": {},
    "top-2, gate one": {"top_k": 2, "output_bias": True},
    "top-1, softmax": {"top_k": 1, "gate_rule": "softmax"},
    "top-2, softmax, normalised": {"top_k": 2, "gate_rule": "softmax", "normalize": True, "detach_sum": True},
    "all on, sigmoid": {"gate_rule": "sigmoid", "output_bias": True},
    "threshold": {"threshold": 0.1, "idle": True, "output_bias": True},
    "top-2 beside a shared expert": {"top_k": 2, "shared": True, "output_bias": True},
    "all on beside a shared expert": {"shared": True, "gate_rule": "softmax"},
    "gated": {"top_k": 2, "gated": True, "activation": "silu"},
    "gated, biases, shared": {
        "top_k": 3, "gated": True, "activation": "silu", "up_bias": True, "gate_bias": True, "output_bias": True,
        "shared": True, "gate_rule": "sigmoid",
    },
    "biases": {"top_k": 2, "up_bias": True, "output_bias": True},
    "everything else": {"top_k": 2, "idle": True, "rank": 2, "selection_bias": True, "gate_rule": "softmax"},
    "one expert": {"experts": 1, "top_k": 1, "gate_rule": "sigmoid"},
}  # fmt: skip


def composed_layer(
    rule: Composition,
    *,
    experts: int = 4,
    shared: bool = False,
    neurons: int = NEURONS,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> MoELayer:
    """Normal weights everywhere, in what is trained too."""
    offsets = tuple(range(neurons * shared, neurons * (experts + shared) + 1, neurons))
    settings: dict[str, Any] = {"hidden": HIDDEN, "output": OUTPUT, "activation": "gelu", "gated": False}
    settings |= {"router": RouterConfig("linear", bias=True), "neurons": neurons, "shards": 1} | options
    layer = MoELayer(MoEConfig(offsets=offsets, composed=rule, **settings), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in sorted((*layer.named_parameters(), *layer.named_buffers())):
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64) * max(1, value.shape[-1]) ** -0.5
            value.copy_(drawn)
    return layer.eval()


def inputs(*lead: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*lead, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference_rows(layer: MoELayer) -> dict[str, Float]:
    """The layer's rows as the reference forms them."""
    rule = layer.config.composed
    assert rule is not None
    return composed(_under(layer, "core"), _under(layer, rule.kind), rule.kind, rank=rule.rank, alpha=rule.alpha)


def expected(layer: MoELayer, x: Tensor) -> Float:
    """The reference's y; scores are those of the layer's router."""
    config = layer.config
    names = ("output_bias", "idle", "low_rank_in", "low_rank_out", "selection_bias")
    others = {name: value.detach().double().numpy() for name in names if (value := getattr(layer, name)) is not None}
    scores = torch.zeros(*x.shape[:-1], config.experts) if layer.router is None else layer.router(x)
    return moe(
        x.double().numpy(), scores.detach().double().numpy(), offsets=torch.tensor(config.offsets).numpy(), k=config.top_k,
        threshold=config.threshold, activation=config.activation, gate_rule=config.gate_rule, normalize=config.normalize,
        **reference_rows(layer), **others,
    )  # fmt: skip


def frozen_names(layer: nn.Module) -> set[str]:
    return {name for name, parameter in layer.named_parameters() if not parameter.requires_grad}


def _under(layer: MoELayer, name: str) -> dict[str, Any]:
    return {n: value.detach().double().numpy() for n, value in layer.get_submodule(name).named_parameters()}
