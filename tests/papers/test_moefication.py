"""MoEfication's own steps (Zhang et al. 2022, section 3, and the authors' code), against the recipe `moefication`."""

from __future__ import annotations

import pymetis
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.facts import CoActivation
from moeify_passes.experts.graph_start import metis_labels
from papers.by_recipe import by_recipe, sets
from passes.rewriting import reference
from passes.tiny import correlated_inputs, random_site

SITE = random_site()
INPUTS = correlated_inputs(600)
EXPERTS, SIZE = 6, 8
SETTINGS = {
    "cluster-neurons.experts": EXPERTS, "measure-co-activation.neighbours": 47, "insert-router.top_k": 2,
    "insert-router.by": {"kind": "mlp-classifier", "epochs": 5},
}  # fmt: skip


def adjacency() -> Tensor:
    """relu(x W^T) in batches of 8 tokens, outer products clamped at 1, summed."""
    found = torch.zeros(48, 48)
    for batch in torch.split(INPUTS, 8):
        a = torch.relu(batch @ SITE.up.read().T)
        found += (a.T @ a).clamp(max=1)
    return found.fill_diagonal_(0)


def whole_numbers(adj: Tensor) -> tuple[list[int], list[int], list[int]]:
    """METIS's graph: weights in units of 0.99 of their 10th percentile, cut to whole numbers, at least 1."""
    unit = 0.99 * float(adj[adj > 0].sort().values[int((adj > 0).sum()) // 10])
    starts, neighbours, weights = [0], list[int](), list[int]()
    for row in adj:
        around = row.nonzero().flatten().tolist()
        neighbours += around
        weights += [max(1, int(float(row[j]) / unit)) for j in around]
        starts.append(len(neighbours))
    return starts, neighbours, weights


def cut(adj: Tensor, groups: list[set[int]]) -> float:
    label = {neuron: e for e, group in enumerate(groups) for neuron in group}
    return sum(float(adj[i, j]) for i in range(48) for j in range(i) if label[i] != label[j])


def test_the_same_graph_gives_the_same_parts() -> None:
    _, context = by_recipe("moefication", SITE, INPUTS, SETTINGS)
    graph: CoActivation = context.given[CoActivation]
    adj = adjacency()
    starts, neighbours, weights = whole_numbers(adj)
    assert graph.offsets.tolist() == starts
    assert graph.neighbours.tolist() == neighbours
    for seed in range(3):
        options = pymetis.Options(seed=seed)
        shares = [1 / EXPERTS] * EXPERTS
        adjacent = pymetis.CSRAdjacency(starts, neighbours)
        parts = pymetis.part_graph(EXPERTS, adjacent, eweights=weights, tpwgts=shares, recursive=False, options=options)
        assert metis_labels(graph, (SIZE,) * EXPERTS, seed).tolist() == list(parts.vertex_part)


def test_experts_cut_no_more_than_metis_with_the_authors_random_balancing() -> None:
    spec, context = by_recipe("moefication", SITE, INPUTS, SETTINGS)
    assert context.measurements[SITE.path]["partitioner"] == "metis"
    adj = adjacency()
    starts, neighbours, weights = whole_numbers(adj)
    adjacent, generator = pymetis.CSRAdjacency(starts, neighbours), torch.Generator().manual_seed(0)
    cuts = []
    for seed in range(5):
        options = pymetis.Options(seed=seed)
        labels = list(pymetis.part_graph(EXPERTS, adjacent, eweights=weights, recursive=False, options=options).vertex_part)
        groups, pool = [[n for n in range(48) if labels[n] == e] for e in range(EXPERTS)], list[int]()
        for group in groups:
            order = [group[i] for i in torch.randperm(len(group), generator=generator)]
            group[:], surplus = order[:SIZE], order[SIZE:]
            pool += surplus
        pool = [pool[i] for i in torch.randperm(len(pool), generator=generator)]
        for group in groups:
            while len(group) < SIZE:
                group.append(pool.pop())
        cuts.append(cut(adj, [set(group) for group in groups]))
    assert [len(group) for group in sets(spec)] == [SIZE] * EXPERTS
    assert cut(adj, sets(spec)) <= min(cuts) * 1.001


def test_the_same_routing_and_the_same_output() -> None:
    """Selected experts only, gate 1, nothing rescaled; the router reads x/|x|."""
    spec, _ = by_recipe("moefication", SITE, INPUTS, SETTINGS)
    assert spec.router is not None
    t, x = spec.router.tensors, correlated_inputs(40, seed=9)
    scores = torch.tanh(F.normalize(x, dim=1) @ t["weight_in"].T) @ t["weight_out"].T
    h, down, y = torch.relu(x @ SITE.up.read().T), SITE.down.read(), torch.zeros(40, SITE.output)
    for token, best in enumerate(scores.topk(2).indices.tolist()):
        for e in best:
            neurons = spec.experts[e]
            y[token] += h[token, neurons] @ down[neurons]
    torch.testing.assert_close(reference(SITE, spec, x.double()).float(), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_the_router_captures_nearly_what_the_oracle_would(k: int) -> None:
    """The ground truth of the paper: the experts whose neurons hold the largest sums."""
    spec, _ = by_recipe("moefication", SITE, INPUTS, SETTINGS)
    assert spec.router is not None
    x = correlated_inputs(300, seed=9)
    truth = torch.stack([torch.relu(x @ SITE.up.read()[e].T).sum(1) for e in spec.experts], dim=1)
    chosen = truth.gather(1, spec.router.scores(x).topk(k).indices).sum()
    best = truth.topk(k).values.sum()
    chance = truth.sum() * k / EXPERTS
    assert float((chosen - chance) / (best - chance)) > 0.6
