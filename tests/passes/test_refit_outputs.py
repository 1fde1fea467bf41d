from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, OutputGoals
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import Compensation, MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.held_site import held_site
from moeify_passes.rewrite.compensate import Compensate
from moeify_passes.rewrite.idle_means import relative_squared_error
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.output_fit import OutputFit
from moeify_passes.rewrite.refit_outputs import RefitOutputs
from moeify_passes.routers.held_out import held_out
from moeify_passes.token_weights import TokenWeights
from passes.rewriting import reference
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context

TERM = Compensation(low_rank_in=torch.eye(12)[:3], low_rank_out=torch.zeros(3, 10))


def routed(*sites: FeedForward, tokens: int = 3000, top_k: int = 3) -> tuple[ModelGraph, PassContext]:
    graph = graph_of(*sites)
    for site in sites:
        graph.specs[site.path] = MoESpec(tuple(torch.split(torch.arange(8, site.neurons), 5)), torch.arange(8))
    context = sampled_context(graph, correlated_inputs(tokens))
    InsertRouter(top_k=top_k).run(graph, context)
    return graph, context


def kinds(site: FeedForward) -> dict[str, MoESpec]:
    """Layers of every kind that can be fitted."""
    graph, context = routed(site)
    plain = graph.specs[site.path]
    Compensate().run(graph, context)
    static = MoESpec((torch.arange(0, site.neurons, 2),))
    softmax = replace(plain, gate_rule="softmax", normalize=True)
    return {"routed": plain, "idle": graph.specs[site.path], "static": static, "gates": softmax}


@pytest.mark.parametrize("kind", ["routed", "idle", "static", "gates"])
@pytest.mark.parametrize("caption", SITES)
def test_the_error_on_tokens_never_seen_falls(caption: str, kind: str) -> None:
    site = SITES[caption]()
    graph, context = routed(site)
    before = graph.specs[site.path] = kinds(site)[kind]
    assert RefitOutputs().run(graph, context)
    after, figures, x = graph.specs[site.path], context.measurements[site.path], correlated_inputs(401)
    assert figures["output_error"] < figures["output_error_before"]
    old, new = (relative_squared_error(site, spec, expert_rows(site, spec), x) for spec in (before, after))
    assert new < 0.97 * old
    assert after.active_fraction(site) == before.active_fraction(site) == figures["active_fraction"]
    assert (after.router, after.compensation.idle) == (before.router, before.compensation.idle)
    assert after.weights["down"].dtype == site.down.read().dtype
    assert RefitOutputs().foresee(site, before.config(site)) == after.config(site)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["routed", "idle", "static", "gates"])
def test_the_weights_are_those_of_the_normal_equations(kind: str) -> None:
    """In float64, from outputs of the reference alone: the layer is linear in what is fitted."""
    site = random_site(gated=True, biases=True, activation="silu")
    spec, x = replace(kinds(site)[kind], compensation=TERM), correlated_inputs(700)
    rows = expert_rows(site, spec)
    weights = TokenWeights.of(held_site(site), x)
    fit = OutputFit(site, spec, rows, weights)
    found = fit.candidates(x)(0.5).double()
    dense = site.forward(x.double())
    root = weights.weights((dense - site.output_bias.read()).float()).double().sqrt()[:, None]  # type: ignore[union-attr]  # it has one
    features = torch.stack([_output(site, spec, fit, i, x) for i in range(len(fit.start))], 1) * root
    missing = (dense - reference(site, spec, x.double())) * root
    gram = features.T @ features
    penalty = 0.5 * gram.diagonal().clone()
    penalty[-1] *= 1e-6 / 0.5
    change = torch.linalg.solve(gram + torch.diag(penalty), features.T @ missing)
    torch.testing.assert_close(found, fit.start.double() + change, atol=2e-4, rtol=1e-3)


def _output(site: FeedForward, spec: MoESpec, fit: OutputFit, i: int, x: torch.Tensor) -> torch.Tensor:
    """Feature i, [tokens]: what the layer says where only weight i is there, and it is 1 in the first output."""
    single = torch.zeros_like(fit.start)
    single[i, 0] = 1.0
    rows = spec.offsets[-1]
    term = replace(spec.compensation, idle=None, low_rank_out=single[rows:-1])
    alone = replace(spec, weights={"down": single[:rows], "output_bias": single[-1]}, compensation=term)
    return reference(site, alone, x.double())[:, 0]


