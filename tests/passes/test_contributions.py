from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, FeedForwards, NeuronGroups, NeuronStatistics
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.experts.contributions import contributions
from moeify_passes.experts.random import Random
from passes.tiny import SITES, correlated_inputs, graph_of, random_site


def measured(site: Any) -> tuple[Any, PassContext]:
    """A graph and a context with the statistics of a sample."""
    x, context, graph = correlated_inputs(500), PassContext(), graph_of(site)
    h = site.neuron_outputs(x.to(site.up.read().dtype)).float()
    context.put(None, FeedForwards(1, 0))
    context.put(site, NeuronStatistics(len(x), h.mean(0), h.square().mean(0)))
    return graph, context


@pytest.mark.parametrize("caption", SITES)
def test_a_contribution_is_the_mean_squared_norm_of_what_a_neuron_adds(caption: str) -> None:
    site = SITES[caption]()
    _, context = measured(site)
    h = site.neuron_outputs(correlated_inputs(500).to(site.up.read().dtype)).double()
    added = h[:, :, None] * site.down.read().double()
    expected = added.square().sum(2).mean(0)
    torch.testing.assert_close(contributions(site, context.get(site, NeuronStatistics)), expected, rtol=1e-4, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 0.99), st.integers(1, 24), st.booleans())
def test_the_shared_expert_takes_its_part_of_the_neurons(shared: float, experts: int, unequal: bool) -> None:
    site = random_site()
    graph, context = measured(site)
    step = ClusterNeurons(experts, shared=shared, shared_by="contribution", unequal=unequal, by=Random())
    if unequal and site.neurons - round(site.neurons * shared) < experts:
        with pytest.raises(UsageError, match=r"choose fewer experts or a smaller cluster-neurons\.shared"):
            step.run(graph, context)
        return
    step.run(graph, context)
    found = context.get(site, NeuronGroups)
    sizes = [len(group) for group in found.groups]
    assert len(sizes) == experts
    assert torch.cat((found.shared, *found.groups)).sort().values.tolist() == list(range(48))
    assert max(sizes) - min(sizes) <= int(unequal)
    if unequal:
        assert len(found.shared) == round(48 * shared)
    elif 1 < sizes[0] < 48 // experts:
        assert abs(len(found.shared) - 48 * shared) <= experts / 2 + 0.5
    strongest = contributions(site, context.get(site, NeuronStatistics)).topk(len(found.shared)).indices
    assert set(found.shared.tolist()) == set(strongest.tolist())
    config = step.foresee(site, None)
    assert (config.shared, list(config.sizes)) == (len(found.shared), sizes)


def test_needs_follow_the_choice() -> None:
    assert ClusterNeurons(shared=0.5, shared_by="contribution", by=Random()).needs == (FeedForwards, NeuronStatistics)
    assert ClusterNeurons(shared=0.5, by=Random()).needs == (FeedForwards, ActivationSample)
    assert ClusterNeurons(shared=0.0, shared_by="contribution", by=Random()).needs == (FeedForwards,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClusterNeurons(shared=1.0), "cluster-neurons.shared is 1.0: choose a part of the neurons from 0 to below 1"),
        (lambda: ClusterNeurons(shared=0.5, shared_experts=1), "has shared 0.5 and shared_experts 1: give one of them"),
        (lambda: ClusterNeurons(shared_by="size"), "cluster-neurons.shared_by is 'size': choose rate or contribution"),  # type: ignore[arg-type]  # wrong on purpose
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
