from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Experts, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.rewrite.compensate import Compensate
from moeify_passes.rewrite.idle_means import idle_means, relative_squared_error
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.routers.held_out import held_out
from passes.rewriting import check_rewrite, reference
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context


def routed(*sites: FeedForward, top_k: int = 2, tokens: int = 1500) -> tuple[ModelGraph, PassContext]:
    graph = graph_of(*sites)
    for site in sites:
        graph.specs[site.path] = MoESpec(tuple(torch.split(torch.arange(site.neurons), site.neurons // 6)))
    context = sampled_context(graph, correlated_inputs(tokens))
    InsertRouter(top_k=top_k).run(graph, context)
    return graph, context


def test_compensates(request: pytest.FixtureRequest) -> None:
    graph, context = routed(*(make() for make in SITES.values()))
    before = {site.path: graph.specs[site.path] for site in graph.sites}
    check_rewrite(Compensate(), graph, context, "compensate", request)
    for site in graph.sites:
        spec, figures = graph.specs[site.path], context.measurements[site.path]
        assert figures["squared_error"] < figures["squared_error_uncompensated"]
        assert figures["active_fraction"] == before[site.path].active_fraction(site)
        assert spec.router is before[site.path].router


@pytest.mark.parametrize("caption", SITES)
def test_the_errors_are_those_of_the_reference(caption: str) -> None:
    site = SITES[caption]()
    graph, context = routed(site)
    Compensate().run(graph, context)
    spec, x = graph.specs[site.path], correlated_inputs(60, seed=9)
    bias = 0.0 if site.output_bias is None else site.output_bias.read().double()
    dense = site.forward(x.double())
    for judged in (spec, replace(spec, gate_rule="softmax", normalize=True)):
        expected = (dense - reference(site, judged, x.double())).square().sum() / (dense - bias).square().sum()
        found = relative_squared_error(site, judged, expert_rows(site, judged), x)
        assert found == pytest.approx(float(expected), rel=1e-2 if "bfloat16" in caption else 1e-4)


def test_a_low_rank_term_counts_too() -> None:
    site = random_site()
    graph, _ = routed(site)
    generator = torch.Generator().manual_seed(0)
    term = Compensation(
        low_rank_in=torch.randn(3, 12, generator=generator), low_rank_out=torch.randn(3, 10, generator=generator)
    )
    spec, x = replace(graph.specs[site.path], compensation=term), correlated_inputs(60, seed=9)
    dense = site.forward(x.double())
    expected = (dense - reference(site, spec, x.double())).square().sum() / dense.square().sum()
    assert relative_squared_error(site, spec, expert_rows(site, spec), x) == pytest.approx(float(expected), rel=1e-4)


def test_idle_vectors_are_means_over_the_tokens_on_which_the_expert_is_idle() -> None:
    """Expert 0 is chosen where the first input is positive; expert 2 always; expert 1 otherwise."""
    site, x = random_site(), correlated_inputs(200)
    weight = torch.zeros(3, 12)
    weight[0, 0], weight[1, 0] = 1.0, -1.0
    router = Router(RouterConfig("linear", bias=True), {"weight": weight, "bias": torch.tensor([0.0, 0.0, 1e6])})
    spec = MoESpec(tuple(torch.split(torch.arange(48), 16)), router=router, top_k=2)
    found = idle_means(spec, expert_rows(site, spec), x)
    positive = x[:, 0] > 0
    for expert, idle in ((0, ~positive), (1, positive)):
        rows = torch.arange(16) + 16 * expert
        expected = (site.neuron_outputs(x, rows) @ site.down.read()[rows])[idle].mean(0)
        torch.testing.assert_close(found[expert], expected)
    assert found[2].tolist() == [0.0] * 10


def test_chunks_of_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    site, x = random_site(gated=True), correlated_inputs(50)
    graph, _ = routed(site)
    spec = graph.specs[site.path]
    rows = expert_rows(site, spec)
    whole = idle_means(spec, rows, x), relative_squared_error(site, spec, rows, x)
    monkeypatch.setattr("moeify_passes.held_site.token_chunks.__defaults__", (4 * 48 * 7,))
    torch.testing.assert_close(idle_means(spec, rows, x), whole[0])
    assert relative_squared_error(site, spec, rows, x) == pytest.approx(whole[1])


def test_all_experts_on_leave_nothing_to_compensate() -> None:
    site = random_site()
    graph, context = routed(site, top_k=6)
    Compensate().run(graph, context)
    idle = graph.specs[site.path].compensation.idle
    assert idle is not None
    assert not bool(idle.any())
    assert context.measurements[site.path]["squared_error"] < 1e-10


def test_a_low_rank_term_that_is_there_stays() -> None:
    site = random_site()
    graph, context = routed(site)
    term = Compensation(low_rank_in=torch.zeros(1, 12), low_rank_out=torch.zeros(1, 10))
    graph.specs[site.path] = replace(graph.specs[site.path], compensation=term)
    Compensate().run(graph, context)
    assert graph.specs[site.path].compensation.low_rank_in is term.low_rank_in


def test_refuses_a_layer_without_router_and_an_unknown_kind() -> None:
    graph = graph_of(random_site())
    graph.specs[graph.sites[0].path] = MoESpec((torch.arange(48),))
    with pytest.raises(ConversionError, match="a layer without a router chooses no experts: insert a router first"):
        Compensate().run(graph, sampled_context(graph))
    with pytest.raises(UsageError, match=r"compensate\.kind is 'rank': choose idle-mean or mean-bias"):
        Compensate(kind="rank")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("caption", SITES)
@pytest.mark.parametrize("router", [False, True])
def test_a_mean_bias_makes_the_mean_output_that_of_the_dense_network(caption: str, router: bool) -> None:
    """With a router, or without one where half of the neurons are in no expert."""
    site = SITES[caption]()
    graph, context = routed(site)
    if not router:
        graph.specs[site.path] = MoESpec((torch.arange(0, site.neurons, 2),))
    step, before = Compensate(kind="mean-bias"), graph.specs[site.path]
    assert step.run(graph, context)
    assert not step.run(graph, context), "a second run finds the same"
    spec, figures = graph.specs[site.path], context.measurements[site.path]
    fit, _ = held_out(site, correlated_inputs(1500), context.generator("held-out", site))
    missing = (site.forward(fit.double()) - reference(site, spec, fit.double())).mean(0)
    assert float(missing.abs().max()) < (2e-2 if "bfloat16" in caption else 1e-5)
    assert figures["squared_error"] < figures["squared_error_uncompensated"]
    assert spec.active_fraction(site) == before.active_fraction(site)
    assert step.foresee(site, before.config(site)) == spec.config(site)


def test_needs_follow_the_kind() -> None:
    assert Compensate().needs == (Routing, ActivationSample)
    assert Compensate(kind="mean-bias").needs == (Experts, ActivationSample)
