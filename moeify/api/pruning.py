"""Experts that the data hardly uses are taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from moeify.api.arguments import Data, open_batches
from moeify.errors import InputError, UsageError

if TYPE_CHECKING:
    from moeify.layers.moe_layer import MoELayer


@dataclass(frozen=True)
class PrunedLayer:
    """kept: the experts that stay, by their old numbers. pruned_choices: the part of all choices on the data that fell on the
    others, 0 .. 1. active_fraction: of what is left, as docs/moe-layer.md counts it."""

    path: str
    kept: tuple[int, ...]
    pruned_choices: float
    active_fraction: float


def prune_experts(
    model: nn.Module, keep: int, batches: Data, *, tokens: int | None = None, layers: str = "*"
) -> tuple[PrunedLayer, ...]:
    """Leaves each MoE layer whose path matches with the `keep` routed experts that most tokens of the batches choose.

    Of equals the lower number stays; shared experts stay. Routers, idle vectors and selection bias lose the entries of the
    others; make a new optimizer afterwards. All layers change, or none.

    Raises UsageError for a model without MoE layers, a glob that matches none, and `keep` above a layer's experts or below its
    top_k; InputError for batches that do not fit or do not reach a layer.
    """
    from moeify.layers.budget import matching_layers
    from moeify.layers.expert_selection import select_experts
    from moeify.measure.load import expert_load

    chosen = matching_layers(model, layers)
    for path, layer in chosen.items():
        _check(path, layer, keep)
    loads = {load.path: load.loads for load in expert_load(model, open_batches(batches, model, None, None, tokens))}
    if silent := [path for path in chosen if path not in loads]:
        raise InputError(f"{silent[0]}: no token of the batches reaches it; give data that does, or leave it out with layers")
    kept = {path: sorted(sorted(range(len(loads[path])), key=lambda e: (-loads[path][e], e))[:keep]) for path in chosen}
    for path, layer in chosen.items():
        select_experts(layer, kept[path])
    return tuple(_pruned(path, layer, kept[path], loads[path]) for path, layer in chosen.items())


def _check(path: str, layer: MoELayer, keep: int) -> None:
    config = layer.config
    least = 1 if layer.router is None else config.top_k or 1
    if layer.router is None:
        raise UsageError(f"{path}: has no router, so all of its experts are in use: convert with a pass that inserts one")
    if not least <= keep <= config.experts:
        raise UsageError(f"{path}: keep is {keep}: choose from {least} (its top_k) to {config.experts} (its experts)")


def _pruned(path: str, layer: MoELayer, kept: list[int], loads: tuple[float, ...]) -> PrunedLayer:
    total = sum(loads)
    lost = 1 - sum(loads[e] for e in kept) / total if total else 0.0
    config = layer.config
    return PrunedLayer(path, tuple(kept), max(lost, 0.0), config.active_fraction(config.dense_neurons))
