"""Thresholds that spend a budget of weights, and what a threshold spends."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moeify.ir.facts import ActivationSample
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.held_site import token_chunks
from moeify_passes.routers.choice import route_tokens, values_of_choice

#: Values of the sample that are looked at to place a threshold (64 MiB of float32).
_VALUES = 1 << 24


def calibrated_threshold(spec: MoESpec, rows: float, site: FeedForward, context: PassContext) -> MoESpec:
    """The spec with the threshold at which a token of the sample uses `rows` rows of routed experts on average, or a little
    less; where the sample is of several sources, a token of the one that asks for most.

    Experts may differ in size. With a top_k in the spec, tokens never use more experts, and the threshold is as low as that
    calls for. The sample is thinned evenly where its values are too many to hold.
    """
    sample = context.get(site, ActivationSample)
    step = max(1, -(-len(sample.inputs) * len(spec.experts) // _VALUES))
    values = torch.cat([_eligible(spec, x) for x in token_chunks(sample.inputs[::step], len(spec.experts))])
    sizes = torch.tensor([len(expert) for expert in spec.experts], dtype=torch.float64)
    sources = torch.zeros(len(values)) if sample.sources is None else sample.sources[::step]
    found = (_threshold(values[sources == source], sizes, rows) for source in set(sources.tolist()))
    return replace(spec, threshold=max(found))


def _threshold(values: Tensor, sizes: Tensor, rows: float) -> float:
    """Of values [tokens, experts] the least that a token reaches with no more than `rows` rows on average."""
    ranked, places = values.flatten().sort(descending=True)
    used = sizes[places % len(sizes)].masked_fill_(ranked == -torch.inf, 0.0).cumsum(0) / len(values)
    fits = int((used <= rows * (1 + 1e-9)).sum())
    if fits and fits < len(ranked):  # equal values stand or fall together
        fits = int((ranked > ranked[fits]).sum()) if ranked[fits] == ranked[fits - 1] else fits
    found = ranked[max(fits - 1, 0)] if fits else torch.nextafter(ranked[0], torch.tensor(torch.inf))
    return float(found)


def mean_on(spec: MoESpec, inputs: Tensor) -> float:
    """How many experts of mean size hold the rows that a token of inputs [tokens, hidden] uses, on average."""
    sizes = torch.tensor([len(expert) for expert in spec.experts], dtype=torch.float64)
    used = sum(float(route_tokens(spec, x).chosen.sum(0).double() @ sizes) for x in token_chunks(inputs, len(sizes)))
    return used / len(inputs) / float(sizes.mean())


def active_share(site: FeedForward, spec: MoESpec, context: PassContext) -> float:
    """The active fraction of the layer; of a threshold as measured on the calibration sample, where there is one."""
    sample = context.find(site, ActivationSample)
    if spec.threshold is None or sample is None:
        return spec.active_fraction(site)
    return spec.active_fraction(site, mean_on(spec, sample.inputs))


def _eligible(spec: MoESpec, x: Tensor) -> Tensor:
    """What a threshold is compared with, float32 [tokens, experts]; minus infinity where top_k rules the expert out."""
    values = values_of_choice(spec, x).float()
    if spec.top_k is None or spec.top_k >= values.shape[1]:
        return values
    return values.masked_fill(~route_tokens(replace(spec, threshold=None), x).chosen, -torch.inf)
