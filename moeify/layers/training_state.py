"""What an MoE layer holds while it is trained by a TrainingRule, and what it does with its routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moeify.layers.router_losses import load_balance, probabilities, z_loss
from moeify.layers.routing import ChoiceRule, route
from moeify.layers.training_door import TrainingDoor
from moeify.layers.training_rule import TrainingRule


@dataclass(eq=False)
class TrainingState:
    """rule: what is asked for. door: that of the model that the layer stands in."""

    rule: TrainingRule
    door: TrainingDoor

    def noted(self, x: Tensor, y: Tensor, scores: Tensor, rule: ChoiceRule, selection_bias: Tensor | None) -> Tensor:
        """y as it is; the losses of scores [..., experts] of x [..., hidden] are noted and, if so asked, attached to y."""
        if not self.rule.losses:
            return y
        flat = scores.reshape(-1, scores.shape[-1])
        losses = self._losses(flat, rule, selection_bias, self.door.weight(x))
        if not self.rule.attach:
            self.door.note(losses, torch.is_grad_enabled())
            return y
        self.door.note({name: loss.detach() for name, loss in losses.items()}, tracked=True)
        return attach(y, torch.stack(list(losses.values())).sum(), float(self.rule.attach))

    def _losses(
        self, scores: Tensor, rule: ChoiceRule, selection_bias: Tensor | None, weight: Tensor | None
    ) -> dict[str, Tensor]:
        weights, found = self.rule.losses, {}
        if "load_balance" in weights:
            chosen = route(scores.detach(), rule, selection_bias).chosen
            found["load_balance"] = load_balance(probabilities(scores, rule.gate_rule), chosen, weight)
        if "z_loss" in weights:
            found["z_loss"] = z_loss(scores, weight)
        return {name: weights[name] * loss for name, loss in found.items()}


def attach(y: Tensor, loss: Tensor, factor: float) -> Tensor:
    """y as it is, in the same memory; whatever backward reaches it, the gradient of factor x loss, a scalar, is added to it.

    As Megatron-LM and DeepSeek train their auxiliary losses.
    """
    attached: Tensor = _Attach.apply(y, loss, factor)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return attached


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor, factor: float) -> Tensor:
        ctx.factor, ctx.dtype = factor, loss.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return grad, grad.new_full((), ctx.factor, dtype=ctx.dtype), None
