from __future__ import annotations

from typing import Any

import torch

from moeify.ir.facts import Experts
from moeify.ir.moe_spec import MoESpec
from moeify_passes.experts.predicted_gain import PredictedGain
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.refit_outputs import RefitOutputs
from moeify_passes.routers.gain_regression import GainRegression
from passes.tiny import graph_of, random_site, sampled_context, site_of


def test_neurons_of_like_worth_share_an_expert() -> None:
    """Copies of a neuron, but for the sign of what they add, are predicted alike."""
    site = random_site(neurons=12, gated=True)
    assert site.gate is not None
    up, gate, down = (weight.read() for weight in (site.up, site.gate, site.down))
    twins = site_of("layer", "silu", up=torch.cat([up, up]), gate=torch.cat([gate, gate]), down=torch.cat([down, -down]))
    found = PredictedGain().group(twins, torch.arange(24), (2,) * 12, sampled_context(graph_of(twins)))
    assert {tuple(group.tolist()) for group in found} == {(i, i + 12) for i in range(12)}


def test_a_router_of_that_kind_loses_less_with_them_than_with_random_experts() -> None:
    def error(by: Any) -> float:
        site = random_site(neurons=96, gated=True)
        graph = graph_of(site)
        context = sampled_context(graph)
        graph.specs[site.path] = MoESpec(by.group(site, torch.arange(96), (8,) * 12, context))
        context.put(site, Experts((8,) * 12, True))
        InsertRouter(top_k=6, by=GainRegression()).run(graph, context)
        RefitOutputs().run(graph, context)
        found: float = context.measurements[site.path]["output_error_before"]
        return found

    assert error(PredictedGain()) < 0.8 * error(Random())
