"""SparseMixer: one expert drawn by its gate, with a gradient of second order (Liu, Gao and Chen 2023, arXiv 2310.00811)."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.layers.router_losses import precise


def sparse_mixer(scores: Tensor, band: float, normalize: bool = False) -> tuple[Tensor, Tensor]:
    """(chosen, gates) of scores [tokens, experts]: one expert a token, drawn by p = softmax over those within the band.

    Within the band are the experts that a jitter of that width could bring to the top: max - s_e <= 2 band max(|s_e|, max).
    The gate is p_e for the expert with the largest score; for another one p_e or p_e / 2, each half of the time (Euler and
    mid-point), and its gradient is 2 grad p_e. So the expectation of the gradient is exact to second order in the expert's
    output, the expert with the largest score to first. The authors' learned factor omega on the output is left out.
    normalize: p_e is divided by itself as a constant, so that the gate is 1 or 1 / 2.
    """
    scores = precise(scores)
    with torch.no_grad():
        top, best = scores.max(-1, keepdim=True)
        beyond = top - scores > 2 * band * torch.maximum(scores.abs(), top)
        gumbel = -torch.empty_like(scores).exponential_().log()  # the largest of scores with such noise is drawn by softmax
        drawn = (scores + gumbel).masked_fill(beyond, -torch.inf).argmax(-1, keepdim=True)
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, drawn, True)
        first_order = (drawn == best) | (torch.rand_like(top) < 0.5)
        factor = 0.5 + 0.5 * first_order.to(scores.dtype)
    gates = scores.masked_fill(beyond, -torch.inf).softmax(-1).masked_fill(~chosen, 0.0)
    if normalize:
        gates = gates / gates.sum(-1, keepdim=True).detach()
    return chosen, 2 * gates + (factor - 2) * gates.detach()
