"""How good a router's choice is, against the best one of its size."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.ir.facts import ActivationSample
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_norms, expert_rows
from moeify_passes.held_site import token_chunks
from moeify_passes.routers.choice import route_tokens
from moeify_passes.routers.held_out import held_out


def measure_router(site: FeedForward, spec: MoESpec, context: PassContext) -> None:
    """Reports, on the held-out tenth of the sample: the summed output norms of the experts chosen / those of the best choice of
    as many for each token (`router_share`), and what a choice by chance gets (`random_share`); `gain_share` and
    `random_gain_share` are the same of squared norms, the error that an absence would leave. Nothing without a sample."""
    sample = context.find(site, ActivationSample)
    if sample is None or spec.router is None or (spec.top_k is None and spec.threshold is None) or len(sample.inputs) < 2:
        return
    _, inputs = held_out(site, sample.inputs, context.generator("held-out", site))
    rows = expert_rows(site, spec)
    sums = torch.zeros(3, 2, dtype=torch.float64)
    for x in token_chunks(inputs, max(site.neurons, site.output)):
        norms = expert_norms(rows, x).double()
        sums += _sums(norms, norms.square(), route_tokens(spec, x).chosen)
    chosen, best, chance = sums.tolist()
    for name, place in (("", 0), ("gain_", 1)):
        if best[place] > 0:
            kept, random = chosen[place] / best[place], chance[place] / best[place]
            context.measure(site, **{f"{name or 'router_'}share": kept, f"random_{name}share": random})


def _sums(norms: Tensor, gains: Tensor, on: Tensor) -> Tensor:
    """[chosen, best choice of as many, choice by chance] x [norms, gains], summed over tokens."""
    counts = on.sum(1, keepdim=True)
    best = torch.arange(on.shape[1]).expand_as(on) < counts
    found = [
        ((values * on).sum(), values.sort(1, descending=True).values[best].sum(), (values.mean(1, keepdim=True) * counts).sum())
        for values in (norms, gains)
    ]
    return torch.tensor(found, dtype=torch.float64).T
