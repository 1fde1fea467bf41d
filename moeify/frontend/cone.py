"""The cone of a projection: everything between it and the projections that its input is computed from."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from moeify.frontend.cone_ops import CHANGES_PLACES, is_layout, is_pointwise, obstacle, op_name
from moeify.frontend.cone_projection import Projection
from moeify.frontend.cone_slices import SPLITS, cuts, is_slice

#: A hidden value takes few steps (a written-out GELU about ten); longer walks have left the feed-forward network.
_LONGEST = 100


@dataclass(frozen=True)
class Branch:
    """Columns start .. stop of a projection's output: all of them, or one part of a fused projection."""

    projection: Projection
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def fused(self) -> bool:
        return self.width != self.projection.width_out


@dataclass(frozen=True, eq=False)
class Cone:
    """down: the projection at its tip. branches: at its base, in the order in which the graph computes them.

    sources: node -> the branch that it gives (for `glu`: the two branches). nodes: all nodes between the projections.
    constants: placeholders of single values in between. obstacles: steps that no feed-forward network has, in words.
    """

    down: Projection
    branches: tuple[Branch, ...]
    sources: Mapping[fx.Node, tuple[Branch, ...]]
    nodes: frozenset[fx.Node]
    constants: frozenset[fx.Node]
    obstacles: tuple[str, ...]

    @property
    def axis(self) -> int:
        """Where its features stand: -1, or 1 for 1x1 convolutions."""
        return self.down.axis

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The distinct projections at its base: one for a fused projection."""
        return tuple(dict.fromkeys(branch.projection for branch in self.branches))

    @property
    def core(self) -> frozenset[fx.Node]:
        """All nodes of the feed-forward network."""
        return self.nodes.union(self.down.nodes, *(p.nodes for p in self.projections))

    @property
    def computes(self) -> bool:
        """Something other than layout happens between the projections."""
        return any(op_name(n) == "glu" or not (is_layout(n, self.axis) or is_slice(n, self.axis)) for n in self.nodes)


@dataclass
class _Walk:
    projections: Mapping[fx.Node, Projection]
    single_values: Mapping[str, Tensor]
    axis: int
    sources: dict[fx.Node, tuple[Branch, ...]] = field(default_factory=dict)
    nodes: set[fx.Node] = field(default_factory=set)
    constants: set[fx.Node] = field(default_factory=set)
    obstacles: list[str] = field(default_factory=list)

    def step(self, node: fx.Node) -> list[fx.Node] | None:
        """Takes the node in; what is to be visited next, None where the walk is blocked."""
        if node in self.projections:
            projection = self.projections[node]
            if projection.axis != self.axis:
                self.obstacles.append(CHANGES_PLACES)
            self.sources[node] = (Branch(projection, 0, projection.width_out),)
            return []
        if node.op == "placeholder":
            return self._placeholder(node)
        parts = self._parts(node)
        if parts is not None:
            self.sources[node] = parts
            self.nodes.add(node)
            return []
        if node.op != "call_function" or not node.all_input_nodes:
            return None
        self.nodes.add(node)
        if is_layout(node, self.axis):
            return node.all_input_nodes[:1]
        if is_pointwise(node):
            return node.all_input_nodes
        trouble = obstacle(node)
        if trouble is not None:
            self.obstacles.append(trouble)
            return node.all_input_nodes[:1]
        return node.all_input_nodes[:1] if node.target is operator.getitem and obstacle(node.all_input_nodes[0]) else None

    def _placeholder(self, node: fx.Node) -> list[fx.Node] | None:
        if node.name not in self.single_values:
            return None
        if self.single_values[node.name].numel() == 1:
            self.constants.add(node)
        else:
            self.obstacles.append("a learned vector stands between its matrices")
        return []

    def _parts(self, node: fx.Node) -> tuple[Branch, ...] | None:
        """The branches that the node cuts out of one projection; the nodes on the way are taken in."""
        runs = cuts(node, self.axis)
        if runs is None:
            return None
        source, passed = node.all_input_nodes[0], []
        while source not in self.projections and (is_layout(source, self.axis) or op_name(source) in SPLITS):
            passed.append(source)
            source = source.all_input_nodes[0]
        if source not in self.projections:
            return None
        self.nodes.update(passed)
        return tuple(Branch(self.projections[source], a, b) for a, b in runs)


def cone(down: Projection, projections: Mapping[fx.Node, Projection], weights: Mapping[str, Tensor]) -> Cone | None:
    """The cone of a projection; None where its input depends on more than projections (on an attention, an input).

    weights: lifted weights and constants by placeholder.
    """
    walk = _Walk(projections, weights, down.axis)
    todo, seen = [down.x], {down.x}
    while todo:
        following = walk.step(todo.pop())
        if following is None or len(seen) > _LONGEST:
            return None
        todo.extend(node for node in following if node not in seen)
        seen.update(following)
    order = {node: i for i, node in enumerate(projections)}
    branches = dict.fromkeys(branch for parts in walk.sources.values() for branch in parts)
    ordered = sorted(branches, key=lambda b: (order[b.projection.node], b.start))
    return Cone(
        down,
        tuple(ordered),
        walk.sources,
        frozenset(walk.nodes),
        frozenset(walk.constants),
        tuple(dict.fromkeys(walk.obstacles)),
    )
