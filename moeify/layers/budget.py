"""Setting how many experts run, on a whole model, after conversion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from moeify.errors import UsageError, did_you_mean
from moeify.layers.moe_layer import MoELayer


def moe_layers(model: nn.Module) -> dict[str, MoELayer]:
    """The MoE layers by module path, in module order; one that stands in several places is named by its first."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}


def matching_layers(model: nn.Module, layers: str) -> dict[str, MoELayer]:
    """The MoE layers whose path matches the glob. Raises UsageError for a model without any, and a glob that matches none."""
    found = _found(model)
    chosen = {name: layer for name, layer in found.items() if fnmatchcase(name, layers)}
    if not chosen:
        raise UsageError(f"no MoE layer matches {layers!r}: {did_you_mean(layers, found)}")
    return chosen


def set_top_k(model: nn.Module, k: int | None, layers: str = "*") -> None:
    """Lets at most k experts run on a token, None: any number, in the layers whose path matches the glob `layers`.

    All layers change, or none. Raises UsageError for a model without MoE layers, a glob that matches none, a layer without
    router, and k outside 1 .. experts.
    """
    chosen = matching_layers(model, layers)
    for name, layer in chosen.items():
        if k is not None:
            _check_router(name, layer, "top_k")
            if not 1 <= k <= layer.config.experts:
                raise UsageError(
                    f"{_shown(name)}: top_k is {k}: choose from 1 to {layer.config.experts} (the number of experts)"
                )
    for layer in chosen.values():
        layer.top_k = k


def set_threshold(model: nn.Module, value: float | Mapping[str, float] | None) -> None:
    """Lets only experts run whose value reaches the threshold: one for all layers, or one for each path named.

    None: no threshold anywhere. All layers change, or none. Raises UsageError for a model without MoE layers, an unknown path,
    a layer without router, and a threshold that is not finite.
    """
    found = _found(model)
    wanted: dict[str, float | None] = dict(value) if isinstance(value, Mapping) else dict.fromkeys(found, value)
    for name, threshold in wanted.items():
        if name not in found:
            raise UsageError(f"the model has no MoE layer {name!r}: {did_you_mean(name, found)}")
        if threshold is not None:
            _check_router(name, found[name], "threshold")
            if not math.isfinite(threshold):
                raise UsageError(f"{_shown(name)}: threshold is {threshold}: choose a finite number")
    for name, threshold in wanted.items():
        found[name].threshold = threshold


def _found(model: nn.Module) -> dict[str, MoELayer]:
    found = moe_layers(model)
    if not found:
        raise UsageError(f"{type(model).__name__} has no MoE layers: convert it first")
    return found


def _check_router(name: str, layer: MoELayer, option: str) -> None:
    if layer.router is None:
        raise UsageError(
            f"{_shown(name)}: {option} needs a router, and this layer has none: convert with a pass that inserts one"
        )


def _shown(name: str) -> str:
    return name or "the MoE layer"
