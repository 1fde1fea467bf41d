from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.facts import Experts, NeuronGroups
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.split_experts import SplitExperts
from passes.rewriting import check_rewrite, dense_distance
from passes.tiny import SITES, graph_of, random_site


def grouped(*sizes: int, shared: int = 0) -> tuple[ModelGraph, PassContext]:
    """One site of every kind, its shuffled neurons in groups of those sizes."""
    graph, context = graph_of(*(make() for make in SITES.values())), PassContext()
    for site in graph.sites:
        order = torch.randperm(site.neurons, generator=torch.Generator().manual_seed(0))
        parts = torch.split(order, [shared, *sizes])
        context.put(site, NeuronGroups(tuple(parts[1:]), parts[0]))
    return graph, context


@pytest.mark.parametrize(
    ("caption", "sizes", "shared"), [("even", (12,) * 4, 0), ("uneven", (20, 10, 3), 15), ("single", (48,), 0)]
)
def test_splits(caption: str, sizes: tuple[int, ...], shared: int, request: pytest.FixtureRequest) -> None:
    graph, context = grouped(*sizes, shared=shared)
    check_rewrite(SplitExperts(), graph, context, f"split_experts_{caption}", request)
    for site in graph.sites:
        spec = graph.specs[site.path]
        assert all(bool((e.diff() > 0).all()) for e in (*spec.experts, spec.shared)), "neurons ascend"
        fact = context.get(site, Experts)
        assert (fact.sizes, fact.partition) == (sizes, True)
        assert context.measurements[site.path]["active_fraction"] == 1.0


def test_groups_that_overlap_are_no_partition() -> None:
    site, context = random_site(), PassContext()
    graph = graph_of(site)
    context.put(site, NeuronGroups((torch.arange(30), torch.arange(18, 48)), torch.empty(0, dtype=torch.int64)))
    assert SplitExperts().run(graph, context)
    assert not context.get(site, Experts).partition
    assert dense_distance(site, graph.specs[site.path]) > 1e-3
    assert context.measurements[site.path]["active_fraction"] == 60 / 48


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (torch.tensor([], dtype=torch.int64), "net.mlp: a group of neurons is empty; choose fewer experts"),
        (torch.tensor([3, 48]), "net.mlp: a group names neurons from 3 to 48; there are 48, counted from 0"),
        (torch.tensor([-1, 4]), "net.mlp: a group names neurons from -1 to 4; there are 48, counted from 0"),
    ],
    ids=["empty", "too large", "negative"],
)
def test_refuses_groups(group: Tensor, message: str) -> None:
    site, context = random_site("net.mlp"), PassContext()
    context.put(site, NeuronGroups((torch.arange(3), group), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(ConversionError) as error:
        SplitExperts().run(graph_of(site), context)
    assert str(error.value) == message


def test_refuses_to_run_without_groups() -> None:
    with pytest.raises(ConversionError, match="no pass has given NeuronGroups"):
        SplitExperts().run(graph_of(random_site()), PassContext())
