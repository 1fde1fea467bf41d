"""Where a partition of a graph starts: by METIS, or by the leading eigenvectors."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.facts import CoActivation
from moeify_passes.experts.k_means import balanced_k_means

#: Directions that a spectral embedding takes at most, and rounds of subspace iteration.
_DIRECTIONS, _ROUNDS = 32, 30

#: What all weights together may come to: METIS's integers may have 32 bits.
_MOST = 2**30


def has_metis() -> bool:
    """Is pymetis installed?"""
    return importlib.util.find_spec("pymetis") is not None


def metis_labels(graph: CoActivation, sizes: tuple[int, ...], seed: int) -> Tensor:
    """Parts of about those sizes by METIS's multilevel k-way method, int64 [nodes].

    Weights become whole numbers in units of their 10th percentile, as in MoEfication. pymetis must be installed.
    """
    import pymetis

    nodes = len(graph.offsets) - 1
    if len(sizes) == 1 or not len(graph.weights):
        return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    percentile = float(graph.weights.kthvalue(1 + len(graph.weights) // 10).values)
    unit = max(0.99 * percentile, float(graph.weights.sum(dtype=torch.float64)) / _MOST)
    whole = (graph.weights.double() / unit).clamp(min=1).long()
    found = pymetis.part_graph(
        len(sizes),
        pymetis.CSRAdjacency(graph.offsets.numpy(), graph.neighbours.numpy()),
        eweights=whole.numpy(),
        tpwgts=[size / nodes for size in sizes],
        recursive=False,
        options=pymetis.Options(seed=seed),
    )
    return torch.tensor(found.vertex_part, dtype=torch.int64)


def spectral_labels(graph: CoActivation, sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Parts of exactly those sizes: balanced k-means on the leading eigenvectors of the normalised graph (Ng et al. 2001)."""
    nodes = len(graph.offsets) - 1
    source = torch.repeat_interleave(torch.arange(nodes), graph.offsets.diff())
    degree = torch.zeros(nodes).index_add_(0, source, graph.weights).clamp(min=1e-30).rsqrt()
    values = graph.weights * degree[source] * degree[graph.neighbours]
    matrix = torch.sparse_coo_tensor(
        torch.stack((source, graph.neighbours)), values, (nodes, nodes), check_invariants=False, is_coalesced=True
    )
    found = torch.randn(nodes, min(len(sizes), nodes, _DIRECTIONS), generator=generator)
    for _ in range(_ROUNDS):
        found = torch.linalg.qr(found + torch.sparse.mm(matrix, found)).Q  # + 1: all eigenvalues are then above 0
    return balanced_k_means(F.normalize(found, dim=1), torch.tensor(sizes), 20, generator).labels
