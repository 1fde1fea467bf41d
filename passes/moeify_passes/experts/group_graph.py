"""Points in groups, and the cheapest moves between the groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class GroupGraph:
    """Groups as nodes; move[a, b] is what the cheapest move of a point from a to b adds to the cost.

    labels must be optimal for the loads that they give (each point in its cheapest group at some prices): then no cycle of moves
    is negative, and a shortest path from a group with too many points to one with too few keeps it so.
    """

    def __init__(self, cost: Floats, labels: Ints, sizes: Ints) -> None:
        """cost [points, groups], labels [points], sizes [groups]."""
        self.cost, self.labels = cost, labels.copy()
        groups = cost.shape[1]
        self.surplus: Ints = np.bincount(self.labels, minlength=groups) - sizes
        self.move: Floats = np.full((groups, groups), np.inf)
        # Costs nearer than this count as equal: it hides rounding, which would otherwise look like a negative cycle.
        self.equal = 1e-12 * max(float(np.abs(cost).max(initial=0.0)), 1e-300)
        for group in range(groups):
            self._price_moves(group)

    def settle(self) -> None:
        """Moves points along shortest paths until no group has a surplus."""
        while (self.surplus > 0).any():
            distance, parent = self._distances(np.where(self.surplus > 0, 0.0, np.inf))
            target = int(np.where(self.surplus < 0, distance, np.inf).argmin())
            path = [target]
            while parent[path[-1]] >= 0:
                path.append(int(parent[path[-1]]))
            self._shift(path[::-1])

    def prices(self) -> Floats:
        """Prices [groups] at which every point is in its cheapest group."""
        distance, _ = self._distances(np.zeros(len(self.surplus)))
        return -distance

    def _price_moves(self, group: int) -> None:
        members = np.flatnonzero(self.labels == group)
        self.move[group] = np.inf
        if len(members):
            self.move[group] = (self.cost[members] - self.cost[members, group][:, None]).min(0)
            self.move[group, group] = np.inf

    def _distances(self, distance: Floats) -> tuple[Floats, Ints]:
        """Bellman-Ford from the nodes where `distance` is 0: distances, and each node's predecessor (-1: none)."""
        parent: Ints = np.full(len(distance), -1)
        for _ in range(len(distance)):
            through = distance[:, None] + self.move
            nearer = through.min(0)
            shorter = nearer < distance - self.equal
            if not shorter.any():
                break
            parent[shorter] = through.argmin(0)[shorter]
            distance = np.where(shorter, nearer, distance)
        return distance, parent

    def _shift(self, path: list[int]) -> None:
        """Moves as many points along the path as cost the same, without leaving the ends with the opposite sign."""
        candidates = []
        for a, b in zip(path, path[1:]):
            members = np.flatnonzero(self.labels == a)
            added = self.cost[members, b] - self.cost[members, a]
            candidates.append(members[added <= self.move[a, b] + self.equal])
        amount = min(int(self.surplus[path[0]]), int(-self.surplus[path[-1]]), *(len(c) for c in candidates))
        for b, movers in zip(path[1:], candidates):
            self.labels[movers[:amount]] = b
        self.surplus[path[0]] -= amount
        self.surplus[path[-1]] += amount
        for group in path:
            self._price_moves(group)
