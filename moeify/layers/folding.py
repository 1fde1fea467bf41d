"""Layers of composed rows as ordinary ones (docs/moe-layer.md, 'Composed rows')."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from moeify.errors import UsageError
from moeify.layers.composed_modules import composed_rows
from moeify.layers.moe_layer import MoELayer
from moeify.layers.rows import Rows


@torch.no_grad()
def expert_rows(layer: MoELayer, expert: int) -> Rows:
    """The rows of one routed expert (from 0) as plain ones, whatever the layer stores: views of stored rows, else new memory.

    Raises UsageError where there is no such expert.
    """
    config = layer.config
    if not 0 <= expert < config.experts:
        raise UsageError(f"expert is {expert}: choose from 0 to {config.experts - 1}")
    if config.composed is None:
        return layer.rows.runs([config.shared, *config.sizes])[1 + expert]
    return composed_rows(layer, config).run(expert + (config.shared > 0))


@torch.no_grad()
def folded(layer: MoELayer) -> MoELayer:
    """A layer that computes the same from plain rows, which are trained all; the layer itself where its rows are plain.

    It takes as much memory as so many copies of the core. Router, compensation and what the layer knows of its model are
    shared with it.
    """
    config = layer.config
    if config.composed is None:
        return layer
    plain = MoELayer(replace(config, composed=None), device="meta")
    new = dict(vars(composed_rows(layer, config).folded()))
    new |= {} if layer.output_bias is None else {"output_bias": layer.output_bias.clone()}
    for name, _ in plain.named_parameters(recurse=False):
        setattr(plain, name, nn.Parameter(new[name]) if name in new else getattr(layer, name))
    plain.selection_bias, plain.router = layer.selection_bias, layer.router
    plain.tokens, plain.origin, plain.training_state = layer.tokens, layer.origin, layer.training_state
    return plain.train(layer.training)


@contextmanager
def folded_layers(model: nn.Module) -> Iterator[None]:
    """Inside, every layer of composed rows in the model holds plain ones instead, under the names of plain ones; afterwards it
    is as it was. What was done to the rows inside is forgotten."""
    layers = [module for module in model.modules() if isinstance(module, MoELayer) and module.config.composed is not None]
    kept = [layer.__dict__ for layer in layers]
    try:
        for layer in layers:
            layer.__dict__ = folded(layer).__dict__  # the object stays: models hold it in more ways than as a child
        yield
    finally:
        for layer, state in zip(layers, kept):
            layer.__dict__ = state
