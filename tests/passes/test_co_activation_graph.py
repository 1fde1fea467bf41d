from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import CoActivation
from moeify_passes.analyse.measure_co_activation import MeasureCoActivation
from moeify_passes.experts import co_activation_graph
from moeify_passes.experts.co_activation_graph import CoActivationGraph
from moeify_passes.experts.graph_partition import GraphPartition, induced
from passes.test_balanced_k_means import agreement
from passes.tiny import graph_of, planted_site, sampled_context


def graph_from(matrix: Tensor) -> CoActivation:
    """The graph of a symmetric matrix [nodes, nodes]; its diagonal is left out."""
    edges = (matrix.fill_diagonal_(0) > 0).nonzero()
    counts = torch.bincount(edges[:, 0], minlength=len(matrix))
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    return CoActivation(offsets, edges[:, 1], matrix[edges[:, 0], edges[:, 1]])


def random_graph(nodes: int, seed: int) -> tuple[Tensor, CoActivation]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(nodes, nodes, generator=generator) * (torch.rand(nodes, nodes, generator=generator) < 0.4)
    matrix = matrix + matrix.T
    return matrix.fill_diagonal_(0), graph_from(matrix)


def cut(matrix: Tensor, labels: Tensor) -> float:
    return float((matrix * (labels[:, None] != labels)).sum()) / 2


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5), st.integers(8, 30), st.integers(0, 999))
def test_moves_keep_the_books_and_never_cut_more(parts: int, nodes: int, seed: int) -> None:
    matrix, graph = random_graph(nodes, seed)
    labels = torch.randint(parts, (nodes,), generator=torch.Generator().manual_seed(seed))
    sizes = tuple(nodes // parts + (part < nodes % parts) for part in range(parts))
    partition = GraphPartition(graph, labels, sizes)
    assert partition.cut == pytest.approx(cut(matrix, labels), abs=1e-4)
    partition.balance()
    assert torch.bincount(torch.from_numpy(partition.labels), minlength=parts).tolist() == list(sizes)
    before = partition.cut
    partition.refine(5)
    found = torch.from_numpy(partition.labels)
    assert torch.bincount(found, minlength=parts).tolist() == list(sizes)
    assert partition.cut <= before + 1e-6
    assert partition.cut == pytest.approx(cut(matrix, found), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_swap_is_left_that_would_cut_less(seed: int) -> None:
    matrix, graph = random_graph(14, seed)
    partition = GraphPartition(graph, torch.arange(14) % 2, (7, 7))
    partition.refine(50)
    labels, least = torch.from_numpy(partition.labels), partition.cut
    for i, j in combinations(range(14), 2):
        swapped = labels.clone()
        swapped[[i, j]] = labels[[j, i]]
        assert cut(matrix, swapped) >= least - 1e-3 * least


def test_balancing_moves_what_costs_least() -> None:
    """Node 2 hangs on part 0 by a thread; nodes 0 and 1 belong together."""
    matrix = torch.tensor([[0.0, 5, 0.1, 0], [5, 0, 0.1, 0], [0.1, 0.1, 0, 1], [0, 0, 1, 0]])
    partition = GraphPartition(graph_from(matrix), torch.tensor([0, 0, 0, 1]), (2, 2))
    partition.balance()
    assert partition.labels.tolist() == [0, 0, 1, 1]


def test_a_graph_of_some_nodes_has_their_edges_alone() -> None:
    matrix, graph = random_graph(20, 3)
    kept = torch.tensor([1, 2, 5, 7, 11, 19])
    found, wanted = induced(graph, kept), graph_from(matrix[kept][:, kept].clone())
    for name in ("offsets", "neighbours", "weights"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("partitioner", ["spectral", "metis"])
@pytest.mark.parametrize("sizes", [(12, 12, 12, 12), (13, 12, 12, 11)], ids=str)
def test_planted_groups_are_found(partitioner: str, sizes: tuple[int, ...]) -> None:
    planted = planted_site()
    graph = graph_of(planted.site)
    inputs = torch.randn(800, 12, generator=torch.Generator().manual_seed(0))
    context = sampled_context(graph, inputs)
    MeasureCoActivation(neighbours=16).run(graph, context)
    groups = CoActivationGraph(partitioner).group(planted.site, torch.arange(48), sizes, context)  # type: ignore[arg-type]  # one of them
    assert tuple(map(len, groups)) == sizes
    assert agreement(groups, planted.groups) > 0.95
    assert context.measurements["planted"]["partitioner"] == partitioner
    assert 0 <= context.measurements["planted"]["cut_share"] < 0.6


def test_neurons_that_never_fire_together_are_dealt_out_all_the_same() -> None:
    nothing = CoActivation(torch.zeros(49, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    site = planted_site().site
    context = sampled_context(graph_of(site))
    context.put(site, nothing)
    for partitioner in ("spectral", "metis"):
        groups = CoActivationGraph(partitioner).group(site, torch.arange(48), (24, 24), context)
        assert torch.cat(groups).sort().values.tolist() == list(range(48))


def test_without_pymetis_metis_is_refused_and_auto_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(co_activation_graph, "has_metis", lambda: False)
    with pytest.raises(UsageError, match=r'but pymetis is missing: pip install "moeify\[graph\]", or choose spectral'):
        CoActivationGraph("metis")
    site = planted_site().site
    graph = graph_of(site)
    context = sampled_context(graph)
    MeasureCoActivation().run(graph, context)
    CoActivationGraph().group(site, torch.arange(48), (24, 24), context)
    assert context.measurements["planted"]["partitioner"] == "spectral"


def test_refuses_options() -> None:
    with pytest.raises(UsageError, match="partitioner is 'louvain': choose auto, metis or spectral"):
        CoActivationGraph("louvain")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(UsageError, match=r"co-activation-graph.rounds is -1: choose 0 or more"):
        CoActivationGraph(rounds=-1)
