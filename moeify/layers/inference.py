"""What stochastic layers do in inference, set on a whole model after conversion."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from moeify.errors import UsageError
from moeify.ir.moe_config import Inference, Scope
from moeify.layers.budget import moe_layers
from moeify.layers.stochastic_router import StochasticRouter


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
