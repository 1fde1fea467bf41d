"""Running the experts that were chosen: pure functions of tensors (docs/moe-layer.md, 'The layer')."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.activations import activation


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """The tensors of a layer but its router, in any float dtype: they are cast to the dtype of x where they are used.

    up, gate [rows, hidden]; down [rows, output]; up_bias, gate_bias [rows]; offsets (experts + 1 ints); output_bias
    [output]; idle [experts, output]; low_rank_in [rank, hidden]; low_rank_out [rank, output]. hidden_dropout: the
    probability for h, 0 outside training.
    """

    up: Tensor
    down: Tensor
    offsets: tuple[int, ...]
    activation: str
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    output_bias: Tensor | None = None
    idle: Tensor | None = None
    low_rank_in: Tensor | None = None
    low_rank_out: Tensor | None = None
    hidden_dropout: float = 0.0

    def runs(self) -> Iterator[ExpertRows]:
        """The shared expert (possibly empty), then each routed expert: views of the weights."""
        sizes = [b - a for a, b in zip((0, *self.offsets), self.offsets)]

        def parts(tensor: Tensor | None) -> tuple[Tensor | None, ...]:
            # One split instead of many slices: its backward writes the gradient once, not once an expert.
            return (None,) * len(sizes) if tensor is None else tensor.split(sizes)

        for up, down, gate, up_bias, gate_bias in zip(
            self.up.split(sizes), self.down.split(sizes), parts(self.gate), parts(self.up_bias), parts(self.gate_bias)
        ):
            yield ExpertRows(up, down, gate, up_bias, gate_bias)

    def all_rows(self) -> ExpertRows:
        return ExpertRows(self.up, self.down, self.gate, self.up_bias, self.gate_bias)


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """A run of neurons: up, gate [neurons, hidden]; down [neurons, output]; up_bias, gate_bias [neurons]."""

    up: Tensor
    down: Tensor
    gate: Tensor | None
    up_bias: Tensor | None
    gate_bias: Tensor | None

    def hidden(self, x: Tensor, act: str, dropout: float) -> Tensor:
        """h [tokens, neurons] of x [tokens, hidden]."""
        h = _linear(x, self.up, self.up_bias)
        h = activation(act)(h) if self.gate is None else activation(act)(_linear(x, self.gate, self.gate_bias)) * h
        return F.dropout(h, dropout) if dropout else h


def run_all(x: Tensor, weights: ExpertWeights, gates: Tensor | None) -> Tensor:
    """y [tokens, output] with every expert on every token, in one pass over all rows; gates [tokens, experts] or None (1)."""
    rows = weights.all_rows()
    h = rows.hidden(x, weights.activation, weights.hidden_dropout)
    if gates is not None:
        sizes = torch.tensor([b - a for a, b in zip(weights.offsets, weights.offsets[1:])], device=gates.device)
        of_row = gates.to(x.dtype).repeat_interleave(sizes, dim=-1, output_size=weights.offsets[-1] - weights.offsets[0])
        h = h * F.pad(of_row, (weights.offsets[0], 0), value=1.0)
    return _linear(h, rows.down.T, weights.output_bias) + 0 if weights.low_rank_in is None else _always(x, h, weights)


def run_chosen(x: Tensor, weights: ExpertWeights, chosen: Tensor, gates: Tensor | None) -> Tensor:
    """y [tokens, output] of x [tokens, hidden] where `chosen` [tokens, experts] says so; gates the same shape, or None (1).

    The tokens of one expert are gathered, so that experts nobody chose cost nothing and their weights are not read.
    """
    raise NotImplementedError
