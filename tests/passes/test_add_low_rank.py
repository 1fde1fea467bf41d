from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.held_site import held_site
from moeify_passes.rewrite.add_low_rank import AddLowRank
from moeify_passes.rewrite.idle_means import relative_squared_error
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.token_weights import TokenWeights
from passes.rewriting import reference
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context


def routed(site: FeedForward, top_k: int = 6, tokens: int = 2000) -> tuple[ModelGraph, PassContext]:
    """Twelve experts, each of neurons that have little to do with each other."""
    graph = graph_of(site)
    graph.specs[site.path] = MoESpec(tuple(torch.split(torch.arange(site.neurons), 4)))
    context = sampled_context(graph, correlated_inputs(tokens))
    InsertRouter(top_k=top_k).run(graph, context)
    return graph, context


@pytest.mark.parametrize("caption", SITES)
def test_the_term_lowers_the_error_and_the_active_fraction_does_not_grow(caption: str) -> None:
    site = SITES[caption]()
    graph, context = routed(site)
    before = graph.specs[site.path]
    assert AddLowRank(ranks=[1, 3, 6]).run(graph, context)
    after, figures, x = graph.specs[site.path], context.measurements[site.path], correlated_inputs(401)
    assert after.compensation.low_rank_in is not None
    assert figures["low_rank"] == len(after.compensation.low_rank_in)
    assert after.active_fraction(site) <= before.active_fraction(site) + 1e-9
    assert replace(after, top_k=(after.top_k or 0) + 1).active_fraction(site) > before.active_fraction(site)
    old, new = (relative_squared_error(site, spec, expert_rows(site, spec), x) for spec in (before, after))
    assert new < old
    assert context.get(site, Routing).top_k == after.top_k == figures["top_k"]
    assert after.router is before.router


def test_at_full_rank_it_is_the_least_squares_fit_of_what_is_left_out() -> None:
    site = random_site(biases=True)
    graph, context = routed(site)
    spec, x = graph.specs[site.path], context.get(site, ActivationSample).inputs
    weights = TokenWeights.of(held_site(site), x)
    found = AddLowRank(ridge=1e-9)._fitted(site, spec, expert_rows(site, spec), weights, x, 10)
    assert site.output_bias is not None
    y = site.forward(x.double())
    left = y - reference(site, spec, x.double())
    root = weights.weights((y - site.output_bias.read()).float()).double().sqrt()[:, None]
    ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    best = ones @ torch.linalg.lstsq(ones * root, left * root).solution
    torch.testing.assert_close(reference(site, found, x.double()) - reference(site, spec, x.double()), best, atol=2e-3, rtol=0)


def test_a_term_that_does_not_pay_is_not_taken() -> None:
    """All but one expert are on: a term would cost two of them for what one says."""
    graph, context = routed(random_site(), top_k=11)
    before = graph.specs["layers.0.mlp"]
    assert not AddLowRank(ranks=[8]).run(graph, context)
    assert context.measurements["layers.0.mlp"]["low_rank"] == 0
    assert graph.specs["layers.0.mlp"] is before


def test_a_rank_that_cannot_be_paid_is_left_out() -> None:
    graph, context = routed(random_site(), top_k=2)
    assert not AddLowRank(ranks=[12]).run(graph, context)
    assert context.measurements["layers.0.mlp"]["low_rank"] == 0


def test_a_layer_without_a_router_is_left_alone_and_a_threshold_refused() -> None:
    site = random_site()
    graph, context = routed(site)
    graph.specs[site.path] = graph.specs[site.path].all_on()
    assert not AddLowRank().run(graph, context)
    InsertRouter(top_k=2, choice="threshold").run(graph, context)
    with pytest.raises(ConversionError, match="add-low-rank pays for its term in top_k, but the layer has a threshold"):
        AddLowRank().run(graph, context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": [0]}, "add-low-rank.ranks holds 0: give counts from 1"),
        ({"ranks": [1.5]}, "add-low-rank.ranks holds 1.5: give counts from 1, or fractions"),
        ({"ridge": 0.0}, "add-low-rank.ridge is 0.0: choose a number above 0"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        AddLowRank(**options)
    assert message in str(error.value)
