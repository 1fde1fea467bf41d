"""The neurons of experts as matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import split_with_sizes as split
from torch.nn import functional as F


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

    def picked(self, places: Tensor) -> Rows:
        """The rows at those places (int64 indices)."""
        fields = (self.gate, self.up_bias, self.gate_bias)
        others = (None if tensor is None else tensor.index_select(0, places) for tensor in fields)
        return Rows(self.up.index_select(0, places), self.down.index_select(0, places), *others)

    def runs(self, sizes: list[int]) -> list[Rows]:
        """Runs of those sizes, as views. One split a tensor, for its backward writes one gradient, not one an expert."""

        def parts(tensor: Tensor | None) -> Sequence[Tensor | None]:
            return (None,) * len(sizes) if tensor is None else split(tensor, sizes)

        fields = (parts(self.gate), parts(self.up_bias), parts(self.gate_bias))
        return [Rows(*run) for run in zip(split(self.up, sizes), split(self.down, sizes), *fields)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The same tensors, each changed so."""
        return self.mapped_by_name(lambda _, value: change(value))

    def mapped_by_name(self, change: Callable[[str, Tensor], Tensor]) -> Rows:
        """The same tensors, each changed so by its name."""

        def optional(name: str, value: Tensor | None) -> Tensor | None:
            return None if value is None else change(name, value)

        biases = optional("up_bias", self.up_bias), optional("gate_bias", self.gate_bias)
        return Rows(change("up", self.up), change("down", self.down), optional("gate", self.gate), *biases)

    def joined(self, other: Rows) -> Rows:
        """These rows, then those of the other, which has the same tensors."""
        return self.mapped_by_name(lambda name, value: torch.cat((value, getattr(other, name))))


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x matrix^T + bias, in x's dtype."""
    return F.linear(x, matrix.to(x.dtype), None if bias is None else bias.to(x.dtype))
