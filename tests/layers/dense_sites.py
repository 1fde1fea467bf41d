"""Feed-forward sites with random weights, and specs that split them."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward, Rewrite, Weight
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import MoESpec, Router


def dense_site(
    seed: int = 0,
    hidden: int = 6,
    neurons: int = 12,
    activation: str = "gelu",
    gated: bool = False,
    biases: bool = True,
    dtype: torch.dtype = torch.float32,
    rewrite: Rewrite | None = None,
) -> FeedForward:
    """A site whose down matrix is stored transposed, as in most hosts."""
    generator = torch.Generator().manual_seed(seed)
    held: dict[str, Tensor] = {
        "up": torch.randn(neurons, hidden, generator=generator) * hidden**-0.5,
        "down": torch.randn(hidden, neurons, generator=generator) * neurons**-0.5,
    }
    if gated:
        held["gate"] = torch.randn(neurons, hidden, generator=generator) * hidden**-0.5
    if biases:
        held["up_bias"] = torch.randn(neurons, generator=generator)
        held["output_bias"] = torch.randn(hidden, generator=generator)
        if gated:
            held["gate_bias"] = torch.randn(neurons, generator=generator)
    held = {name: value.to(dtype) for name, value in held.items()}

    def weight(name: str) -> Weight:
        value = held[name]
        shape = tuple(value.T.shape if name == "down" else value.shape)
        return Weight(name, shape, held.__getitem__, transposed=name == "down")

    def optional(name: str) -> Weight | None:
        return weight(name) if name in held else None

    return FeedForward(
        path="mlp",
        activation=activation,
        hidden=hidden,
        neurons=neurons,
        output=hidden,
        up=weight("up"),
        down=weight("down"),
        rewrite=rewrite or Rewrite("submodule", {"ffn": "mlp"}),
        gate=optional("gate"),
        up_bias=optional("up_bias"),
        gate_bias=optional("gate_bias"),
        output_bias=optional("output_bias"),
    )


def split_spec(site: FeedForward, experts: int, shared: int = 0, top_k: int | None = None, seed: int = 1) -> MoESpec:
    """A random partition into equal experts, with a random linear router."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(site.neurons, generator=generator)
    weight = torch.randn(experts, site.hidden, generator=generator) * site.hidden**-0.5
    return MoESpec(
        tuple(order[shared:].chunk(experts)),
        shared=order[:shared],
        router=Router(RouterConfig("linear"), {"weight": weight}),
        top_k=top_k,
    )
