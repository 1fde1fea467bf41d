"""Another set of experts for an MoE layer, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from moeify.ir.expert_selection import select_config, select_tensors
from moeify.layers.moe_layer import MoELayer
from moeify.layers.stochastic_router import StochasticRouter
from moeify.layers.training_notes import Tally


@torch.no_grad()
def select_experts(layer: MoELayer, experts: Sequence[int]) -> None:
    """Leaves the layer with those of its routed experts, in that order; one named twice becomes two.

    Parameters stay the objects that they are, with other sizes and without a gradient: an optimizer that holds a state of the
    old size fails at its next step instead of training what is gone. Raises UsageError, before anything is changed, for fewer
    experts than top_k, or none.
    """
    config = select_config(layer.config, experts)
    held = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    selected = select_tensors(layer.config, {name: value.detach() for name, value in held.items()}, experts)
    for name, value in selected.items():
        if isinstance(held[name], nn.Parameter):
            held[name].data, held[name].grad = value, None
        else:
            owner, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, value)
    layer.config = config
    layer._offsets = torch.tensor(config.offsets, dtype=torch.int64, device="cpu")
    if layer.training_state is not None and layer.training_state.tally is not None:
        layer.training_state.tally = Tally()  # what was counted is of the old experts
    if isinstance(layer.router, StochasticRouter):
        layer.router.experts = config.experts
