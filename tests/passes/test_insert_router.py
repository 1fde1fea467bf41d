from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts, Routing
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import Compensation, MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.norm_regression import NormRegression
from passes.rewriting import check_rewrite, dense_distance, reference
from passes.tiny import SITES, graph_of, random_site, sampled_context

ROUTERS: dict[str, Any] = {
    "average_key": AverageKey(),
    "linear": NormRegression(),
    "mlp": NormRegression(width=8, steps=60),
}


def split(*sites: Any, experts: int = 6) -> tuple[ModelGraph, PassContext]:
    """Sites in experts of neighbouring neurons, with a sample of inputs."""
    graph = graph_of(*sites)
    for site in sites:
        graph.specs[site.path] = MoESpec(tuple(torch.split(torch.arange(site.neurons), site.neurons // experts)))
    return graph, sampled_context(graph)


@pytest.mark.parametrize("router", ROUTERS)
def test_routes(router: str, request: pytest.FixtureRequest) -> None:
    graph, context = split(*(make() for make in SITES.values()))
    check_rewrite(InsertRouter(top_k=2, by=ROUTERS[router]), graph, context, f"insert_router_{router}", request)
    for site in graph.sites:
        fact, figures = context.get(site, Routing), context.measurements[site.path]
        assert (fact.router, fact.top_k, fact.threshold) == (ROUTERS[router].kind, 2, None)
        assert figures["top_k"] == 2
        assert 0 < figures["random_share"] < figures["router_share"] <= 1 or router == "average_key"
        assert figures["active_fraction"] == graph.specs[site.path].active_fraction(site)


@pytest.mark.parametrize("router", ROUTERS)
def test_all_experts_chosen_is_the_dense_network(router: str) -> None:
    site = random_site(gated=True, biases=True, activation="silu")
    graph, context = split(site)
    InsertRouter(top_k=6, by=ROUTERS[router]).run(graph, context)
    spec, x = graph.specs[site.path], torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(reference(site, spec, x), site.forward(x), rtol=1e-10, atol=1e-12)
    assert context.measurements[site.path]["router_share"] == pytest.approx(1)


def test_options_reach_the_spec() -> None:
    graph, context = split(random_site())
    InsertRouter(top_k=3, gate="softmax", normalize=True).run(graph, context)
    spec = graph.specs[graph.sites[0].path]
    assert (spec.top_k, spec.gate_rule, spec.normalize) == (3, "softmax", True)


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (3, 1), (4, 1), (8, 2), (16, 4)])
def test_a_quarter_of_the_experts_is_the_default(experts: int, top_k: int) -> None:
    graph, context = split(random_site(), experts=experts)
    InsertRouter().run(graph, context)
    assert graph.specs[graph.sites[0].path].top_k == top_k


@settings(deadline=None, max_examples=40)
@given(st.floats(0.02, 1.5), st.sampled_from([1, 2, 4, 6, 12]), st.booleans())
def test_active_gives_the_largest_top_k_within_it(active: float, experts: int, gated: bool) -> None:
    site = random_site(gated=gated, activation="silu")
    graph, context = split(site, experts=experts)
    step = InsertRouter(active=active)
    least = (48 // experts) / 48 + experts * 12 / site.parameters
    if active < least - 1e-9:
        with pytest.raises(UsageError, match=r"insert-router\.active is .* but in layers\.0\.mlp one expert"):
            step.run(graph, context)
        return
    step.run(graph, context)
    spec = graph.specs[site.path]
    assert spec.top_k is not None
    assert spec.active_fraction(site) <= active
    assert spec.top_k == experts or spec.active_fraction(site, spec.top_k + 1) > active


def test_the_error_says_the_smallest_active_fraction() -> None:
    site = random_site("net.mlp")
    graph, context = split(site)
    with pytest.raises(UsageError) as error:
        InsertRouter(active=0.1).run(graph, context)
    assert "in net.mlp one expert, the shared expert and the router take 0.2348 of the FFN's weights" in str(error.value)
    least = float(str(error.value).split("choose ")[1].split()[0])
    InsertRouter(active=least).run(graph, context)
    assert graph.specs["net.mlp"].top_k == 1


def test_a_new_router_takes_out_what_was_fitted_to_the_old_one() -> None:
    graph, context = split(random_site())
    path = graph.sites[0].path
    old = graph.specs[path]
    graph.specs[path] = MoESpec(
        old.experts, compensation=Compensation(torch.ones(6, 10)), selection_bias=torch.ones(6), threshold=None
    )
    assert InsertRouter(top_k=2).run(graph, context)
    spec = graph.specs[path]
    assert spec.compensation.idle is None
    assert spec.selection_bias is None


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_average_key_scores_are_mean_pre_activations(gated: bool, biases: bool) -> None:
    site = random_site(gated=gated, biases=biases, activation="silu")
    graph, _ = split(site)
    spec = graph.specs[site.path]
    router = AverageKey().route(site, spec, PassContext())
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    bias = site.gate_bias if gated else site.up_bias
    before = x @ site.keys().T + (0.0 if bias is None else bias.read())
    expected = torch.stack([before[:, e].mean(1) for e in spec.experts], dim=1)
    torch.testing.assert_close(router.scores(x), expected)
    assert router.config.bias == biases


def test_average_key_follows_new_weights() -> None:
    site = random_site()
    rows = torch.arange(48.0)[:, None].expand(48, 12)
    spec = MoESpec(tuple(torch.split(torch.arange(40), 20)), torch.arange(40, 48), weights={"up": rows})
    weight: Tensor = AverageKey().route(site, spec, PassContext()).tensors["weight"]
    assert weight[:, 0].tolist() == [17.5, 37.5]


def test_works_without_a_sample_where_the_strategy_does() -> None:
    graph, _ = split(random_site())
    context = PassContext()
    assert InsertRouter(top_k=2).run(graph, context)
    assert "router_share" not in context.measurements[graph.sites[0].path]
    assert dense_distance(graph.sites[0], graph.specs[graph.sites[0].path]) < 1e-5


def test_needs_follow_the_strategy() -> None:
    assert InsertRouter().needs == (Experts,)
    assert InsertRouter(by=NormRegression()).needs == (Experts, ActivationSample)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InsertRouter(top_k=2, active=0.5), "insert-router has top_k 2 and active 0.5: give one of them"),
        (lambda: InsertRouter(top_k=0), "insert-router.top_k is 0: choose 1 or more"),
        (lambda: InsertRouter(active=0.0), "insert-router.active is 0.0: choose a fraction above 0"),
        (lambda: InsertRouter(gate="two"), "insert-router.gate is 'two': choose one of one, softmax, sigmoid"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: InsertRouter(top_k=7).run(*split(random_site("a"))), "top_k is 7 but a has 6 experts: choose 1 to 6"),
        (lambda: NormRegression(width=-1), "norm-regression.width is -1: choose 0 (linear) or more"),
        (lambda: NormRegression(target="mass"), "norm-regression.target is 'mass': choose norm or neurons"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: NormRegression(activation="gelu"), "norm-regression.activation is 'gelu': choose tanh or relu"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: NormRegression(steps=0), "norm-regression.steps is 0: choose 1 or more"),
        (lambda: NormRegression(ridge=0.0), "norm-regression.ridge is 0.0: choose a number above 0"),
        (lambda: NormRegression(learning_rate=-1.0), "norm-regression.learning_rate is -1.0: choose a number above 0"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
