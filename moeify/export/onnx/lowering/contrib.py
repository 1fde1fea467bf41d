"""The operator `com.microsoft::MoE` of ONNX Runtime in place of the node, where it can compute the layer.

What it lacks but can stand beside it: shared experts, idle vectors, the low-rank term, the output bias. Choice and gates are
ours (moeify.export.onnx.body_contrib). Integers (`com.microsoft::QMoE`) would be one more file like this one.
"""

from __future__ import annotations

from moeify.errors import ConversionError
from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.body_contrib import CONTRIB, GATED, PLAIN
from moeify.export.onnx.forms import Form
from moeify.export.onnx.lowering.choice import Choice, best_form, description, expectation
from moeify.export.onnx.lowering.inlined import write_inline


def choose(layer: MoENode, tokens: tuple[int, ...]) -> Choice:
    """Raises ConversionError where the operator would compute something else."""
    if not layer.shape.choosing:
        return best_form(layer, tokens, contrib=False)
    if (reason := misfit(layer)) is not None:
        raise ConversionError(f"{layer.name}: com.microsoft::MoE {reason}; use the lowering auto, portable or standard")
    form = Form("contrib", size=layer.size)
    return Choice(form, f"{description(layer)}; {expectation(layer, form, tokens)}", CONTRIB)


def misfit(layer: MoENode) -> str | None:
    """What the operator lacks for the layer; None where it fits."""
    activation = layer.shape.activation
    if not layer.size:
        return f"takes experts of one size, not of {min(layer.sizes)} to {max(layer.sizes)} neurons"
    if layer.hidden != layer.output:
        return f"gives as many values as it takes, not {layer.output} for {layer.hidden}"
    if layer.shape.gated and activation not in GATED:
        return f"takes no gated FFN but of {', '.join(GATED)}, not of {activation}"
    if not layer.shape.gated and activation not in PLAIN:
        hint = " (its gelu is the tanh form)" if activation == "gelu" else ""
        return f"knows {', '.join(PLAIN)}, not {activation}{hint}"
    return None


write = write_inline
