from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import Experts, NeuronGroups, NeuronImportance
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.experts.gradient_importance import GradientImportance
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.split_experts import SplitExperts
from moeify_passes.routers.text_centres import TextCentres
from passes.tiny import graph_of, random_site, sampled_context


def important(values: Tensor, neurons: int = 48) -> tuple[FeedForward, PassContext]:
    site = random_site(neurons=neurons)
    context = sampled_context(graph_of(site))
    centres = torch.arange(float(len(values) * 12)).view(-1, 12)
    context.put(site, NeuronImportance(values, centres, torch.ones(len(values), dtype=torch.int64)))
    return site, context


def drawn(groups: int, neurons: int = 48) -> Tensor:
    return torch.rand(groups, neurons, generator=torch.Generator().manual_seed(5))


def test_neurons_are_dealt_by_the_authors_greedy_rule() -> None:
    """Repeat: of the experts with room, the pair of expert and unused neuron with the largest value."""
    values, sizes = drawn(4), [14, 12, 12, 10]
    left, wanted = values.clone(), [set[int]() for _ in sizes]
    for _ in range(48):
        expert, neuron = divmod(int(left.argmax()), 48)
        wanted[expert].add(neuron)
        left[:, neuron] = -1
        if len(wanted[expert]) == sizes[expert]:
            left[expert] = -1
    site, context = important(values)
    found = GradientImportance().group(site, torch.arange(48), tuple(sizes), context)
    assert [set(group.tolist()) for group in found] == wanted


def test_with_overlap_every_expert_takes_its_best() -> None:
    values = drawn(4)
    values[:, :3] += 5  # everybody's
    values[:, 40:] = 0  # nobody's
    site, context = important(values)
    graph = graph_of(site)
    ClusterNeurons(4, by=GradientImportance(overlap=True)).run(graph, context)
    found = context.get(site, NeuronGroups)
    for row, group in zip(values, found.groups):
        assert set(group.tolist()) == set(row.topk(12).indices.tolist())
        assert {0, 1, 2} <= set(group.tolist())
    assert not set(range(40, 48)) & set(torch.cat(found.groups).tolist())
    SplitExperts().run(graph, context)
    assert context.get(site, Experts).partition is False


def by_counts(values: Tensor, size: int) -> set[int]:
    """Sharing-inter, written down plainly: counts of how many experts want a neuron, from all of them downwards."""
    experts, neurons = values.shape
    wanting = [0] * neurons
    for row in values:
        for neuron in row.argsort(descending=True)[: (neurons - size) // experts].tolist():
            wanting[neuron] += 1
    order = sorted(range(neurons), key=lambda n: (-wanting[n], -float(values[:, n].sum())))
    assert wanting[order[size - 1]] > 0
    return set(order[:size])


@pytest.mark.parametrize("size", [6, 12, 16])
def test_the_shared_expert_takes_what_most_experts_want(size: int) -> None:
    values = drawn(3)
    site, context = important(values)
    assert set(GradientImportance().share(site, size, context).tolist()) == by_counts(values, size)


def test_a_large_shared_expert_asks_again_for_what_is_left() -> None:
    """Parts of 2 neurons: no more than 8 are anybody's best at once, and 40 are to be shared."""
    site, context = important(drawn(4))
    shared = GradientImportance().share(site, 40, context)
    assert len(shared) == 40
    assert bool((shared.diff() > 0).all())


def test_shared_and_routed_together_are_all_neurons() -> None:
    site, context = important(drawn(3))
    ClusterNeurons(3, 1, by=GradientImportance()).run(graph_of(site), context)
    found = context.get(site, NeuronGroups)
    assert [len(found.shared), *map(len, found.groups)] == [12] * 4
    assert torch.cat((found.shared, *found.groups)).sort().values.tolist() == list(range(48))


def test_needs_importance_and_no_sample() -> None:
    assert ClusterNeurons(3, 1, by=GradientImportance()).needs[1:] == (NeuronImportance,)


def test_the_gate_starts_from_the_centres_of_the_text() -> None:
    site, context = important(drawn(4))
    graph = graph_of(site)
    steps: tuple[Any, ...] = (ClusterNeurons(4, by=GradientImportance()), SplitExperts(), InsertRouter(by=TextCentres()))
    for step in steps:
        step.run(graph, context)
    router = graph.specs[site.path].router
    assert router is not None
    assert torch.equal(router.tensors["weight"], torch.arange(48.0).view(4, 12))


def test_another_number_of_groups_is_refused() -> None:
    site, context = important(drawn(4))
    graph = graph_of(site)
    with pytest.raises(UsageError, match=r"cluster-neurons.experts is 3 but measure-importance.groups is 4: set both to the"):
        ClusterNeurons(3, by=GradientImportance()).run(graph, context)
    ClusterNeurons(3).run(graph, context)
    SplitExperts().run(graph, context)
    with pytest.raises(UsageError, match=r"has 3 experts but measure-importance.groups is 4: set both to the same number"):
        InsertRouter(by=TextCentres()).run(graph, context)
