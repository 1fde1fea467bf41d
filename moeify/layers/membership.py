"""Adding an expert to a converted model, and taking one out (DEMix, Gururangan et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moeify.errors import UsageError, did_you_mean
from moeify.ir.expert_selection import select_config
from moeify.layers.budget import matching_layers
from moeify.layers.expert_selection import select_experts
from moeify.layers.moe_layer import MoELayer
from moeify.layers.routers import ScoringRouter

#: Routers that have a row for each expert, and its tensor.
_ROWS = {"linear": "weight", "mlp": "weight_out"}


def add_expert(
    model: nn.Module, *, copy_of: int, row: Tensor | Mapping[str, Tensor] | None = None, layers: str = "*"
) -> dict[str, int]:
    """Gives each MoE layer whose path matches one more routed expert, a copy of its expert `copy_of` (from 0); returns its
    number, the last, by path.

    row: the new expert's row of the router, one for all layers or one for each by path: [hidden] of a linear router, [width] of
    an mlp. None: a copy of that expert's: then the two have one score (up to rounding) until training tells them apart. An
    average-key router follows the keys, a stochastic one draws from all: they have no rows to give. Biases, selection bias and
    idle vector are copied; top_k stays as it is.

    All layers change, or none. Parameters stay the same objects with more rows: make a new optimizer. Raises UsageError for a
    model without MoE layers, a glob that matches none, an expert that is not there, and a row that does not fit.
    """
    chosen = matching_layers(model, layers)
    rows = dict(row) if isinstance(row, Mapping) else {} if row is None else dict.fromkeys(chosen, row)
    for path in rows:
        if path not in chosen:
            raise UsageError(f"row names the layer {path!r}, which gets no expert: {did_you_mean(path, chosen)}")
    for path, layer in chosen.items():
        _check_there(path, layer, "copy_of", copy_of)
        _check_row(path, layer, rows.get(path))
    for path, layer in chosen.items():
        select_experts(layer, [*range(layer.config.experts), copy_of])
        if (given := rows.get(path)) is not None:
            with torch.no_grad():
                _rows_of(layer)[-1].copy_(given)
    return {path: layer.config.experts - 1 for path, layer in chosen.items()}


def remove_expert(model: nn.Module, index: int, *, layers: str = "*") -> None:
    """Takes the routed expert `index` (from 0) out of each MoE layer whose path matches; those behind it move up by one.

    All layers change, or none. Parameters stay the same objects with fewer rows: make a new optimizer. Raises UsageError for a
    model without MoE layers, a glob that matches none, an expert that is not there, and a layer that needs it for its top_k.
    """
    chosen = matching_layers(model, layers)
    left = {}
    for path, layer in chosen.items():
        _check_there(path, layer, "index", index)
        left[path] = [expert for expert in range(layer.config.experts) if expert != index]
        try:
            select_config(layer.config, left[path])
        except UsageError as error:
            raise UsageError(f"{path}: no expert can be taken out: {error}") from error
    for path, layer in chosen.items():
        select_experts(layer, left[path])


def _check_there(path: str, layer: MoELayer, option: str, expert: int) -> None:
    if not 0 <= expert < layer.config.experts:
        raise UsageError(f"{path}: {option} is {expert}: choose from 0 to {layer.config.experts - 1}")


def _check_row(path: str, layer: MoELayer, row: Tensor | None) -> None:
    if row is None:
        return
    kind = "none" if layer.config.router is None else layer.config.router.kind
    if kind not in _ROWS:
        raise UsageError(f"{path}: row is for a linear or mlp router, and this layer's is {kind}: leave it out")
    if (shape := _rows_of(layer).shape[1:]) != row.shape:
        raise UsageError(f"{path}: row has the shape {list(row.shape)}, the router's rows {list(shape)}")


def _rows_of(layer: MoELayer) -> Tensor:
    """[experts, hidden or width]"""
    assert layer.config.router is not None
    assert isinstance(layer.router, ScoringRouter)
    return layer.router.get_parameter(_ROWS[layer.config.router.kind])
