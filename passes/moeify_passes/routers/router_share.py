"""How good a router's choice is, against the best one of its size."""

from __future__ import annotations

import torch

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
    as many for each token (`router_share`), and what a choice by chance gets (`random_share`). Nothing without a sample."""
    sample = context.find(site, ActivationSample)
    if sample is None or spec.router is None or (spec.top_k is None and spec.threshold is None) or len(sample.inputs) < 2:
        return
    _, inputs = held_out(site, sample.inputs, context.generator("held-out", site))
    rows = expert_rows(site, spec)
    chosen, best, chance = torch.zeros(3, dtype=torch.float64)
    for x in token_chunks(inputs, max(site.neurons, site.output)):
        norms = expert_norms(rows, x).double()
        on = route_tokens(spec, x).chosen
        counts = on.sum(1, keepdim=True)
        chosen += (norms * on).sum()
        best += norms.sort(1, descending=True).values[torch.arange(rows.experts).expand_as(on) < counts].sum()
        chance += (norms.sum(1, keepdim=True) * counts / rows.experts).sum()
    if best > 0:
        context.measure(site, router_share=float(chosen / best), random_share=float(chance / best))
