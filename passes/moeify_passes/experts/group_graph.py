"""Points in groups, and the cheapest moves between the groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class GroupGraph:
    """Groups as nodes; move[a, b] is what the cheapest move of a point from a to b adds to the cost.

    Every point is in its cheapest group at the prices, up to rounding: so the moves, with prices, cost nothing less than zero,
    and moving along a shortest path from a group with too many points to one with too few keeps it so (Johnson's potentials).
    """

    def __init__(self, cost: Floats, prices: Floats, sizes: Ints) -> None:
        """cost [points, groups]; prices [groups], any; sizes [groups]."""
        self.cost, self.prices = cost, prices.copy()
        self.labels: Ints = (cost + prices).argmin(1)
        groups = cost.shape[1]
        self.surplus: Ints = np.bincount(self.labels, minlength=groups) - sizes
        self.move: Floats = np.full((groups, groups), np.inf)
        for group in range(groups):
            self._find_moves(group)

    def settle(self) -> None:
        """Moves points along shortest paths until no group has a surplus. Each round moves at least one."""
        while (self.surplus > 0).any():
            distance, parent = self._distances()
            target = int(np.where(self.surplus < 0, distance, np.inf).argmin())
            path = [target]
            while parent[path[-1]] >= 0:
                path.append(int(parent[path[-1]]))
            self.prices -= np.minimum(distance, distance[target])
            self._shift(path[::-1])

    def _find_moves(self, group: int) -> None:
        members = np.flatnonzero(self.labels == group)
        self.move[group] = np.inf
        if len(members):
            self.move[group] = (self.cost[members] - self.cost[members, group][:, None]).min(0)
            self.move[group, group] = np.inf

    def _distances(self) -> tuple[Floats, Ints]:
        """Bellman-Ford from the groups with a surplus, on moves with prices: distances, and predecessors (-1: none).

        Rounding may leave a move a little below zero; it counts as zero, for a negative cycle would never end.
        """
        length = np.maximum(self.move + self.prices - self.prices[:, None], 0.0)
        distance = np.where(self.surplus > 0, 0.0, np.inf)
        parent: Ints = np.full(len(distance), -1)
        while True:
            through = distance[:, None] + length
            nearest = through.min(0)
            shorter = nearest < distance
            if not shorter.any():
                return distance, parent
            parent[shorter] = through.argmin(0)[shorter]
            distance = np.where(shorter, nearest, distance)

    def _shift(self, path: list[int]) -> None:
        """Moves as many points along the path as cost exactly the same, but none more than its ends call for."""
        candidates = []
        for a, b in zip(path, path[1:]):
            members = np.flatnonzero(self.labels == a)
            added = self.cost[members, b] - self.cost[members, a]
            candidates.append(members[added <= self.move[a, b]])
        amount = min(int(self.surplus[path[0]]), int(-self.surplus[path[-1]]), *(len(c) for c in candidates))
        for b, movers in zip(path[1:], candidates):
            self.labels[movers[:amount]] = b
        self.surplus[path[0]] -= amount
        self.surplus[path[-1]] += amount
        for group in path:
            self._find_moves(group)
