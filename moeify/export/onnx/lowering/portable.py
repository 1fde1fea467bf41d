"""A body of standard operators: the file runs in any ONNX runtime."""

from __future__ import annotations

from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.lowering.bodied import attach_body
from moeify.export.onnx.lowering.choice import Choice, best_form


def choose(layer: MoENode, tokens: tuple[int, ...]) -> Choice:
    return best_form(layer, tokens, contrib=False)


write = attach_body
