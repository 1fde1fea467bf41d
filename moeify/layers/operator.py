"""The operator `moeify::moe`: a whole MoE layer as one opaque node, for torch.compile and torch.export.

The schema follows docs/moe-layer.md: inputs in the operator's order, then its attributes; detach_sum is for the gradient
alone. Backward runs the layer again (as a checkpoint does) instead of keeping h. It is an operator of its own, because the
routing decides the shapes within.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from moeify.ir.moe_config import GateRule
from moeify.layers.composed_rows import plain_rows
from moeify.layers.experts import LayerWeights, run_layer
from moeify.layers.routing import ChoiceRule
from moeify.layers.rows import Rows


@torch.library.custom_op("moeify::moe", mutates_args=())
def moe(
    x: Tensor,
    scores: Tensor,
    up: Tensor,
    down: Tensor,
    offsets: Tensor,
    k: int | None,
    threshold: float | None,
    gate: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    selection_bias: Tensor | None,
    output_bias: Tensor | None,
    idle: Tensor | None,
    low_rank_in: Tensor | None,
    low_rank_out: Tensor | None,
    activation: str,
    gate_rule: str,
    normalize: bool,
    detach_sum: bool = False,
) -> Tensor:
    """y [..., output] of x [..., hidden] and scores [..., experts]; shapes and meaning as in docs/moe-layer.md."""
    tensors = (x, scores, up, down, offsets, gate, up_bias, gate_bias, selection_bias, output_bias, idle, low_rank_in)
    return _run((*tensors, low_rank_out), (k, threshold, activation, gate_rule, normalize, detach_sum))


def _gradients(
    grad: Tensor,
    tensors: Sequence[Tensor | None],
    k: int | None,
    threshold: float | None,
    activation: str,
    gate_rule: str,
    normalize: bool,
    detach_sum: bool,
    wanted: Sequence[int],
) -> list[Tensor]:
    """The gradients of tensors[i] for i in wanted, given that of y; tensors are the tensor inputs of `moe`, in order."""
    with torch.enable_grad():
        leaves = {i: cast(Tensor, tensors[i]).detach().requires_grad_() for i in wanted}
        attributes = (k, threshold, activation, gate_rule, normalize, detach_sum)
        y = _run([leaves.get(i, t) for i, t in enumerate(tensors)], attributes)
        found = torch.autograd.grad(y, list(leaves.values()), grad, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves.values(), found)]


def as_node(
    x: Tensor, scores: Tensor, weights: LayerWeights, offsets: Tensor, rule: ChoiceRule, selection_bias: Tensor | None
) -> Tensor:
    """y [..., output] by the operator; weights are cast to x's dtype, composed rows are folded.

    offsets [experts + 1]: those of the weights, in int64.
    """
    w, rows = weights, plain_rows(weights.rows)
    if selection_bias is not None and selection_bias.dtype in (torch.bfloat16, torch.float16):
        selection_bias = selection_bias.float()  # a cast of the whole model took it along

    def cast(tensor: Tensor | None) -> Tensor | None:
        # Where nothing is to be cast, the graph shall show nothing.
        return tensor if tensor is None or tensor.dtype == x.dtype else tensor.to(x.dtype)

    y: Tensor = moe(
        x, scores, cast(rows.up), cast(rows.down), offsets, rule.top_k, rule.threshold, cast(rows.gate), cast(rows.up_bias),
        cast(rows.gate_bias), selection_bias, cast(w.output_bias), cast(w.idle), cast(w.low_rank_in), cast(w.low_rank_out),
        w.activation, rule.gate_rule, rule.normalize, rule.detach_sum,
    )  # fmt: skip
    return y


def _run(tensors: Sequence[Tensor | None], attributes: tuple[int | None, float | None, str, str, bool, bool]) -> Tensor:
    x, scores, up, down, offsets = cast(list[Tensor], tensors[:5])
    gate, up_bias, gate_bias, selection_bias, output_bias, idle, low_rank_in, low_rank_out = tensors[5:]
    k, threshold, activation, gate_rule, normalize, detach_sum = attributes
    rows = Rows(up, down, gate, up_bias, gate_bias)
    weights = LayerWeights(rows, tuple(offsets.tolist()), activation, output_bias, idle, low_rank_in, low_rank_out)
    rule = ChoiceRule(k, threshold, cast(GateRule, gate_rule), normalize, detach_sum)
    y = run_layer(x.reshape(-1, x.shape[-1]), scores.reshape(-1, scores.shape[-1]), weights, rule, selection_bias)
    return y.view(*x.shape[:-1], down.shape[1])


def _fake(x: Tensor, scores: Tensor, up: Tensor, down: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], down.shape[1]))


def _fake_gradients(grad: Tensor, tensors: Sequence[Tensor | None], *attributes: Any) -> list[Tensor]:
    wanted: Sequence[int] = attributes[-1]
    return [torch.empty_like(cast(Tensor, tensors[i]), memory_format=torch.contiguous_format) for i in wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(inputs[place] for place in _TENSORS))
    ctx.attributes = (inputs[5], inputs[6], *inputs[15:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [i for i, place in enumerate(_TENSORS) if ctx.needs_input_grad[place] and i not in _WITHOUT_GRADIENT]
    found = torch.ops.moeify.moe_backward(grad, list(ctx.saved_tensors), *ctx.attributes, wanted)
    gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for i, value in zip(wanted, found):
        gradients[_TENSORS[i]] = value
    return tuple(gradients)


#: The places of the tensor inputs in the schema, and which of them (offsets, selection_bias) have no gradient.
_TENSORS = (0, 1, 2, 3, 4, *range(7, 15))
_WITHOUT_GRADIENT = (4, 8)

moe.register_fake(_fake)
# Not a custom_op, for those run with autograd's dispatch keys off, and the layer has to be differentiated within.
torch.library.define("moeify::moe_backward", torch.library.infer_schema(_gradients, mutates_args=()))
torch.library.impl("moeify::moe_backward", "CompositeExplicitAutograd", _gradients)
torch.library.register_fake("moeify::moe_backward", _fake_gradients)
moe.register_autograd(_backward, setup_context=_keep)
