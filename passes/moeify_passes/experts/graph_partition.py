"""A graph of neurons in parts of given sizes, and moves that cut less weight (Kernighan, Lin 1970)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeify.ir.facts import CoActivation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class GraphPartition:
    """labels: the part of each node. connection[i, p]: the weight between node i and part p, kept up to date by every move.

    Memory is linear in edges and in nodes x parts.
    """

    def __init__(self, graph: CoActivation, labels: Tensor, sizes: tuple[int, ...]) -> None:
        """labels: int64 [nodes]. sizes: [parts], summing to nodes."""
        self.offsets: Ints = graph.offsets.numpy()
        self.neighbours: Ints = graph.neighbours.numpy()
        self.weights: Floats = graph.weights.double().numpy()
        self.labels: Ints = labels.numpy().copy()
        nodes, parts = len(self.labels), len(sizes)
        self.surplus: Ints = np.bincount(self.labels, minlength=parts) - np.array(sizes)
        source = np.repeat(np.arange(nodes), np.diff(self.offsets))
        key = source * parts + self.labels[self.neighbours]
        self.connection: Floats = np.bincount(key, self.weights, nodes * parts).astype(np.float64).reshape(nodes, parts)

    @property
    def cut(self) -> float:
        """The weight between different parts."""
        return float(self.weights.sum() - self._own().sum()) / 2

    def balance(self) -> None:
        """Gives every part its size: of all moves from one that is too large to one that is too small, always the cheapest."""
        while (self.surplus > 0).any():
            small = np.flatnonzero(self.surplus < 0)
            nodes = np.flatnonzero(self.surplus[self.labels] > 0)
            loss = self._own()[nodes, None] - self.connection[np.ix_(nodes, small)]
            node, part = divmod(int(loss.argmin()), len(small))
            self._move(int(nodes[node]), int(small[part]))

    def refine(self, rounds: int) -> None:
        """Swaps nodes while that cuts less. Each round asks every node that would rather be elsewhere for its best partner."""
        for _ in range(rounds):
            before = self.cut
            wish = self.connection.max(1) - self._own()
            for node in np.argsort(-wish, kind="stable")[: int((wish > 0).sum())]:
                self._swap(int(node))
            if before - self.cut <= 1e-4 * before:
                return

    def _swap(self, node: int) -> None:
        """With the partner that gains most, if there is a gain: what both win, less twice the edge between them."""
        part = int(self.labels[node])
        gain = self.connection[node][self.labels] - self.connection[node, part] + self.connection[:, part] - self._own()
        gain[self._around(node)] -= 2 * self.weights[self.offsets[node] : self.offsets[node + 1]]
        gain[self.labels == part] = 0.0
        partner = int(gain.argmax())
        if gain[partner] > 1e-9 * abs(self.connection[node, part]) + 1e-30:
            self._move(node, int(self.labels[partner]))
            self._move(partner, part)

    def _move(self, node: int, part: int) -> None:
        old, around = self.labels[node], self._around(node)
        weights = self.weights[self.offsets[node] : self.offsets[node + 1]]
        self.connection[around, old] -= weights
        self.connection[around, part] += weights
        self.labels[node] = part
        self.surplus[old] -= 1
        self.surplus[part] += 1

    def _around(self, node: int) -> Ints:
        return self.neighbours[self.offsets[node] : self.offsets[node + 1]]

    def _own(self) -> Floats:
        found: Floats = self.connection[np.arange(len(self.labels)), self.labels]
        return found


def induced(graph: CoActivation, nodes: Tensor) -> CoActivation:
    """The graph of those nodes (ascending) alone, counted from 0."""
    count = len(graph.offsets) - 1
    place = torch.full((count,), -1).index_copy_(0, nodes, torch.arange(len(nodes)))
    source = torch.repeat_interleave(torch.arange(count), graph.offsets.diff())
    kept = (place[source] >= 0) & (place[graph.neighbours] >= 0)
    counts = torch.bincount(place[source[kept]], minlength=len(nodes))
    return CoActivation(torch.cat((counts.new_zeros(1), counts.cumsum(0))), place[graph.neighbours[kept]], graph.weights[kept])
