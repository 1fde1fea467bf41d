"""What of an ONNX graph belongs to a feed-forward network alone, and how the rest is cut into stages between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeify.frontend.onnx.view import read_by

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Region:
    """One call of a feed-forward network: y of x, by the nodes that nothing but y needs."""

    x: ir.Value
    y: ir.Value
    nodes: frozenset[ir.Node]

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """What the nodes read from outside, x first."""
        return (self.x, *(value for value in read_from_outside(self.nodes) if value is not self.x))


def region(graph: ir.Graph, x: ir.Value, y: ir.Value) -> Region | None:
    """The nodes that are of no use once y comes from elsewhere; None where y is no node's only output.

    What x is computed from stays, whoever reads it.
    """
    maker = y.producer()
    if maker is None or sum(bool(value.name) for value in maker.outputs) != 1:
        return None
    before, outputs = _ancestors(x), set(graph.outputs)
    readers = _readers(graph)
    found = {maker}
    for node in reversed(list(graph)):
        if node not in before and node not in found and not outputs.intersection(node.outputs):
            users = {user for value in node.outputs for user in readers.get(value, ())}
            if users and users <= found:
                found.add(node)
    return Region(x, y, frozenset(found))


def read_from_outside(nodes: Iterable[ir.Node]) -> tuple[ir.Value, ...]:
    """The values that nodes read and none of them makes, weights left out, in the order of reading."""
    nodes = list(nodes)
    inner = {value for node in nodes for value in node.outputs}
    read = (value for node in nodes for value in read_by(node) if value is not None and value.name)
    return tuple(dict.fromkeys(value for value in read if value not in inner and value.const_value is None))


def stages(graph: ir.Graph, regions: Sequence[Region]) -> list[list[ir.Node]]:
    """The nodes outside of the regions, by how many of these have to be done before: len(regions) + 1 lists.

    regions: in the order of their outputs in the graph, whose nodes are sorted.
    """
    inside = {node for each in regions for node in each.nodes}
    stage: dict[ir.Value, int] = {each.y: number + 1 for number, each in enumerate(regions)}
    found: list[list[ir.Node]] = [[] for _ in range(len(regions) + 1)]
    for node in graph:
        if node not in inside:
            own = max((stage.get(value, 0) for value in read_by(node) if value is not None), default=0)
            found[own].append(node)
            stage |= dict.fromkeys(node.outputs, own)
    return found


def in_order(graph: ir.Graph, regions: Iterable[Region]) -> list[Region]:
    """The regions by where their outputs stand."""
    place = {node: i for i, node in enumerate(graph)}
    return sorted(regions, key=lambda each: place[each.y.producer()])  # type: ignore[index]  # a region's y has a maker


def _ancestors(value: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [read for read in read_by(node) if read is not None]
    return found


def _readers(graph: ir.Graph) -> dict[ir.Value, set[ir.Node]]:
    readers: dict[ir.Value, set[ir.Node]] = {}
    for node in graph:
        for value in read_by(node):
            if value is not None:
                readers.setdefault(value, set()).add(node)
    return readers
