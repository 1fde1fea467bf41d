"""Putting another computation in the place of MoE layers for a while, without touching a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.layers.moe_layer import MoELayer
from moeify.layers.routing import ChoiceRule, route
from moeify.layers.rows import linear
from moeify.measure.dense_ffn import hidden_of

#: y [tokens, output] of a layer and x [tokens, hidden].
Compute = Callable[[MoELayer, Tensor], Tensor]


@contextmanager
def computed_by(layers: Mapping[str, MoELayer], compute: Mapping[str, Compute]) -> Iterator[None]:
    """Within the block the named layers compute as told. Nothing but their `forward` changes, and that is put back."""

    def forward(layer: MoELayer, instead: Compute) -> Callable[[Tensor], Tensor]:
        def replaced(x: Tensor) -> Tensor:
            return instead(layer, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], layer.config.output)

        return replaced

    replaced = [layers[path] for path in compute]
    try:
        for path, instead in compute.items():
            vars(layers[path])["forward"] = forward(layers[path], instead)
        yield
    finally:
        for layer in replaced:
            vars(layer).pop("forward", None)


def neuron_outputs(layer: MoELayer, x: Tensor) -> Tensor:
    """h [tokens, rows] of x [tokens, hidden], all rows of the layer."""
    return hidden_of(layer.rows, layer.config.activation, x)


def combined(layer: MoELayer, h: Tensor) -> Tensor:
    """y [tokens, output]: h [tokens, rows] (already gated) through the second matrix, with the output bias."""
    return linear(h, layer.rows.down.T, layer.output_bias)


def compensated(layer: MoELayer, x: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
    """y with the layer's compensation: idle vectors where `chosen` [tokens, experts] is False, and the low-rank term."""
    if layer.idle is not None:
        y = y + (~chosen).to(x.dtype) @ layer.idle.to(x.dtype)
    if layer.low_rank_in is not None and layer.low_rank_out is not None:
        y = y + linear(linear(x, layer.low_rank_in), layer.low_rank_out.T)
    return y


def choice_output(layer: MoELayer, x: Tensor, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    """y [tokens, output] of x [tokens, hidden] and h [tokens, rows], chosen experts with these gates [tokens, experts] as they
    are."""
    of_row = row_gates(layer, gates.masked_fill(~chosen, 0.0)).to(x.dtype)
    return compensated(layer, x, combined(layer, h * of_row), chosen)


def with_choice(layer: MoELayer, x: Tensor, h: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    """The same by values [tokens, experts] that the layer's gates are made of."""
    return choice_output(layer, x, h, gates_of(layer, values, chosen), chosen)


def row_gates(layer: MoELayer, gates: Tensor) -> Tensor:
    """[tokens, rows]: the gate of the expert that each row belongs to, 1 for the shared expert."""
    sizes = torch.tensor(layer.config.sizes, device=gates.device)
    return F.pad(gates.repeat_interleave(sizes, dim=-1), (layer.config.shared, 0), value=1.0)


def values_of(layer: MoELayer, scores: Tensor) -> Tensor:
    """[tokens, experts]: the gates that the experts would have by these scores if all were chosen, not normalised."""
    return route(scores, ChoiceRule(None, None, layer.config.gate_rule, False), None).gates


def gates_of(layer: MoELayer, values: Tensor, chosen: Tensor) -> Tensor:
    """[tokens, experts]: the values of the chosen experts, normalised where the layer does so; 0 for the others."""
    gates = values.masked_fill(~chosen, 0.0)
    if not layer.config.normalize:
        return gates
    total = gates.sum(-1, keepdim=True)
    return gates / total.masked_fill(total == 0, 1.0)


def best(values: Tensor, count: Tensor) -> Tensor:
    """Bool like values [tokens, experts]: the `count` [tokens] largest of each token, the lower index first among equals."""
    order = values.sort(dim=-1, descending=True, stable=True).indices
    within = torch.arange(values.shape[-1], device=values.device) < count[:, None]
    return torch.zeros_like(within).scatter_(-1, order, within)
