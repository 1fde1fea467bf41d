from __future__ import annotations

from typing import Any

import pytest
import torch

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Budget
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows, squared_norms
from moeify_passes.held_site import held_site
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.routers.choice import route_tokens
from moeify_passes.routers.gain_regression import GainRegression
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.reduced_rank import ReducedRankFit
from moeify_passes.token_weights import TokenWeights
from passes.rewriting import check_rewrite
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context


def split(*sites: Any, size: int = 8) -> tuple[ModelGraph, PassContext]:
    graph = graph_of(*sites)
    for site in sites:
        graph.specs[site.path] = MoESpec(tuple(torch.split(torch.arange(site.neurons), size)))
    return graph, sampled_context(graph)


def test_routes(request: pytest.FixtureRequest) -> None:
    graph, context = split(*(make() for make in SITES.values()))
    check_rewrite(InsertRouter(top_k=2, by=GainRegression(rank=4)), graph, context, "insert_router_gain", request)
    for site in graph.sites:
        figures = context.measurements[site.path]
        assert figures["random_share"] < figures["router_share"] <= 1
        assert figures["random_gain_share"] < figures["gain_share"] <= 1


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("caption", SITES)
def test_at_full_rank_the_scores_are_the_ridge_regression_of_log_gains(caption: str, size: int) -> None:
    site = SITES[caption]()
    graph, context = split(site, size=size)
    spec = graph.specs[site.path]
    router = GainRegression(rank=12, floor=0.3, ridge=1e-6).route(site, spec, context)
    x, _ = held_out(site, context.get(site, ActivationSample).inputs, context.generator("held-out", site))
    dense = held_site(site)
    outputs = dense.neuron_outputs(x) @ dense.down.read()
    parts = [dense.neuron_outputs(x, rows) @ dense.down.read()[rows] for rows in spec.experts]
    gains = torch.stack([part.square().sum(1) for part in parts], 1) * TokenWeights.of(dense, x).weights(outputs)[:, None]
    torch.testing.assert_close(squared_norms(expert_rows(site, spec), x), torch.stack([p.square().sum(1) for p in parts], 1))
    targets = (gains + 0.3 * gains.mean()).log().double()
    ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    expected = ones @ torch.linalg.lstsq(ones, targets).solution
    torch.testing.assert_close(router.scores(x).double(), expected, atol=2e-3, rtol=0)


def test_a_lower_rank_is_the_best_of_its_rank() -> None:
    """Reduced-rank regression: the fit of rank r is the fit of full rank projected on its r first principal directions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    y = x @ torch.randn(6, 9, generator=generator) + torch.randn(400, 9, generator=generator)
    fit = ReducedRankFit(x, 9)
    for a, b in zip(torch.split(x, 90), torch.split(y, 90)):
        fit.add(a, b)

    def predicted(rank: int) -> torch.Tensor:
        t = fit.solve(rank, 1e-9)
        return ((x @ t["weight_in"].T + t["bias_in"]) @ t["weight_out"].T + t["bias_out"]).double()

    full = predicted(6) - y.double().mean(0)
    u, s, v = torch.linalg.svd(full, full_matrices=False)
    for rank in (1, 2, 4):
        expected = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(predicted(rank) - y.double().mean(0), expected, atol=1e-3, rtol=0)


def test_an_outlier_among_the_tokens_is_damped() -> None:
    site = held_site(random_site())
    x = correlated_inputs(200)
    x[0] *= 1000
    weights = TokenWeights.of(site, x)
    found = weights.weights(site.neuron_outputs(x) @ site.down.read())
    assert float(found[0]) < 1e-4
    assert float(found[1:].median()) == pytest.approx(10 / 11, abs=0.01)


def test_a_dead_network_gets_equal_scores() -> None:
    site = random_site()
    graph, context = split(site)
    context.put(site, ActivationSample(torch.zeros(50, 12), 50))
    scores = GainRegression().route(site, graph.specs[site.path], context).scores(torch.ones(3, 12))
    assert bool((scores == scores[0, 0]).all())


@pytest.mark.parametrize(("budget", "part"), [(0.1, 0.75), (0.3, 0.25), (0.4, 0.0), (0.7, 0.0), (None, 0.0)])
def test_scores_are_evened_where_the_budget_is_small(budget: float | None, part: float) -> None:
    site = random_site()
    graph, context = split(site)
    spec, x = graph.specs[site.path], correlated_inputs(40)
    plain = GainRegression(rank=4).route(site, spec, context).scores(x)
    if budget is not None:
        context.put(site, Budget(budget))
    evened = GainRegression(rank=4, even_below=0.4).route(site, spec, context).scores(x)
    # In float32 the mean of a matrix's rows, and of the scores that it makes, are rounded at different places.
    torch.testing.assert_close(evened, plain - part * plain.mean(1, keepdim=True), atol=1e-5, rtol=1e-5)


def test_evened_scores_let_tokens_use_more_nearly_as_many_experts() -> None:
    """At the same mean, which the threshold keeps."""
    site = random_site()
    used = {}
    for even_below in (0.0, 1.0):
        graph, context = split(site, size=2)
        context.put(site, Budget(0.2))
        by = GainRegression(rank=2, even_below=even_below)
        InsertRouter(active=0.2, choice="threshold", by=by).run(graph, context)
        x = context.get(site, ActivationSample).inputs
        used[even_below] = route_tokens(graph.specs[site.path], x).chosen.sum(1).float()
    assert float(used[1.0].mean()) == pytest.approx(float(used[0.0].mean()), rel=0.02)
    assert float(used[1.0].std()) < 0.9 * float(used[0.0].std())


def test_rank_is_a_count_or_a_part_of_the_inputs() -> None:
    config = MoESpec((torch.arange(48),)).config(random_site())
    assert [GainRegression(rank).shape(config).width for rank in (3, 50, 0.5, 0.01, 1.0)] == [3, 12, 6, 1, 12]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GainRegression(rank=0), "gain-regression.rank is 0: choose a count from 1 or a fraction of at most 1.0"),
        (lambda: GainRegression(rank=1.5), "gain-regression.rank is 1.5: choose a count"),
        (lambda: GainRegression(floor=0), "gain-regression.floor is 0: choose a number above 0"),
        (lambda: GainRegression(ridge=-1), "gain-regression.ridge is -1: choose a number above 0"),
        (lambda: GainRegression(even_below=1.5), "gain-regression.even_below is 1.5: choose a fraction from 0 to 1"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
