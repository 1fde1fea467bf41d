"""What layers do with their experts besides routing, set on a whole model after conversion."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from moeify.errors import UsageError
from moeify.ir.moe_config import Inference, Scope
from moeify.layers.budget import matching_layers, moe_layers
from moeify.layers.model_hooks import watcher_of
from moeify.layers.moe_layer import MoELayer
from moeify.layers.stochastic_router import StochasticRouter
from moeify.layers.token_input import TokenInput


def set_inference(
    model: nn.Module, inference: Inference, *, scope: Scope | None = None, seed: int | None = None, layers: str = "*"
) -> None:
    """Sets the mode of inference (docs/moe-layer.md, 'Stochastic choice') of the stochastic layers whose path matches.

    scope: of draws, in training too; None: as it is. seed: that of the first layer, the next ones get the numbers after it;
    None: each keeps its own. Either way `random` inference begins its sequence of draws anew. All layers change, or none.
    Raises UsageError for a model without stochastic layers, a glob that matches none, and for values that do not fit.
    """
    found = {path: layer for path, layer in moe_layers(model).items() if isinstance(layer.router, StochasticRouter)}
    chosen = [layer for path, layer in found.items() if fnmatchcase(path, layers)]
    if not chosen:
        reason = f"none matches {layers!r}" if found else "convert with insert-stochastic-experts"
        raise UsageError(f"{type(model).__name__}: no stochastic MoE layer to set the inference of: {reason}")
    changed = []
    for number, layer in enumerate(chosen):
        assert layer.config.router is not None
        router = replace(layer.config.router, inference=inference)
        router = replace(router, scope=scope or router.scope, seed=router.seed if seed is None else seed + number)
        changed.append(replace(layer.config, router=router))
    for layer, config in zip(chosen, changed):
        assert isinstance(layer.router, StochasticRouter)
        assert config.router is not None
        layer.config = config
        layer.router.config = config.router
        layer.router.calls = 0


def set_smear(model: nn.Module, smear: bool = True, *, layers: str = "*") -> None:
    """Runs one merged expert a sequence (docs/moe-layer.md, SMEAR) in the layers whose path matches, or routes again.

    In training as in inference. model: the one that is called: it tells what is padding. All layers change, or none. Raises
    UsageError for a glob that matches none, and for a layer that draws its experts, has no router, or experts of unequal size.
    """
    chosen, changed = matching_layers(model, layers), {}
    for path, layer in chosen.items():
        if smear and layer.training_state is not None:
            raise UsageError(f"{path or 'the MoE layer'}: its choice is trained by set_training: set_training(model) ends that")
        try:
            changed[path] = replace(layer.config, smear=smear)
        except UsageError as error:
            raise UsageError(f"{path or 'the MoE layer'}: {error}") from error
    for path, layer in chosen.items():
        layer.config = changed[path]
        listen(model, layer)


def listen(model: nn.Module, layer: MoELayer) -> None:
    """Lets a layer that stands in the model know what the model is called with, where it asks."""
    if isinstance(layer.router, StochasticRouter):
        layer.router.tokens = watcher_of(model, TokenInput)
    if layer.config.smear:
        layer.tokens = watcher_of(model, TokenInput)
