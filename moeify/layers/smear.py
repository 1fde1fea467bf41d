"""One merged expert a sequence (docs/moe-layer.md; SMEAR, Muqeeth et al. 2023, section 3)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.activations import activation
from moeify.layers.composed_rows import ComposedRows
from moeify.layers.experts import LayerWeights, run_all
from moeify.layers.routing import Routing
from moeify.layers.rows import Rows
from moeify.layers.token_input import TokenInput


def run_smeared(x: Tensor, scores: Tensor, weights: LayerWeights, tokens: TokenInput) -> Tensor:
    """y [..., output] of x [..., hidden] and scores [..., experts], in x's dtype; tokens says which of x make a sequence.

    The merged expert of every sequence of the call is held in memory.
    """
    sequences, shown = tokens.sequences(x)
    shares = _shares(scores.reshape(*sequences, scores.shape[-1]), shown).to(x.dtype)
    of_experts = _experts(x.reshape(*sequences, x.shape[-1]), shares, weights)
    rest = run_all(x.reshape(-1, x.shape[-1]), _without_experts(weights), None)
    return of_experts.reshape(*x.shape[:-1], rest.shape[-1]) + rest.view(*x.shape[:-1], rest.shape[-1])


def smeared_routing(x: Tensor, scores: Tensor, tokens: TokenInput) -> Routing:
    """Every expert on every token, with the shares of its sequence as gates."""
    sequences, shown = tokens.sequences(x)
    shares = _shares(scores.reshape(*sequences, scores.shape[-1]), shown)
    gates = shares.unsqueeze(1).expand(*sequences, -1).reshape(-1, shares.shape[-1])
    return Routing(scores.reshape(-1, scores.shape[-1]), torch.ones_like(gates, dtype=torch.bool), gates)


def _shares(scores: Tensor, shown: Tensor | None) -> Tensor:
    """P [sequences, experts] of scores [sequences, tokens, experts], in float32 at least; shown [sequences, tokens]."""
    p = (scores if scores.dtype == torch.float64 else scores.float()).softmax(-1)
    if shown is None:
        return p.mean(1)
    counted = (shown != 0).to(p.dtype).unsqueeze(-1)
    return (p * counted).sum(1) / counted.sum(1).clamp(min=1)


def _experts(x: Tensor, shares: Tensor, weights: LayerWeights) -> Tensor:
    """M(x)."""
    rows, act = _merged(weights, shares), activation(weights.activation)
    h = _batched(x, rows.up.mT, rows.up_bias)
    h = act(h) if rows.gate is None else act(_batched(x, rows.gate.mT, rows.gate_bias)) * h
    h = h.to(x.dtype)  # some activations give float32 under autocast
    h = F.dropout(h, weights.hidden_dropout) if weights.hidden_dropout else h
    return h @ rows.down


def _without_experts(weights: LayerWeights) -> LayerWeights:
    rows, shared = weights.rows, weights.sizes[0]
    rows = rows.shared_rows() if isinstance(rows, ComposedRows) else rows.mapped(lambda value: value[:shared])
    return replace(weights, rows=rows, offsets=(shared,))


def _merged(weights: LayerWeights, shares: Tensor) -> Rows:
    """The merged expert of each sequence: tensors as in Rows with the sequences in front."""
    shared, size = weights.sizes[:2]
    if isinstance(weights.rows, ComposedRows):
        return weights.rows.merged_by(shares)

    def merged(tensor: Tensor) -> Tensor:
        experts = tensor[shared:].to(shares.dtype).view(shares.shape[-1], -1)
        return (shares @ experts).view(len(shares), size, *tensor.shape[1:])

    return weights.rows.mapped(merged)


def _batched(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """x [sequences, tokens, n], matrix [sequences, n, m], bias [sequences, m]."""
    return x @ matrix if bias is None else x @ matrix + bias.unsqueeze(1)
