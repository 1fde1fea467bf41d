"""The null without routing: the best rows, always on, at the same active fraction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.measure.load import LoadMeter, metered
from moeify.measure.nulls import Null, choosing
from moeify.measure.outputs import evaluating, run, visible
from moeify.measure.substitute import Compute, combined, computed_by, neuron_outputs


def static_mask(model: nn.Module, layers: Mapping[str, MoELayer], batches: Iterable[Batch]) -> Null:
    """Keeps the rows with the largest E[h^2] ||down row||^2, on for every token: no routing, no compensation.

    E[h^2] is measured on the batches while all rows run with gate 1, which for a partition is the dense model. A layer keeps
    as many rows as hold the weights that the routed layer uses on these batches, router and low-rank term included. The
    batches must not be used for scores. Raises InputError where the model fails.
    """
    routed = choosing(layers)
    moments = {path: torch.zeros(layer.config.rows, dtype=torch.float64) for path, layer in routed.items()}
    meter = LoadMeter()
    with evaluating(model):
        for batch in batches:
            meter.shown = visible(batch)
            with metered(routed, meter):
                run(model, batch)
            with computed_by(routed, {path: _observed(moments[path]) for path in routed}):
                run(model, batch)
    kept: dict[str, Compute] = {}
    fractions: dict[str, float] = {}
    for load in meter.results(routed):
        layer = routed[load.path]
        down = layer.rows.down
        gains = moments[load.path].to(down.device) * down.double().square().sum(-1)
        rows = min(max(round(load.active_fraction * layer.config.rows), 1), layer.config.rows)
        kept[load.path] = _masked(gains.topk(rows).indices)
        fractions[load.path] = rows / layer.config.rows
    what = (
        "the rows with the largest E[h^2] x squared norm of the down row are on for every token, as many as hold the weights "
        "that the routed layer uses; no routing, no compensation; chosen on the leading tenth of the data"
    )
    return Null("static-mask", what, kept, fractions)


def _observed(moment: Tensor) -> Compute:
    """All rows on; the squares of their outputs are added to `moment` [rows]."""

    def compute(layer: MoELayer, x: Tensor) -> Tensor:
        h = neuron_outputs(layer, x)
        moment.add_(h.float().square().sum(0).double().cpu())
        return combined(layer, h)

    return compute


def _masked(rows: Tensor) -> Compute:
    """Only these rows (indices) are on."""

    def compute(layer: MoELayer, x: Tensor) -> Tensor:
        h = neuron_outputs(layer, x)
        mask = torch.zeros(h.shape[-1], dtype=h.dtype, device=h.device).index_fill_(0, rows, 1)
        return combined(layer, h * mask)

    return compute
