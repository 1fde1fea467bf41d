"""Which nodes of a graph make the scores of its MoE layers: their precision decides who is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.attach import given_inputs, moe_nodes

if TYPE_CHECKING:
    import onnx_ir as ir


def router_nodes(model: ir.Model) -> set[ir.Node]:
    """What an MoE node's scores need and its x does not."""
    found: set[ir.Node] = set()
    for node in moe_nodes(model):
        given = given_inputs(node)
        found |= _before(given["scores"], _before(given["x"], set()))
    return found


def _before(value: ir.Value, stop: set[ir.Node]) -> set[ir.Node]:
    """The nodes that make a value, but for those of `stop`."""
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in stop and node not in found:
            found.add(node)
            waiting += [read for read in node.inputs if read is not None]
    return found
