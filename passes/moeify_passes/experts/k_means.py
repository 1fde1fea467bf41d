"""Balanced k-means: Lloyd's iteration in which every cluster keeps its size (Bradley, Bennett, Demiriz 2000)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify_passes.experts.balanced_assignment import balanced_assignment

#: Elements of one float32 working chunk (64 MiB); up to four such chunks, bool rows are converted once and kept.
_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Clustering:
    """labels: int64 [rows]. objectives: the sum of squared distances to the centres after each assignment, non-increasing.
    gap: how far the last assignment can be from the cheapest one, as a share of the rows' summed squares (0 up to rounding)."""

    labels: Tensor
    objectives: tuple[float, ...]
    gap: float

    def groups(self) -> tuple[Tensor, ...]:
        """The row indices of each cluster, ascending."""
        return tuple(torch.nonzero(self.labels == label).flatten() for label in range(int(self.labels.max()) + 1))


def balanced_k_means(
    rows: Tensor, sizes: Tensor, iterations: int, generator: torch.Generator, start: Tensor | None = None
) -> Clustering:
    """Clusters of given sizes, from the centres `start` [clusters, features], or k-means++ (Arthur, Vassilvitskii 2007).

    rows: [rows, features], float or bool (bool rows are converted chunk by chunk). sizes: [clusters], summing to rows.
    iterations: at most so many assignments; fewer when the objective stands still.
    """
    rows = rows.float() if rows.numel() <= 4 * _CHUNK else rows
    squares = torch.cat([chunk.square().sum(1) for chunk in _float_chunks(rows)]).double()
    centres = _plus_plus(rows, squares.float(), len(sizes), generator) if start is None else start
    labels, prices, gap = torch.empty(0), None, 0.0
    objectives: list[float] = []
    for _ in range(iterations):
        cost = centres.double().square().sum(1) - 2 * _products(rows, centres).double()
        found = balanced_assignment(cost, sizes, prices)
        objective = max(float(squares.sum()) + found.cost, 0.0)
        if objectives and objective >= objectives[-1] * (1 - 1e-7):
            break
        labels, prices, gap = found.labels, found.prices, found.gap / max(float(squares.sum()), 1e-30)
        objectives.append(objective)
        centres = _means(rows, labels, sizes)
    return Clustering(labels, tuple(objectives), gap)


def _float_chunks(rows: Tensor) -> Iterator[Tensor]:
    for chunk in torch.split(rows, max(1, _CHUNK // max(rows.shape[1], 1))):
        yield chunk.float()


def _products(rows: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([chunk @ centres.T for chunk in _float_chunks(rows)])


def _means(rows: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """The mean row of each cluster, float32 [clusters, features]; empty clusters keep zeros."""
    sums = torch.zeros(len(sizes), rows.shape[1], dtype=torch.float64)
    start = 0
    for chunk in _float_chunks(rows):
        members = F.one_hot(labels[start : start + len(chunk)], len(sizes)).float()
        sums += members.T @ chunk
        start += len(chunk)
    return (sums / sizes.clamp(min=1)[:, None]).float()


def _plus_plus(rows: Tensor, squares: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Rows drawn one after another, each with a chance proportional to its squared distance to the nearest one so far."""
    picked = [int(torch.randint(len(rows), (1,), generator=generator))]
    nearest = torch.full_like(squares, torch.inf)
    while len(picked) < clusters:
        last = rows[picked[-1]].float()
        distance = squares - 2 * _products(rows, last[None])[:, 0] + last.square().sum()
        nearest = torch.minimum(nearest, distance.clamp(min=0))
        nearest[picked] = 0
        weights = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        picked.append(int(torch.multinomial(weights, 1, generator=generator)))
    return rows[picked].float()
