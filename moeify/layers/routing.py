"""From scores to the chosen experts and their gates (docs/moe-layer.md, 'Scores, choice, gates')."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moeify.ir.moe_config import GateRule


@dataclass(frozen=True, eq=False)
class Routing:
    """Which experts run on which token. All of shape [tokens, experts]; a layer without router has scores of 0.

    scores: in the dtype of x. chosen: bool. gates: float32 (float64 for float64 scores), 0 where not chosen.
    """

    scores: Tensor
    chosen: Tensor
    gates: Tensor


def route(
    scores: Tensor,
    top_k: int | None,
    threshold: float | None,
    selection_bias: Tensor | None,
    gate_rule: GateRule,
    normalize: bool,
) -> Routing:
    """The routing of scores [tokens, experts]; selection_bias [experts] steers the choice only."""
    precise = scores if scores.dtype == torch.float64 else scores.float()
    values = {"one": _unchanged, "softmax": _softmax, "sigmoid": torch.sigmoid}[gate_rule](precise)
    steered = values.detach() if selection_bias is None else values.detach() + selection_bias.to(values.dtype)
    chosen = choose(steered, top_k, threshold)
    return Routing(scores, chosen, _gates(values, chosen, gate_rule, normalize))


def choose(values: Tensor, top_k: int | None, threshold: float | None) -> Tensor:
    """The chosen experts (bool) of values [tokens, experts]: every rule that is present must hold.

    Among equal values the lower index comes first. NaN counts as the largest value: a broken input shows in the output
    instead of silently choosing nothing.
    """
    infinity = torch.inf
    values = torch.nan_to_num(values, nan=infinity, posinf=infinity, neginf=-infinity)
    chosen = torch.ones_like(values, dtype=torch.bool)
    if top_k is not None and top_k < values.shape[-1]:
        # torch.topk promises nothing about equal values, so it only tells the smallest value that is still in.
        last = values.topk(top_k, dim=-1).values[..., -1:]
        above, equal = values > last, values == last
        room = top_k - above.sum(-1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(-1) <= room))
    return chosen if threshold is None else chosen & (values >= threshold)


def _gates(values: Tensor, chosen: Tensor, gate_rule: GateRule, normalize: bool) -> Tensor:
    if gate_rule == "one":
        gates = torch.ones_like(values)
        if torch.is_grad_enabled() and values.requires_grad:
            # Straight-through: the value is exactly 1, the gradient that of the softmax.
            p = _softmax(values)
            gates = gates + (p - p.detach())
    else:
        gates = values
    gates = torch.where(chosen, gates, 0.0)
    if not normalize:
        return gates
    total = gates.sum(-1, keepdim=True)
    return gates / torch.where(total == 0, 1.0, total)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _unchanged(scores: Tensor) -> Tensor:
    return scores
