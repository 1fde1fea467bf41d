from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, CoActivation, FeedForwards, NeuronGroups, NeuronImportance
from moeify.ir.feed_forward import FeedForward
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.measure_co_activation import MeasureCoActivation
from moeify_passes.experts.activation_markers import ActivationMarkers
from moeify_passes.experts.balanced_k_means import BalancedKMeans
from moeify_passes.experts.co_activation_graph import CoActivationGraph
from moeify_passes.experts.gradient_importance import GradientImportance
from moeify_passes.experts.markers import marker_rates
from moeify_passes.experts.predicted_gain import PredictedGain
from moeify_passes.experts.random import Random
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context

BY: dict[str, Any] = {
    "random": Random(),
    "k-means": BalancedKMeans(),
    "markers": ActivationMarkers(),
    "co-activation, spectral": CoActivationGraph("spectral"),
    "co-activation, metis": CoActivationGraph("metis"),
    "gradient": GradientImportance(),
    "predicted gain": PredictedGain(tokens=200, iterations=5),
}
STRATEGIES = pytest.mark.parametrize("by", BY.values(), ids=BY)


def groups_of(step: ClusterNeurons, site: FeedForward, seed: int = 0) -> NeuronGroups:
    graph = graph_of(site)
    context = sampled_context(graph, seed=seed)
    if CoActivation in step.needs:
        MeasureCoActivation(neighbours=8, tokens=200).run(graph, context)
    if NeuronImportance in step.needs:
        assert isinstance(step.experts, int)
        generator = torch.Generator().manual_seed(1)
        values = torch.rand(step.experts, site.neurons, generator=generator)
        context.put(site, NeuronImportance(values, torch.zeros(step.experts, site.hidden), torch.ones(step.experts)))
    assert not step.run(graph, context)
    return context.get(site, NeuronGroups)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(BY)), st.integers(1, 12), st.integers(0, 4), st.integers(20, 60), st.integers(0, 99))
def test_groups_partition_the_neurons_in_the_sizes_asked(by: str, experts: int, shared: int, neurons: int, seed: int) -> None:
    found = groups_of(ClusterNeurons(experts, shared, unequal=True, by=BY[by]), random_site(neurons=neurons), seed)
    assert torch.cat((found.shared, *found.groups)).sort().values.tolist() == list(range(neurons))
    sizes = [len(group) for group in found.groups]
    assert len(sizes) == experts
    assert max(sizes) - min(sizes) <= 1
    assert abs(len(found.shared) - neurons * shared / (experts + shared)) <= 0.5
    if neurons % (experts + shared) == 0:
        assert {*sizes, *([len(found.shared) // shared] if shared else [])} == {neurons // (experts + shared)}


@STRATEGIES
@pytest.mark.parametrize("caption", SITES)
def test_a_seed_fixes_the_result_and_the_global_generator_has_no_say(by: Any, caption: str) -> None:
    step = ClusterNeurons(6, by=by)
    torch.manual_seed(1)
    first = groups_of(step, SITES[caption](), seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = groups_of(step, SITES[caption](), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.groups, second.groups))


def test_another_seed_gives_other_random_experts() -> None:
    a, b = (groups_of(ClusterNeurons(6, by=Random()), random_site(), seed) for seed in (0, 1))
    assert not torch.equal(torch.cat(a.groups), torch.cat(b.groups))


@pytest.mark.parametrize("by", [by for kind, by in BY.items() if kind != "gradient"], ids=lambda by: by.kind)
def test_shared_neurons_are_those_marked_most_often(by: Any) -> None:
    site = random_site(gated=True)
    shared = groups_of(ClusterNeurons(4, 2, by=by), site).shared
    rates = marker_rates(site, correlated_inputs(600), 0.1, weighted=True)
    rest = torch.ones(48, dtype=torch.bool).index_fill_(0, shared, False)
    assert len(shared) == 16
    assert float(rates[shared].min()) >= float(rates[rest].max())


@pytest.mark.parametrize(
    ("neurons", "size", "options", "shared", "sizes"),
    [
        (48, "16 neurons", {}, 0, {16}),
        (48, "neurons", {}, 0, {1}),
        (50, "16 neurons", {}, 0, {16, 17}),
        (50, "16 neurons", {"shared": 0.3}, 18, {16}),
        (48, "8 neurons", {"shared_experts": 2}, 16, {8}),
        (10, "16 neurons", {}, 0, {10}),
    ],
)
def test_experts_of_a_size(neurons: int, size: str, options: Any, shared: int, sizes: set[int]) -> None:
    step, site = ClusterNeurons(size, **options, by=Random()), random_site(neurons=neurons)
    found = groups_of(step, site)
    assert len(found.shared) == shared
    assert {len(group) for group in found.groups} == sizes
    planned = step.foresee(site, None)
    assert (planned.experts, planned.shared) == (len(found.groups), shared)


def test_needs_a_sample_only_where_activations_decide() -> None:
    assert ClusterNeurons().needs == (FeedForwards,)
    assert ClusterNeurons(by=Random()).needs == (FeedForwards,)
    assert ClusterNeurons(by=ActivationMarkers()).needs == (FeedForwards, ActivationSample)
    assert ClusterNeurons(shared_experts=1).needs == (FeedForwards, ActivationSample)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ClusterNeurons(experts="0 neurons"),
            "cluster-neurons.experts is '0 neurons': choose a number",
        ),
        (lambda: PredictedGain(rank=0), "predicted-gain.rank is 0: choose a count from 1"),
        (lambda: PredictedGain(tokens=0), "predicted-gain.tokens is 0: choose a number above 0"),
        (lambda: ClusterNeurons(experts=0), "cluster-neurons.experts is 0: choose 1 or more"),
        (lambda: ClusterNeurons(shared_experts=-1), "cluster-neurons.shared_experts is -1: choose 0 or more"),
        (lambda: BalancedKMeans(iterations=0), "balanced-k-means.iterations is 0: choose 1 or more"),
        (lambda: BalancedKMeans(rows="out"), "balanced-k-means.rows is 'out': choose key, up or down"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ActivationMarkers(top=0), "activation-markers.top is 0: choose a count from 1"),
        (lambda: ActivationMarkers(top=1.5), "activation-markers.top is 1.5: choose a count from 1"),
        (lambda: ActivationMarkers(iterations=0), "activation-markers.iterations is 0: choose 1 or more"),
    ],
)
def test_refuses_options(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("caption", "neurons", "experts", "shared", "message"),
    [
        (
            "two choices",
            1536,
            10,
            0,
            "experts is 10: the 1536 neurons of net.mlp do not divide by 10; choose 8 or 12 experts, or",
        ),
        ("shared count", 48, 5, 2, "experts is 5 and 2 shared: the 48 neurons of net.mlp do not divide by 7; choose 4 or 6 "),
        ("only more", 47, 2, 1, "experts is 2 and 1 shared: the 47 neurons of net.mlp do not divide by 3; choose 46 experts"),
        ("too many", 48, 40, 10, "experts is 40 (and 10 shared) but net.mlp has only 48 neurons: choose fewer"),
    ],
)
def test_refuses_sizes(caption: str, neurons: int, experts: int, shared: int, message: str) -> None:
    with pytest.raises(UsageError) as error:
        groups_of(ClusterNeurons(experts, shared, by=Random()), random_site("net.mlp", neurons=neurons))
    assert message in str(error.value), caption
