"""A loss that trains without being added to any other: its gradient is put in where backward comes by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
