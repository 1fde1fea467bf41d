"""How far a model's probabilities are from those of the tokens that another one holds likeliest."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from moeify.training.strips import log_totals, strips

#: What all tokens together that are not among the likeliest have at least: what is less is rounding of the others' sum.
_LEAST = 1e-5


def likely_divergence(logits: Tensor, likely: Tensor, ids: Tensor) -> Tensor:
    """The mean of KL(dense || model) in nats over vectors, a scalar with a gradient; all tokens but `ids` count as one.

    logits: the model's, [vectors, width], in any float dtype. likely: the logarithms of the dense model's probabilities of ids,
    both [vectors, likeliest].

    Autograd would hold the logits in float32 several times, and go through all of them for each operation; the gradient is
    known, and is written once.
    """
    return cast(Tensor, _LikelyDivergence.apply(logits, likely, ids.long()))  # type: ignore[no-untyped-call]  # torch


class _LikelyDivergence(torch.autograd.Function):
    """With z the logits, q = softmax(z), p the dense probabilities, P and Q what is left of p and q for the others:

    D = sum_i p_i (log p_i - log q_i) + P (log P - log Q); dD / dlog q_i = q_i P / Q - p_i = c_i, whatever the others are;
    log q_i = z_i - log sum exp z, so that dD / dz_j = c_j - q_j sum_i c_i, with c_j = 0 for the others.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, likely: Tensor, ids: Tensor) -> Tensor:
        totals = log_totals(logits)
        logs = logits.gather(-1, ids).float() - totals[:, None]
        p, q = likely.exp(), logs.exp()
        divergences, slopes = (p * (likely - logs)).sum(-1), -p
        if logits.shape[-1] > ids.shape[-1]:
            dense, left = ((1 - part.sum(-1)).clamp(min=_LEAST) for part in (p, q))
            divergences = divergences + dense * (dense.log() - left.log())
            slopes = slopes + q * (dense / left).where(left > _LEAST, 0.0)[:, None]
        ctx.save_for_backward(logits, totals, slopes, ids)
        return divergences.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        logits, totals, slopes, ids = ctx.saved_tensors
        slopes = slopes * (grad / len(logits))
        factors = -slopes.sum(-1, keepdim=True)
        found = torch.empty_like(logits)
        for strip in strips(logits):
            q = (logits[strip].float() - totals[strip, None]).exp_()
            found[strip] = q.mul_(factors[strip]).scatter_add_(-1, ids[strip], slopes[strip])
        return found, None, None
