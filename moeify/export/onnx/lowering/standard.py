"""Standard operators in place of the node."""

from __future__ import annotations

from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.lowering.choice import Choice, best_form
from moeify.export.onnx.lowering.inlined import write_inline


def choose(layer: MoENode, tokens: tuple[int, ...]) -> Choice:
    return best_form(layer, tokens, contrib=False)


write = write_inline
