"""From scores to the chosen experts and their gates (docs/moe-layer.md, 'Scores, choice, gates')."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moeify.ir.moe_config import GateRule


@dataclass(frozen=True)
class ChoiceRule:
    """How experts are chosen and weighted; the names are those of MoEConfig.

    gate_rule "given": scores are the gates themselves, made elsewhere (moeify.layers.training_state).
    """

    top_k: int | None
    threshold: float | None
    gate_rule: GateRule | Literal["given"]
    normalize: bool
    detach_sum: bool = False

    def chooses_all(self, experts: int) -> bool:
        """Is every expert on, whatever the scores?"""
        return self.threshold is None and (self.top_k is None or self.top_k >= experts)

    @property
    def unit_gates(self) -> bool:
        """Is every gate 1, whatever the scores?"""
        return self.gate_rule == "one" and not self.normalize


@dataclass(frozen=True, eq=False)
class Routing:
    """Which experts run on which token. All of shape [tokens, experts]; a layer without router has scores of 0.

    scores: as the router gave them. chosen: bool. gates: float32 (float64 for float64 scores), 0 where not chosen.
    """

    scores: Tensor
    chosen: Tensor
    gates: Tensor


def route(scores: Tensor, rule: ChoiceRule, selection_bias: Tensor | None) -> Routing:
    """The routing of scores [tokens, experts]; selection_bias [experts] steers the choice only.

    Where a gradient is asked for, the gates of the rule `one` are straight-through: exactly 1, with the gradient of softmax.
    """
    values = values_of(scores, rule)
    chosen = choose(_steered(values, selection_bias), rule.top_k, rule.threshold)
    return Routing(scores, chosen, gates_of(values, chosen, rule))


def values_of(scores: Tensor, rule: ChoiceRule) -> Tensor:
    """v [tokens, experts] of scores [tokens, experts], in float32 at least."""
    return _VALUES[rule.gate_rule](scores if scores.dtype == torch.float64 else scores.float())


def gates_of(values: Tensor, chosen: Tensor, rule: ChoiceRule) -> Tensor:
    """g [tokens, experts] of values and chosen [tokens, experts]: 0 where not chosen."""
    gates = _straight_through(values) if rule.gate_rule == "one" else values
    gates = gates.masked_fill(~chosen, 0.0)
    if rule.normalize:
        total = gates.sum(-1, keepdim=True)
        total = total.detach() if rule.detach_sum else total
        gates = gates / total.masked_fill(total == 0, 1.0)
    return gates


def choice_values(scores: Tensor, gate_rule: GateRule, selection_bias: Tensor | None) -> Tensor:
    """What top-k and threshold compare, [tokens, experts] of scores [tokens, experts], in float32 or float64."""
    return _steered(_VALUES[gate_rule](scores if scores.dtype == torch.float64 else scores.float()), selection_bias)


def choose(values: Tensor, top_k: int | None, threshold: float | None) -> Tensor:
    """The chosen experts (bool) of values [tokens, experts]: every rule that is present must hold.

    Among equal values the lower index comes first. NaN counts as the largest value: a broken input shows in the output
    instead of silently choosing nothing.
    """
    values = values.masked_fill(values.isnan(), torch.inf)
    chosen = torch.ones_like(values, dtype=torch.bool)
    if top_k is not None and top_k < values.shape[-1]:
        # A stable sort, for torch.topk promises nothing about equal values.
        best = values.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
        chosen = torch.zeros_like(chosen).scatter_(-1, best, True)
    return chosen if threshold is None else chosen & (values >= threshold)


def _steered(values: Tensor, selection_bias: Tensor | None) -> Tensor:
    return values.detach() if selection_bias is None else values.detach() + selection_bias.to(values.dtype)


def _straight_through(scores: Tensor) -> Tensor:
    ones = torch.ones_like(scores)
    if not (torch.is_grad_enabled() and scores.requires_grad):
        return ones
    p = _softmax(scores)
    return ones + (p - p.detach())  # in this order the value is exactly 1


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _unchanged(scores: Tensor) -> Tensor:
    return scores


def _sigmoid(scores: Tensor) -> Tensor:
    return scores.sigmoid()


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "one": _unchanged,
    "given": _unchanged,
    "softmax": _softmax,
    "sigmoid": _sigmoid,
}
