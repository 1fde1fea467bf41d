"""Losses on what a router gives, as pure functions: scalars in float32 (float64 for float64 scores), with a gradient.

weight [tokens]: 1 for tokens that count, 0 for padding; None: all count. Where no token counts, a loss is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def precise(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def probabilities(scores: Tensor, gate_rule: str) -> Tensor:
    """How the router spreads each token over the experts: [tokens, experts] that sum to 1 a token.

    softmax(s) for the rules `softmax` and `one`; for `sigmoid` its values divided by their sum (DeepSeek-V3, equation 19).
    """
    scores = precise(scores)
    if gate_rule != "sigmoid":
        return scores.softmax(-1)
    values = scores.sigmoid()
    return values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def load_balance(probability: Tensor, chosen: Tensor, weight: Tensor | None = None) -> Tensor:
    """E sum_e f_e P_e (Switch Transformers, Fedus et al. 2022, section 2.2): 1 where the load is even, E where one has all.

    probability, chosen (bool) [tokens, experts]. P_e: mean probability; f_e: the share of all choices that fell on e, so that
    the scale does not depend on how many experts a token takes.
    """
    counts = _summed(chosen.to(probability.dtype), weight)
    share = counts / counts.sum().clamp(min=1)
    return chosen.shape[-1] * (share * mean(probability, weight)).sum()


def z_loss(scores: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over tokens of (log sum_e exp s_e)^2 of scores [tokens, experts] (ST-MoE, Zoph et al. 2022, equation 5)."""
    return mean(precise(scores).logsumexp(-1).square(), weight)


def importance(gates: Tensor, weight: Tensor | None = None) -> Tensor:
    """cv^2 of the experts' sums of gates [tokens, experts] (Shazeer et al. 2017, equations 6 and 7)."""
    return cv_squared(_summed(gates, weight))


def load(scores: Tensor, noisy: Tensor, top_k: int | None, deviation: float, weight: Tensor | None = None) -> Tensor:
    """cv^2 of the smooth load: the sum over tokens of the probability that an expert is chosen if its noise is drawn anew.

    scores, noisy [tokens, experts]: before and after normal noise of that deviation. (Shazeer et al. 2017, equations 8 to 10.)
    0 where all experts are chosen anyway.
    """
    scores, noisy, experts = precise(scores), precise(noisy), scores.shape[-1]
    if top_k is None or top_k >= experts:
        return scores.new_zeros(())
    best = noisy.topk(top_k + 1, -1).values
    least, next_best = best[..., top_k - 1 : top_k], best[..., top_k:]
    others = torch.where(noisy >= least, next_best, least)  # the k-th largest of the others
    return cv_squared(_summed(torch.special.ndtr((scores - others) / deviation), weight))


def cv_squared(values: Tensor) -> Tensor:
    """The squared coefficient of variation of values [experts]: population variance / squared mean; 0 for no tokens."""
    return values.var(correction=0) / (values.mean().square() + 1e-10)


def entropy(probability: Tensor) -> Tensor:
    """[tokens], in nats: 0 for a router that is sure, log(experts) for one that is not at all."""
    each: Tensor = torch.special.entr(probability)
    return each.sum(-1)


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """[...] of [tokens, ...]: the mean over tokens that count."""
    if weight is None:
        return values.sum(0) / max(values.shape[0], 1)
    return _summed(values, weight) / weight.sum().clamp(min=1)


def _summed(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.sum(0)
    return (values * weight.to(values.dtype).view(-1, *[1] * (values.ndim - 1))).sum(0)
