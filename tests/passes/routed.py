"""A split site behind a router, and what the router's figures are."""

from __future__ import annotations

from typing import Any

import torch

from moeify.ir.facts import Experts
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.insert_router import InsertRouter
from passes.tiny import correlated_inputs, graph_of, planted_site, sampled_context


def in_four(site: FeedForward, shared: int = 0) -> MoESpec:
    """Experts of neighbouring neurons, of different sizes, behind a shared expert."""
    neurons = torch.arange(site.neurons)
    rest = site.neurons - shared
    sizes = [rest // 4 + 2, rest // 4 - 2, rest // 4 + 1]
    parts = torch.split_with_sizes(neurons[shared:], [*sizes, rest - sum(sizes)])
    return MoESpec(tuple(parts), neurons[:shared])


def routed(site: FeedForward, by: Any, shared: int = 0, top_k: int = 2, tokens: int = 600) -> tuple[MoESpec, PassContext]:
    """The spec of the site in four experts behind that router."""
    graph = graph_of(site)
    graph.specs[site.path] = in_four(site, shared)
    context = sampled_context(graph, correlated_inputs(tokens, site.hidden))
    context.put(site, Experts((1,), True))
    InsertRouter(top_k=top_k, by=by).run(graph, context)
    return graph.specs[site.path], context


def planted_figures(by: Any, tokens: int = 2000) -> dict[str, float]:
    """What is reported of a router over experts that are the planted groups."""
    planted = planted_site(groups=4)
    graph = graph_of(planted.site)
    graph.specs["planted"] = MoESpec(tuple(torch.nonzero(planted.groups == g).flatten() for g in range(4)))
    context = sampled_context(graph, correlated_inputs(tokens))
    InsertRouter(top_k=1, by=by).run(graph, context)
    return context.measurements["planted"]
