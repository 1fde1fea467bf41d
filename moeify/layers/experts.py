"""Running experts: pure functions of tensors (docs/moe-layer.md, 'The layer')."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch import split_with_sizes as split
from torch.nn import functional as F

from moeify.ir.activations import activation
from moeify.layers.hidden_sparsity import HiddenSparsity
from moeify.layers.routing import ChoiceRule, Routing, route


@dataclass(frozen=True, eq=False)
class Rows:
    """A run of neurons: up, gate [neurons, hidden]; down [neurons, output]; up_bias, gate_bias [neurons]."""

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None

    @property
    def keys(self) -> tuple[Tensor, Tensor | None]:
        """The rows that decide whether a neuron fires (gate rows if gated, else up rows) and their bias."""
        return (self.up, self.up_bias) if self.gate is None else (self.gate, self.gate_bias)

    def runs(self, sizes: list[int]) -> list[Rows]:
        """Runs of those sizes, as views. One split a tensor, for its backward writes one gradient, not one an expert."""

        def parts(tensor: Tensor | None) -> Sequence[Tensor | None]:
            return (None,) * len(sizes) if tensor is None else split(tensor, sizes)

        fields = (parts(self.gate), parts(self.up_bias), parts(self.gate_bias))
        return [Rows(*run) for run in zip(split(self.up, sizes), split(self.down, sizes), *fields)]


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The tensors of a layer but those of the choice, in any float dtype: they are cast to x's dtype where they are used.

    rows: all neurons, shared expert first. offsets: experts + 1 ints. output_bias [output]; idle [experts, output];
    low_rank_in [rank, hidden]; low_rank_out [rank, output]. hidden_dropout: probability for h, 0 outside training. watch: sees
    the hidden activations of every expert that runs.
    """

    rows: Rows
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

        r = self.rows
        rows = Rows(cast(Tensor, mean(r.up)), cast(Tensor, mean(r.down)), mean(r.gate), mean(r.up_bias), mean(r.gate_bias))
        return replace(self, rows=rows, offsets=(shared, shared + size))


def run_layer(x: Tensor, scores: Tensor, weights: LayerWeights, rule: ChoiceRule, selection_bias: Tensor | None) -> Tensor:
    """y [tokens, output] of x [tokens, hidden] and scores [tokens, experts], in x's dtype."""
    routing = route(scores, rule, selection_bias)
    gates = None if rule.unit_gates and not routing.gates.requires_grad else routing.gates
    if rule.chooses_all(scores.shape[-1]):
        return run_all(x, weights, gates)
    return run_chosen(x, weights, routing, gates)


def run_all(x: Tensor, weights: LayerWeights, gates: Tensor | None) -> Tensor:
    """y [tokens, output] with every expert on, in one pass over all rows; gates [tokens, experts], None for 1."""
    h = _hidden(x, weights.rows, weights)
    if gates is not None:
        shared, *sizes = weights.sizes
        of_row = gates.to(x.dtype).repeat_interleave(torch.tensor(sizes, device=x.device), -1, output_size=sum(sizes))
        h = h * F.pad(of_row, (shared, 0), value=1.0)
    return _compensated(x, _linear(h, weights.rows.down.T, weights.output_bias), weights)


def run_chosen(x: Tensor, weights: LayerWeights, routing: Routing, gates: Tensor | None) -> Tensor:
    """y [tokens, output] with the chosen experts on; gates [tokens, experts], None for 1.

    The tokens of each expert are gathered, so an expert that nobody chose costs nothing and its weights are not read.
    """
    shared, *experts = weights.rows.runs(weights.sizes)
    y = _shared(x, shared, weights)
    counts = routing.chosen.sum(0).tolist()
    expert, token = routing.chosen.T.nonzero(as_tuple=True)  # sorted by expert
    of_pair = None if gates is None else split(gates[token, expert, None].to(x.dtype), counts)
    for e, (rows, tokens) in enumerate(zip(experts, split(token, counts))):
        if not counts[e]:
            continue
        everywhere = counts[e] == len(x)
        h = _hidden(x, rows, weights) if everywhere else _hidden(x.index_select(0, tokens), rows, weights, tokens)
        h = h if of_pair is None else h * of_pair[e]
        down = rows.down.to(x.dtype)
        y = torch.addmm(y, h, down) if everywhere else y.index_add_(0, tokens, h @ down)
    if weights.idle is not None:
        y = torch.addmm(y, (~routing.chosen).to(x.dtype), weights.idle.to(x.dtype))
    return _compensated(x, y, weights)


def _shared(x: Tensor, rows: Rows, weights: LayerWeights) -> Tensor:
    """The part of y that is on for every token, [tokens, output], in new memory."""
    if len(rows.up):
        return _linear(_hidden(x, rows, weights), rows.down.T, weights.output_bias)
    if weights.output_bias is not None:
        return weights.output_bias.to(x.dtype).expand(len(x), -1).clone(memory_format=torch.contiguous_format)
    return x.new_zeros(len(x), rows.down.shape[1])


def _compensated(x: Tensor, y: Tensor, weights: LayerWeights) -> Tensor:
    if weights.low_rank_in is None or weights.low_rank_out is None:
        return y
    return y + _linear(_linear(x, weights.low_rank_in), weights.low_rank_out.T)


def _hidden(x: Tensor, rows: Rows, weights: LayerWeights, tokens: Tensor | None = None) -> Tensor:
    """h [tokens, neurons] of x [tokens, hidden]; tokens: which ones these are, None: all."""
    act = activation(weights.activation)
    up = _linear(x, rows.up, rows.up_bias)
    z = up if rows.gate is None else _linear(x, rows.gate, rows.gate_bias)
    h = act(z) if rows.gate is None else act(z) * up
    h = h.to(x.dtype)  # some activations give float32 under autocast
    if weights.watch is not None:
        weights.watch.see(z, h, tokens)
    return F.dropout(h, weights.hidden_dropout) if weights.hidden_dropout else h


def _linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, matrix.to(x.dtype), None if bias is None else bias.to(x.dtype))