def test_a_low_rank_term_is_fitted_along() -> None:
    site = random_site()
    graph, context = routed(site)
    spec = graph.specs[site.path] = replace(graph.specs[site.path], compensation=TERM)
    RefitOutputs().run(graph, context)
    found = graph.specs[site.path].compensation
    assert torch.equal(found.low_rank_in, TERM.low_rank_in)  # type: ignore[arg-type]  # it has one
    assert float(found.low_rank_out.abs().max()) > 0  # type: ignore[union-attr]  # it has one
    assert graph.specs[site.path].active_fraction(site) == spec.active_fraction(site)


def test_nothing_is_lost_where_nothing_is_missing() -> None:
    """All experts are on: the weights so far are exact, and no fit can better them."""
    site = random_site(biases=True)
    graph, context = routed(site, top_k=8)
    RefitOutputs().run(graph, context)
    spec, x = graph.specs[site.path], correlated_inputs(50, seed=4).double()
    torch.testing.assert_close(reference(site, spec, x), site.forward(x), atol=1e-5, rtol=1e-5)


def test_the_strength_is_the_best_on_held_out_tokens_and_fewer_tokens_want_more_of_it() -> None:
    taken = []
    for tokens in (60, 3000):
        graph, context = routed(random_site(), tokens=tokens)
        RefitOutputs(shrink=[0.01, 0.1, 1.0, 10.0, 100.0]).run(graph, context)
        taken.append(context.measurements["layers.0.mlp"]["refit_shrink"])
    assert taken[0] > taken[1]
    graph, context = routed(random_site())
    spec, site = graph.specs["layers.0.mlp"], graph.sites[0]
    inputs, held = held_out(site, context.get(site, ActivationSample).inputs, context.generator("held-out", site))
    fit = OutputFit(site, spec, expert_rows(site, spec), TokenWeights.of(held_site(site), inputs))
    errors = {s: fit.errors(held, [fit.candidates(inputs)(s)])[0] for s in (0.01, 0.1, 1.0, 10.0, 100.0)}
    RefitOutputs(shrink=list(errors)).run(graph, context)
    assert context.measurements["layers.0.mlp"]["output_error"] == pytest.approx(min(errors.values()))


def test_a_row_that_is_never_on_stays() -> None:
    site = random_site()
    graph, context = routed(site)
    x = correlated_inputs(500)
    context.put(site, ActivationSample(torch.zeros_like(x), 500))
    RefitOutputs().run(graph, context)
    down = graph.specs[site.path].weights.get("down")
    assert down is None or torch.equal(down, site.down.read()[graph.specs[site.path].order])


def test_errors_before_the_layer_are_taken_back_by_the_part_that_is_asked() -> None:
    """Goals that lie off what the dense layer says by something that the features tell."""
    site = random_site(biases=True)
    outcomes = list[float]()
    for stream in (0.0, 0.5, 1.0):
        graph, context = routed(site)
        x = context.get(site, ActivationSample).inputs
        off = 0.3 * torch.randn(site.neurons, site.output, generator=torch.Generator().manual_seed(1))
        goals = site.forward(x) + 2.0 + site.neuron_outputs(x) @ off
        context.put(site, OutputGoals(goals))
        RefitOutputs(stream=stream).run(graph, context)
        said = reference(site, graph.specs[site.path], x.double())
        outcomes.append(float((said - goals).square().sum() / goals.square().sum()))
        assert context.measurements[site.path]["output_error"] < context.measurements[site.path]["output_error_before"]
    assert outcomes[2] < 0.5 * outcomes[1] < 0.25 * outcomes[0]


def test_goals_of_the_dense_layer_itself_change_nothing() -> None:
    site = random_site(gated=True, biases=True, activation="silu")
    found = []
    for stream in (0.0, 1.0):
        graph, context = routed(site)
        context.put(site, OutputGoals(site.forward(context.get(site, ActivationSample).inputs)))
        RefitOutputs(stream=stream).run(graph, context)
        found.append(graph.specs[site.path].weights["down"])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_without_goals_nothing_is_taken_back() -> None:
    site = random_site()
    found = []
    for stream in (0.0, 1.0):
        graph, context = routed(site)
        RefitOutputs(stream=stream).run(graph, context)
        found.append(graph.specs[site.path].weights["down"])
    assert torch.equal(*found)


def test_refuses_to_take_back_more_than_was_lost() -> None:
    with pytest.raises(UsageError, match=r"refit-outputs\.stream is 1\.5: choose a part from 0 to 1"):
        RefitOutputs(stream=1.5)


@pytest.mark.parametrize("shrink", [[], [0.0], [-1.0, 1.0], ["a"], [float("inf")]])
def test_refuses(shrink: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"refit-outputs\.shrink is .*: give numbers above 0"):
        RefitOutputs(shrink=shrink)
