from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeify.errors import UsageError
from moeify.ir.facts import Budget, Experts, NeuronStatistics
from moeify.ir.model_graph import ModelGraph
from moeify.ir.text import graph_text
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.keep_neurons import KeepNeurons
from passes.rewriting import compare_golden, reference
from passes.tiny import SITES, correlated_inputs, graph_of, random_site


def measured(*sites: Any) -> tuple[ModelGraph, PassContext]:
    graph, context, x = graph_of(*sites), PassContext(), correlated_inputs(500)
    for site in sites:
        h = site.neuron_outputs(x.to(site.up.read().dtype)).float()
        context.put(site, NeuronStatistics(len(x), h.mean(0), h.square().mean(0)))
    return graph, context


def test_keeps(request: pytest.FixtureRequest) -> None:
    graph, context = measured(*(make() for make in SITES.values()))
    step = KeepNeurons(active=0.3)
    assert step.run(graph, context)
    compare_golden(graph_text(graph), "keep_neurons", request)
    assert not step.run(graph, context)
    for site in graph.sites:
        spec = graph.specs[site.path]
        assert context.measurements[site.path]["active_fraction"] == spec.active_fraction(site) <= 0.3
        assert context.get(site, Experts).sizes == (14,)
        x = correlated_inputs(30, seed=4).double()
        off = torch.ones(48).index_fill_(0, spec.experts[0], 0).nonzero().flatten()
        missing = site.neuron_outputs(x, off) @ site.down.read()[off].double()
        torch.testing.assert_close(reference(site, spec, x), site.forward(x) - missing)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 1), st.sampled_from(["contribution", "fluctuation"]))
def test_no_other_choice_of_as_many_neurons_adds_more(active: float, by: Literal["contribution", "fluctuation"]) -> None:
    site = random_site(gated=True, activation="silu")
    graph, context = measured(site)
    step = KeepNeurons(active, by)
    step.run(graph, context)
    kept = graph.specs[site.path].experts[0]
    assert len(kept) == max(1, int(active * 48 + 1e-9))
    h = site.neuron_outputs(correlated_inputs(500)).double()
    h = h if by == "contribution" else h - h.mean(0)
    gains = (h[:, :, None] * site.down.read().double()).square().sum(2).mean(0)
    assert float(gains[kept].sum()) == pytest.approx(float(gains.topk(len(kept)).values.sum()), rel=1e-6)
    assert context.measurements[site.path]["kept_share"] == pytest.approx(float(gains[kept].sum() / gains.sum()), rel=1e-4)
    assert step.foresee(site, None) == graph.specs[site.path].config(site)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepNeurons(active=0), "keep-neurons.active is 0: choose a part of the neurons above 0 and up to 1"),
        (lambda: KeepNeurons(by="norm"), "keep-neurons.by is 'norm': choose contribution or fluctuation"),  # type: ignore[arg-type]  # wrong on purpose
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


def test_a_budget_of_the_layer_counts_instead() -> None:
    graph, context = measured(random_site("a"), random_site("b"))
    context.put(graph.sites[0], Budget(0.25))
    KeepNeurons(active=0.5).run(graph, context)
    assert [len(graph.specs[path].experts[0]) for path in ("a", "b")] == [12, 24]
