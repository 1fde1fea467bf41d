"""Null models: what the experts and the router of a conversion have to beat, or could reach at best.

Each null computes something else in layers for the length of a `computed_by` block; no weight is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeify.layers.moe_layer import MoELayer
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.fitted_nulls import FittedNulls, FromHidden
from moeify.measure.linear_term import LinearTerm
from moeify.measure.load import LoadMeter
from moeify.measure.oracle import largest_choice, nearest_choice
from moeify.measure.substitute import Compute, neuron_outputs, values_of, with_choice


@dataclass(frozen=True, eq=False)
class Null:
    """name: kebab-case. what: one sentence saying what is computed. compute: by layer path.

    The active fraction of a layer is, by its path, what `fractions` says, else what `meter` measured, else the routed layer's;
    `extra` is added to it.
    """

    name: str
    what: str
    compute: Mapping[str, Compute]
    fractions: Mapping[str, float] = field(default_factory=dict)
    meter: LoadMeter | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


def choosing(layers: Mapping[str, MoELayer]) -> dict[str, MoELayer]:
    """The layers that do not always run all of their experts."""
    return {
        path: layer
        for path, layer in layers.items()
        if layer.config.router is not None
        and (layer.config.threshold is not None or (layer.config.top_k or layer.config.experts) < layer.config.experts)
    }


def all_on(layers: Mapping[str, MoELayer]) -> Null:
    """No top-k and no threshold: the dense model, for a partition with gates 1, its own weights and no low-rank term."""
    what = "top-k and threshold are off: all experts run, with the layer's own gates and low-rank term"
    routed = choosing(layers)
    shapes = {path: layer.config for path, layer in routed.items()}
    fractions = {path: c.active_fraction(c.dense_neurons, c.experts) for path, c in shapes.items()}
    return Null("all-on", what, dict.fromkeys(routed, _all_on), fractions)


def oracle(layers: Mapping[str, MoELayer], dense: Mapping[str, DenseFFN] | None = None) -> Null:
    """What a better router could reach. dense: the FFNs before the conversion, by path; where one is not known, a bound for
    routers that rank experts by the size of their output."""
    what = (
        "as many experts as the router takes for each token, but those that bring the layer nearest to the dense FFN (where "
        "that is not known, those with the largest norm of gate x output)"
    )
    meter, ffns = LoadMeter(), dense or {}
    return Null("oracle-routing", what, {path: _oracle(path, meter, ffns.get(path)) for path in choosing(layers)}, meter=meter)


def random_partition(ffns: Mapping[str, DenseFFN], fitted: Mapping[str, FittedNulls]) -> Null:
    """Experts filled at random, behind the router that needs no data."""
    what = (
        "neurons are dealt at random to a shared expert and equal experts, behind their average keys; a token uses as many as "
        "the weights of the routed layer pay for; no compensation"
    )
    nulls = {path: found.random for path, found in fitted.items()}
    computes = {path: _of_hidden(ffns[path], null) for path, null in nulls.items()}
    return Null("random-partition", what, computes, {path: null.fraction for path, null in nulls.items()})


def static_mask(ffns: Mapping[str, DenseFFN], fitted: Mapping[str, FittedNulls]) -> Null:
    """The recipe `static` at the same active fraction of every layer."""
    what = (
        "the neurons with the largest E[h^2] x squared norm of the down row are on for every token, as many as hold the weights"
        " that the routed layer uses, and the mean of the others is added; no routing; chosen on the leading tenth of the data"
    )
    nulls = {path: found.static for path, found in fitted.items()}
    computes = {path: _of_hidden(ffns[path], null) for path, null in nulls.items()}
    return Null("static-mask", what, computes, {path: null.fraction for path, null in nulls.items()})


def full_rank_compensation(fitted: Mapping[str, FittedNulls]) -> Null:
    """What a low-rank term could reach at any rank."""
    what = (
        "the converted layers, each with the best linear term of its input in place of what is idle, at full rank; fitted by "
        "ridge regression on the leading tenth of the data"
    )
    computes = {path: _with_term(found.term) for path, found in fitted.items()}
    extra = {path: found.term_fraction for path, found in fitted.items()}
    return Null("full-rank-compensation", what, computes, extra=extra)


def _all_on(layer: MoELayer, x: Tensor) -> Tensor:
    values = values_of(layer, layer.route(x).scores)
    return with_choice(layer, x, neuron_outputs(layer, x), values, torch.ones_like(values, dtype=torch.bool))


def _oracle(path: str, meter: LoadMeter, ffn: DenseFFN | None) -> Compute:
    def compute(layer: MoELayer, x: Tensor) -> Tensor:
        routing = layer.route(x)
        h, values = neuron_outputs(layer, x), values_of(layer, routing.scores)
        if ffn is None:
            chosen = largest_choice(layer, h, values, routing.chosen.sum(-1))
        else:
            chosen = nearest_choice(layer, x, h, values, routing.chosen, ffn.output(ffn.hidden(x)))
        meter.count(path, chosen)
        return with_choice(layer, x, h, values, chosen)

    return compute


def _of_hidden(ffn: DenseFFN, null: FromHidden) -> Compute:
    return lambda layer, x: null(x, ffn.hidden(x))


def _with_term(term: LinearTerm) -> Compute:
    return lambda layer, x: type(layer).forward(layer, x) + term(x)
