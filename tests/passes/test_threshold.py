from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts, Routing
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.choice import route_tokens
from moeify_passes.routers.norm_regression import NormRegression
from moeify_passes.routers.threshold import mean_on
from passes.rewriting import reference
from passes.tiny import correlated_inputs, graph_of, random_site, sampled_context

SIZES = (12, 4, 8, 8, 6, 10)


def split(sizes: tuple[int, ...] = SIZES, shared: int = 0) -> tuple[ModelGraph, PassContext]:
    """A site in experts of those sizes, after a shared one, with a sample of inputs."""
    site = random_site(neurons=sum(sizes) + shared)
    parts = torch.split(torch.arange(site.neurons), [shared, *sizes])
    graph = graph_of(site)
    graph.specs[site.path] = MoESpec(tuple(parts[1:]), parts[0])
    return graph, sampled_context(graph)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.4, 1.3), st.sampled_from([0, 5]), st.booleans(), st.sampled_from(["one", "softmax", "sigmoid"]))
def test_the_mean_active_fraction_on_the_sample_is_the_budget(active: float, shared: int, fitted: bool, gate: Any) -> None:
    graph, context = split(shared=shared)
    site = graph.sites[0]
    InsertRouter(active=active, choice="threshold", gate=gate, by=NormRegression() if fitted else AverageKey()).run(
        graph, context
    )
    spec, inputs = graph.specs[site.path], context.get(site, ActivationSample).inputs
    used = torch.tensor([float(len(e)) for e in spec.experts])
    rows = (route_tokens(spec, inputs).chosen.float() @ used).mean() + shared
    router = sum(t.numel() for name, t in (spec.router.tensors if spec.router else {}).items() if name == "weight")
    measured = float(rows) / site.neurons + router / site.parameters
    assert context.measurements[site.path]["active_fraction"] == pytest.approx(measured)
    everything = 1 + router / site.parameters
    step = max(SIZES) / len(inputs) / site.neurons  # one more expert on one more token
    assert measured <= active + 1e-9
    assert measured >= min(active, everything) - step - 1e-9


@pytest.mark.parametrize("most", [1, 3, 6, 9])
def test_most_bounds_every_token_and_the_budget_is_spent_on_others(most: int) -> None:
    graph, context = split((8,) * 6)
    site = graph.sites[0]
    InsertRouter(top_k=2, choice="threshold", most=most).run(graph, context)
    spec, inputs = graph.specs[site.path], context.get(site, ActivationSample).inputs
    counts = route_tokens(spec, inputs).chosen.sum(1)
    assert spec.top_k == min(most, 6)
    assert int(counts.max()) <= most
    assert float(counts.double().mean()) == pytest.approx(min(most, 2), abs=1e-2)


def test_a_reserve_is_kept_back() -> None:
    graph, context = split((8,) * 6)
    site = graph.sites[0]
    InsertRouter(top_k=3, choice="threshold", reserve=0.2).run(graph, context)
    assert mean_on(graph.specs[site.path], context.get(site, ActivationSample).inputs) == pytest.approx(3 * 0.8, abs=1e-2)


def test_each_source_of_calibration_data_keeps_the_budget() -> None:
    graph, context = split((8,) * 6)
    site = graph.sites[0]
    inputs = context.get(site, ActivationSample).inputs
    sources = torch.arange(len(inputs)) % 3
    scaled = inputs * torch.tensor([0.5, 2.0, 1.0])[sources, None]  # norm regression sees more to gain in louder tokens
    context.put(site, ActivationSample(scaled, len(inputs), sources))
    InsertRouter(top_k=3, choice="threshold", by=NormRegression()).run(graph, context)
    spec = graph.specs[site.path]
    used = [mean_on(spec, scaled[sources == source]) for source in range(3)]
    assert used[1] == pytest.approx(3, abs=3e-2)
    assert max(used) == used[1] <= 3
    context.put(site, ActivationSample(scaled, len(inputs)))
    InsertRouter(top_k=3, choice="threshold", by=NormRegression()).run(graph, context)
    assert mean_on(graph.specs[site.path], scaled[sources == 1]) > 3.1, "as one source the loud third goes beyond"


def test_equal_values_are_not_torn_apart() -> None:
    """Every token has the same scores: a threshold can turn an expert on for all tokens or for none."""
    graph, context = split((8,) * 6)
    site = graph.sites[0]
    constant = Router(RouterConfig("linear", bias=True), {"weight": torch.zeros(6, 12), "bias": torch.arange(6.0)})

    class Constant(AverageKey):
        def shape(self, config: Any) -> RouterConfig:
            return constant.config

        def route(self, *_: Any) -> Router:
            return constant

    InsertRouter(active=0.5, choice="threshold", by=Constant()).run(graph, context)
    spec = graph.specs[site.path]
    inputs = context.get(site, ActivationSample).inputs
    room = (0.5 - 6 * 12 / site.parameters) * 6
    assert mean_on(spec, inputs) == int(room)


def test_the_least_budget_is_one_expert() -> None:
    graph, context = split((8,) * 6)
    site = graph.sites[0]
    least = graph.specs[site.path].active_fraction(site, 1) + 6 * 12 / site.parameters + 1e-6
    InsertRouter(active=least, choice="threshold").run(graph, context)
    assert mean_on(graph.specs[site.path], context.get(site, ActivationSample).inputs) == pytest.approx(1, abs=5e-3)


def test_the_layer_computes_what_the_reference_computes_and_reports_the_router() -> None:
    graph, context = split()
    site = graph.sites[0]
    assert InsertRouter(top_k=3, choice="threshold", by=NormRegression()).run(graph, context)
    assert not InsertRouter(top_k=3, choice="threshold", by=NormRegression()).run(graph, context)
    spec, x = graph.specs[site.path], correlated_inputs(40, seed=9).double()
    on = route_tokens(spec, x).chosen
    expected = sum(
        on[:, e, None] * (site.neuron_outputs(x, rows) @ site.down.read()[rows].double()) for e, rows in enumerate(spec.experts)
    )
    torch.testing.assert_close(reference(site, spec, x), expected)
    figures = context.measurements[site.path]
    assert (figures["top_k"], figures["threshold"]) == (None, spec.threshold)
    assert 0 < figures["random_share"] < figures["router_share"] <= 1
    assert context.get(site, Routing).threshold == spec.threshold


def test_a_threshold_needs_a_sample() -> None:
    assert InsertRouter(choice="threshold").needs == (Experts, ActivationSample)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InsertRouter(choice="top-p"), "insert-router.choice is 'top-p': choose top-k or threshold"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: InsertRouter(most=2), "insert-router.most is 2: choose 1 or more, with choice = threshold"),
        (lambda: InsertRouter(most=0, choice="threshold"), "insert-router.most is 0: choose 1 or more"),
        (lambda: InsertRouter(reserve=1.0, choice="threshold"), "insert-router.reserve is 1.0: choose a fraction"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
