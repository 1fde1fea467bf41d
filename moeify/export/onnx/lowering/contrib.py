"""The operators `com.microsoft::MoE` and `QMoE` of ONNX Runtime in place of the node, where they can compute the layer.

What they lack but can stand beside them: shared experts, idle vectors, the low-rank term, the output bias. Choice and gates
are ours (moeify.export.onnx.body_contrib).
"""

from __future__ import annotations

from moeify.errors import ConversionError
from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.body_contrib import CONTRIB, GATED, PLAIN, keeps_integers
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
    operator = f"{CONTRIB}::{'QMoE' if keeps_integers(layer.shape) else 'MoE'}"
    return Choice(form, f"{description(layer)}; {expectation(layer, form, tokens)}{_floats(layer)}", operator)


def _floats(layer: MoENode) -> str:
    """Why the integers of a layer become floats when the file is loaded."""
    if not layer.shape.bits or keeps_integers(layer.shape):
        return ""
    kind = f"{layer.shape.bits} bits" if layer.shape.bits == 4 else layer.shape.activation
    return (
        f"; {CONTRIB}::QMoE has a scale an output, this layer one a neuron, which {kind} cannot move into up: floats in memory"
    )


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
