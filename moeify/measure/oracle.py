"""The best experts of each token, which no router can know: by what the dense FFN says, or by their own sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import split_with_sizes as split

from moeify.layers.moe_layer import MoELayer
from moeify.measure.substitute import best, choice_output, gates_of, with_choice

#: Experts are picked in so many rounds, an equal part of a token's number in each.
ROUNDS = 8


def nearest_choice(layer: MoELayer, x: Tensor, h: Tensor, values: Tensor, chosen: Tensor, wanted: Tensor) -> Tensor:
    """Bool [tokens, experts]: as many experts of each token as `chosen` has, that bring the output near to `wanted`.

    In each round those are picked that would take most off the squared error that is left, each by itself (matching pursuit,
    Mallat and Zhang 1993, section 3, several atoms at a time); a token that `chosen` brings nearer keeps that. So it is a bound
    for routers of layers whose weights were fitted to a choice as well, where the largest experts are not the best.
    x [tokens, hidden], h [tokens, rows], values, chosen [tokens, experts], wanted [tokens, output].
    """
    shares = gates_of(layer, values, chosen).sum(-1) / values.masked_fill(~chosen, 0.0).sum(-1)  # 1 but for normalised gates
    gates = values * shares.nan_to_num(1.0)[:, None]
    count, picked, squares = chosen.sum(-1), torch.zeros_like(chosen), _squared_effects(layer, h, gates)
    for done in range(1, ROUNDS + 1):
        left = wanted - choice_output(layer, x, h, gates, picked)
        gains = (2 * _effects_along(layer, h, gates, left) - squares).masked_fill(picked, -torch.inf)
        picked = picked | best(gains, -(-count * done // ROUNDS) - picked.sum(-1))
    found, before = ((wanted - with_choice(layer, x, h, values, c)).square().sum(-1) for c in (picked, chosen))
    return torch.where((found < before)[:, None], picked, chosen)


def largest_choice(layer: MoELayer, h: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """Bool [tokens, experts]: the `count` [tokens] experts of each token with the largest norm of gate x output."""
    return best(expert_norms(layer, h, values), count)


def expert_norms(layer: MoELayer, h: Tensor, values: Tensor) -> Tensor:
    """[tokens, experts]: ||value_e E_e(x)|| for h [tokens, rows] and values [tokens, experts]; every expert is computed."""
    offsets, down = layer.config.offsets, layer.rows.down
    if layer.config.rows - layer.config.shared == layer.config.experts:  # of one neuron each
        lengths: Tensor = torch.linalg.vector_norm(down[layer.config.shared :].to(h.dtype), dim=-1)
        return h[:, layer.config.shared :].abs() * lengths * values.abs()
    parts = [h[:, start:end] @ down[start:end].to(h.dtype) for start, end in zip(offsets, offsets[1:])]
    return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1) * values.abs()


def _squared_effects(layer: MoELayer, h: Tensor, values: Tensor) -> Tensor:
    """[tokens, experts]: |e|^2, e what the output changes by when an expert is chosen: its output less its idle vector."""
    squares = expert_norms(layer, h, values).square()
    if layer.idle is None:
        return squares
    idle, sizes = layer.idle.to(h.dtype), torch.tensor(layer.config.sizes, device=h.device)
    rows = layer.rows.down[layer.config.shared :].to(h.dtype)
    along = (rows * idle.repeat_interleave(sizes, dim=0)).sum(-1)
    return squares - 2 * values * _by_expert(layer, h[:, layer.config.shared :] * along) + idle.square().sum(-1)


def _effects_along(layer: MoELayer, h: Tensor, values: Tensor, left: Tensor) -> Tensor:
    """[tokens, experts]: e . left, e as in `_squared_effects`, left [tokens, output]."""
    shared = layer.config.shared
    along = values * _by_expert(layer, h[:, shared:] * (left @ layer.rows.down[shared:].to(h.dtype).T))
    return along if layer.idle is None else along - left @ layer.idle.to(h.dtype).T


def _by_expert(layer: MoELayer, values: Tensor) -> Tensor:
    """[tokens, experts]: sums of values [tokens, routed rows] over the rows of each expert."""
    sizes = layer.config.sizes
    if len(set(sizes)) == 1:
        return values.reshape(len(values), len(sizes), sizes[0]).sum(-1)
    return torch.stack([part.sum(-1) for part in split(values, list(sizes), dim=-1)], dim=-1)
