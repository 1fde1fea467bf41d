"""Null models: what the experts and the router of a conversion have to beat, or could reach at best.

Each null computes something else in the layers that choose among experts, for the length of a `computed_by` block; no
weight is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeify.layers.moe_layer import MoELayer
from moeify.measure.substitute import (
    Compute,
    best,
    combined,
    compensated,
    gates_of,
    neuron_outputs,
    row_gates,
    values_of,
)


@dataclass(frozen=True, eq=False)
class Null:
    """name: kebab-case. what: one sentence saying what is computed. compute: by layer path.

    fractions: active fraction by layer path, where it differs from the routed layer's.
    """

    name: str
    what: str
    compute: Mapping[str, Compute]
    fractions: Mapping[str, float] = field(default_factory=dict)


def choosing(layers: Mapping[str, MoELayer]) -> dict[str, MoELayer]:
    """The layers that do not always run all of their experts."""
    return {
        path: layer
        for path, layer in layers.items()
        if layer.config.router is not None
        and (layer.config.threshold is not None or (layer.config.top_k or layer.config.experts) < layer.config.experts)
    }


def all_on(layers: Mapping[str, MoELayer]) -> Null:
    """No top-k and no threshold: the dense model, for a partition with gates 1 and no low-rank term."""
    what = "top-k and threshold are off: all experts run, with the layer's own gates and low-rank term"
    routed = choosing(layers)
    shapes = {path: layer.config for path, layer in routed.items()}
    fractions = {path: c.active_fraction(c.dense_neurons, c.experts) for path, c in shapes.items()}
    return Null("all-on", what, dict.fromkeys(routed, _all_on), fractions)


def oracle(layers: Mapping[str, MoELayer]) -> Null:
    """Perfect knowledge of the norms: a bound for routers that rank experts by the size of their output."""
    what = "as many experts as the router takes for each token, but those with the largest norm of gate x output"
    return Null("oracle-routing", what, dict.fromkeys(choosing(layers), _oracle))


def random_partition(layers: Mapping[str, MoELayer], seed: int = 0) -> Null:
    """Experts of the same sizes, filled at random. Whatever was fitted to the real experts cannot be used with these:
    every router is replaced by the one that needs no data, and compensation is left out."""
    what = (
        "rows are dealt at random to a shared expert and experts of the same sizes; the router is the average key of the new "
        "experts (for fitted routers too), with as many experts for each token as the real router takes; no compensation"
    )
    return Null("random-partition", what, {path: _random(layer, path, seed) for path, layer in choosing(layers).items()})


def expert_norms(layer: MoELayer, x: Tensor, h: Tensor, values: Tensor) -> Tensor:
    """[tokens, experts]: ||value_e E_e(x)|| for h [tokens, rows] and values [tokens, experts]; every expert is computed."""
    offsets, down = layer.config.offsets, layer.rows.down
    norms = [
        torch.linalg.vector_norm(h[:, start:end] @ down[start:end].to(x.dtype), dim=-1)
        for start, end in zip(offsets, offsets[1:])
    ]
    return torch.stack(norms, dim=-1) * values.abs()


def _all_on(layer: MoELayer, x: Tensor) -> Tensor:
    values = values_of(layer, layer.route(x).scores)
    return _with_choice(layer, x, neuron_outputs(layer, x), values, torch.ones_like(values, dtype=torch.bool))


def _oracle(layer: MoELayer, x: Tensor) -> Tensor:
    routing = layer.route(x)
    h, values = neuron_outputs(layer, x), values_of(layer, routing.scores)
    chosen = best(expert_norms(layer, x, h, values), routing.chosen.sum(-1))
    return _with_choice(layer, x, h, values, chosen)


def _with_choice(layer: MoELayer, x: Tensor, h: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    gates = row_gates(layer, gates_of(layer, values, chosen)).to(x.dtype)
    return compensated(layer, x, combined(layer, h * gates), chosen)


def dealt_rows(layer: MoELayer, path: str, seed: int) -> Tensor:
    """[rows], a permutation: row `dealt[i]` of the layer stands where row i stood. It depends on path and seed alone."""
    digest = hashlib.sha256(f"{seed}/random-partition/{path}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(layer.config.rows, generator=generator).to(layer.rows.up.device)


def _random(layer: MoELayer, path: str, seed: int) -> Compute:
    dealt = dealt_rows(layer, path, seed)
    routed = dealt[layer.config.shared :].split_with_sizes(list(layer.config.sizes))
    keys, bias = layer.rows.keys
    mean_keys = torch.stack([keys[rows].float().mean(0) for rows in routed])
    mean_bias = None if bias is None else torch.stack([bias[rows].float().mean() for rows in routed])

    def compute(layer: MoELayer, x: Tensor) -> Tensor:
        scores = torch.nn.functional.linear(x.float(), mean_keys, mean_bias)
        chosen = best(scores, layer.route(x).chosen.sum(-1))
        by_place = row_gates(layer, gates_of(layer, values_of(layer, scores), chosen)).to(x.dtype)
        gates = torch.empty_like(by_place)
        gates[:, dealt] = by_place
        return combined(layer, neuron_outputs(layer, x) * gates)

    return compute
