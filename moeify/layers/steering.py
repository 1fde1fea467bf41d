"""What training does to scores and choices on their way: noise, dropout of the gating, capacity. Pure functions of tensors.

Draws come from torch's own generator, as those of dropout do: a checkpointed block that runs again in backward draws the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def jittered(x: Tensor, width: float) -> Tensor:
    """x times uniform draws from 1 - width .. 1 + width (Switch Transformers, Fedus et al. 2022, section 2.4)."""
    return x * (1 + width * (2 * torch.rand_like(x) - 1)) if width else x


def noisy(scores: Tensor, deviation: float) -> Tensor:
    """Scores with normal noise (Shazeer et al. 2017, equation 4; the deviation is fixed as in V-MoE, Riquelme et al. 2021)."""
    return scores + deviation * torch.randn_like(scores) if deviation else scores


def without_gating(chosen: Tensor, probability: float) -> Tensor:
    """With that probability a token takes as many experts as it chose, but drawn uniformly; chosen: bool [tokens, experts].

    After Gating Dropout (Liu et al. 2022), where such a token goes to the expert of its own machine.
    """
    if not probability:
        return chosen
    draws = torch.rand(chosen.shape, device=chosen.device)
    shuffled = chosen.gather(-1, draws.argsort(-1))
    ignored = torch.rand(chosen.shape[0], 1, device=chosen.device) < probability
    return torch.where(ignored, shuffled, chosen)


def within_capacity(
    chosen: Tensor, values: Tensor, factor: float, drop: Literal["gate", "position"], weight: Tensor | None
) -> Tensor:
    """The choices that an expert has room for: ceil(factor x choices / experts) tokens each; bool [tokens, experts].

    drop: who goes first: "gate": the lowest value of [tokens, experts], of equal ones the later token (the idea of
    batch-prioritised routing, Riquelme et al. 2021, section 4); "position": the last token (Switch Transformers, section 2.2).
    weight [tokens]: 0 for padding, which takes no room and no expert.
    """
    if weight is not None:
        chosen = chosen & (weight != 0).unsqueeze(-1)
    room = (factor * chosen.sum(dtype=torch.float64) / chosen.shape[-1]).ceil()
    if drop == "position":
        return chosen & (chosen.cumsum(0) <= room)
    order = values.detach().masked_fill(~chosen, -torch.inf).argsort(stable=True, dim=0, descending=True)
    place: Tensor = order.argsort(0)
    return chosen & (place < room)
