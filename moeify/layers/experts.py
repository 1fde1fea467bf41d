"""Running experts: pure functions of tensors (docs/moe-layer.md, 'The layer')."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.activations import activation
from moeify.layers.composed_rows import ComposedRows
from moeify.layers.expert_tokens import evened, expert_tokens, picked
from moeify.layers.hidden_sparsity import HiddenSparsity
from moeify.layers.routing import ChoiceRule, Routing, route
from moeify.layers.rows import Rows, linear

#: So many routed experts or more, of fewer rows than that on average, are computed all at once: a step for each would cost more
#: than it saves.
_MANY, _SMALL = 64, 32
#: Rows of few idle experts are computed and masked too: to pick the others would be a copy of nearly everything.
_NEARLY_ALL = 0.8


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The tensors of a layer but those of the choice, in any float dtype: they are cast to x's dtype where they are used.

    rows: all neurons, or what they are composed of, shared expert first. offsets: experts + 1 ints. output_bias [output]; idle
    [experts, output]; low_rank_in [rank, hidden]; low_rank_out [rank, output]. hidden_dropout: probability for h, 0 outside
    training. watch: sees the hidden activations of every expert that runs.
    """

    rows: Rows | ComposedRows
    offsets: tuple[int, ...]
    activation: str
    output_bias: Tensor | None = None
    idle: Tensor | None = None
    low_rank_in: Tensor | None = None
    low_rank_out: Tensor | None = None
    hidden_dropout: float = 0.0
    watch: HiddenSparsity | None = None

    @property
    def sizes(self) -> list[int]:
        """The number of rows of the shared expert, then of each routed expert."""
        return [b - a for a, b in zip((0, *self.offsets), self.offsets)]

    def merged(self) -> LayerWeights:
        """The shared expert as it is, and one routed expert: row i is the mean of the rows i of all, which are of one size."""
        shared, size = self.sizes[:2]

        def mean(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            experts = tensor[shared:].view(-1, size, *tensor.shape[1:])
            return torch.cat((tensor[:shared], experts.mean(0)))

        if isinstance(r := self.rows, ComposedRows):
            return replace(self, rows=r.merged(), offsets=(shared, shared + size))
        rows = Rows(cast(Tensor, mean(r.up)), cast(Tensor, mean(r.down)), mean(r.gate), mean(r.up_bias), mean(r.gate_bias))
        return replace(self, rows=rows, offsets=(shared, shared + size))


def run_layer(x: Tensor, scores: Tensor, weights: LayerWeights, rule: ChoiceRule, selection_bias: Tensor | None) -> Tensor:
    """y [tokens, output] of x [tokens, hidden] and scores [tokens, experts], in x's dtype."""
    routing = route(scores, rule, selection_bias)
    gates = None if rule.unit_gates and not routing.gates.requires_grad else routing.gates
    if rule.chooses_all(scores.shape[-1]):
        return run_all(x, weights, gates)
    if isinstance(weights.rows, ComposedRows):
        return _run_composed(x, weights.rows, weights, routing.chosen, gates)
    # Whoever watches is to see what runs, and nothing that is computed in passing.
    experts, routed = scores.shape[-1], weights.offsets[-1] - weights.offsets[0]
    if weights.watch is None and experts >= _MANY and routed < _SMALL * experts:
        return run_fine(x, weights.rows, weights, routing, gates)
    return run_chosen(x, weights.rows, weights, routing, gates)


def run_all(x: Tensor, weights: LayerWeights, gates: Tensor | None) -> Tensor:
    """y [tokens, output] with every expert on, in one pass over all rows; gates [tokens, experts], None for 1."""
    if isinstance(weights.rows, ComposedRows):
        return _run_composed(x, weights.rows, weights, None, gates)
    h = _hidden(x, weights.rows, weights)
    if gates is not None:
        shared, *sizes = weights.sizes
        of_row = gates.to(x.dtype).repeat_interleave(torch.tensor(sizes, device=x.device), -1, output_size=sum(sizes))
        h = h * F.pad(of_row, (shared, 0), value=1.0)
    return _compensated(x, linear(h, weights.rows.down.T, weights.output_bias), weights)


def run_chosen(x: Tensor, rows: Rows, weights: LayerWeights, routing: Routing, gates: Tensor | None) -> Tensor:
    """y [tokens, output] with the chosen experts on; gates [tokens, experts], None for 1.

    The tokens of each expert are gathered, so an expert that nobody chose costs nothing and its weights are not read.
    """
    shared, *experts = rows.runs(weights.sizes)
    y = _shared(x, shared, weights)
    for e, tokens, gate in expert_tokens(len(experts), routing.chosen, gates, x.dtype):
        taken, factor = evened(x, tokens, gate)
        h = _hidden(picked(x, taken), experts[e], weights, tokens)
        h = h if factor is None else h * factor
        down = experts[e].down.to(x.dtype)
        y = torch.addmm(y, h, down) if tokens is None else y.index_add_(0, tokens, (h @ down)[: len(tokens)])
    return _compensated(x, _with_idle(y, routing.chosen, weights), weights)


def _run_composed(x: Tensor, rows: ComposedRows, weights: LayerWeights, chosen: Tensor | None, gates: Tensor | None) -> Tensor:
    """y [tokens, output]; chosen [tokens, experts], None for all; gates [tokens, experts], None for 1."""

    def fired(z: Tensor, up: Tensor | None, tokens: Tensor | None) -> Tensor:
        return _fired(z, up, weights, tokens)

    y = rows.output(x, chosen, gates, fired)
    y = y if weights.output_bias is None else y + weights.output_bias.to(x.dtype)
    return _compensated(x, y if chosen is None else _with_idle(y, chosen, weights), weights)


def _with_idle(y: Tensor, chosen: Tensor, weights: LayerWeights) -> Tensor:
    if weights.idle is None:
        return y
    return torch.addmm(y, (~chosen).to(y.dtype), weights.idle.to(y.dtype))


def run_fine(x: Tensor, every: Rows, weights: LayerWeights, routing: Routing, gates: Tensor | None) -> Tensor:
    """The same for many experts of few rows, all at once: rows that any token uses are gathered, and masked for each token."""
    shared, *sizes = weights.sizes
    counts = torch.tensor(sizes, device=x.device)
    of_row = torch.arange(len(sizes), device=x.device).repeat_interleave(counts, output_size=sum(sizes))
    some = routing.chosen.any(0)
    some |= some.sum() > _NEARLY_ALL * len(sizes)
    used = some[of_row].nonzero().flatten()
    places = torch.cat((torch.arange(shared, device=x.device), used + shared))
    rows = every if len(places) == len(every.up) else every.picked(places)
    h = _hidden(x, rows, weights)
    if gates is not None:
        h = h * F.pad(gates.to(x.dtype)[:, of_row[used]], (shared, 0), value=1.0)
    h = h.masked_fill(F.pad(~routing.chosen[:, of_row[used]], (shared, 0), value=False), 0.0)
    y = linear(h, rows.down.T, weights.output_bias)
    return _compensated(x, _with_idle(y, routing.chosen, weights), weights)


def _shared(x: Tensor, rows: Rows, weights: LayerWeights) -> Tensor:
    """The part of y that is on for every token, [tokens, output], in new memory."""
    if len(rows.up):
        return linear(_hidden(x, rows, weights), rows.down.T, weights.output_bias)
    if weights.output_bias is not None:
        return weights.output_bias.to(x.dtype).expand(len(x), -1).clone(memory_format=torch.contiguous_format)
    return x.new_zeros(len(x), rows.down.shape[1])


def _compensated(x: Tensor, y: Tensor, weights: LayerWeights) -> Tensor:
    if weights.low_rank_in is None or weights.low_rank_out is None:
        return y
    return y + linear(linear(x, weights.low_rank_in), weights.low_rank_out.T)


def _hidden(x: Tensor, rows: Rows, weights: LayerWeights, tokens: Tensor | None = None) -> Tensor:
    """h [tokens, neurons] of x [tokens, hidden]; tokens: which ones these are, None: all."""
    up = linear(x, rows.up, rows.up_bias)
    if rows.gate is None:
        return _fired(up, None, weights, tokens)
    return _fired(linear(x, rows.gate, rows.gate_bias), up, weights, tokens)


def _fired(z: Tensor, up: Tensor | None, weights: LayerWeights, tokens: Tensor | None) -> Tensor:
    """h of the pre-activation z that decides whether a neuron fires, and of up where the FFN is gated; [tokens, neurons]."""
    h = activation(weights.activation)(z)
    h = (h if up is None else h * up).to(z.dtype)  # some activations give float32 under autocast
    if weights.watch is not None:
        weights.watch.see(z, h, tokens)
    return F.dropout(h, weights.hidden_dropout) if weights.hidden_dropout else h
