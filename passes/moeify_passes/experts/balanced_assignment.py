"""Which point goes to which group, when every group has its size: the transportation problem, solved exactly.

Sizes are few (experts) and points many (neurons), so the search runs on a graph whose nodes are the groups: the edge a -> b
costs what it costs to move the cheapest point of a to b. Sinkhorn iterations (Cuturi 2013) give prices that nearly balance the
groups; every point takes its cheapest group at those prices; then successive shortest paths (Ahuja, Magnanti, Orlin: Network
Flows, section 9.7) move the surplus, each along the path that costs least. Memory is linear in points x groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeify.errors import UsageError
from moeify_passes.experts.group_graph import GroupGraph

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Assignment:
    """labels: the group of each point, int64 [points]. cost: the sum of what they pay. prices: float64 [groups], by which every
    point is in its cheapest group. gap: cost - lower bound from the prices, 0 up to rounding: the proof of optimality."""

    labels: Tensor
    cost: float
    prices: Tensor
    gap: float


def balanced_assignment(cost: Tensor, sizes: Tensor, prices: Tensor | None = None) -> Assignment:
    """The cheapest assignment that gives each group its size.

    cost: [points, groups], finite. sizes: [groups], their sum is the number of points. prices: of a similar problem, to start
    from. Raises UsageError where the sizes do not add up or a cost is not finite.
    """
    points, groups = cost.shape
    if len(sizes) != groups or int(sizes.sum()) != points or bool((sizes < 0).any()):
        raise UsageError(f"group sizes {sizes.tolist()} do not add up to {points} points in {groups} groups")
    if not bool(torch.isfinite(cost).all()):
        raise UsageError("the costs of the assignment are not all finite: check the weights and the calibration data")
    table: Floats = cost.double().numpy()
    start = _start(cost.double(), sizes, prices)
    graph = GroupGraph(table, start.numpy(), sizes.numpy())
    graph.settle()
    final = graph.prices - graph.prices.mean()
    paid = float(table[np.arange(points), graph.labels].sum())
    bound = float((table + final).min(1).sum() - (final * sizes.numpy()).sum()) if points else 0.0
    return Assignment(torch.from_numpy(graph.labels), paid, torch.from_numpy(final), paid - bound)


def _start(cost: Tensor, sizes: Tensor, prices: Tensor | None) -> Tensor:
    """Prices to start from: the given ones made to fit, but where they leave many points in groups that are full they are of
    another problem (k-means++ picks points as centres, which means are not), and the search begins anew."""
    found = _sinkhorn_prices(cost, sizes, prices)
    if prices is None:
        return found
    load = torch.bincount((cost + found).argmin(1), minlength=len(sizes))
    surplus = int((load - sizes).clamp(min=0).sum())
    return found if surplus <= len(cost) // 8 else _sinkhorn_prices(cost, sizes, None)


def _sinkhorn_prices(cost: Tensor, sizes: Tensor, prices: Tensor | None) -> Tensor:
    """Prices [groups] at which cheapest groups have about the right sizes; the temperature falls from coarse to fine."""
    found = torch.zeros(cost.shape[1], dtype=torch.float64) if prices is None else prices.clone()
    excess = cost - cost.amin(1, keepdim=True)
    scale = float(excess.mean()) if cost.numel() else 0.0
    if scale <= 0:
        return found
    share = sizes.double().clamp(min=1e-9)
    for fineness in (3, 10, 30, 100, 300) if prices is None else (100, 300):
        temperature = scale / fineness
        for _ in range(6):
            load = torch.softmax((excess + found).div_(-temperature), dim=1).sum(0)
            found += temperature * (load.clamp(min=1e-9) / share).log()
    return found - found.mean()
