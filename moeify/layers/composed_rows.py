"""Rows on one frozen core (docs/moe-layer.md, 'Composed rows'): run without being formed, or folded into plain rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.composition import Composition
from moeify.layers.gathering import gathered, picked
from moeify.layers.hidden_sparsity import HiddenSparsity
from moeify.layers.rows import Rows, linear


@dataclass(frozen=True, eq=False)
class ComposedRows:
    """rule: how rows are composed. core: the rows that all runs share. own: what each run adds, by name, [runs, ...].

    shared: run 0 is the shared expert; else it is the first routed one.
    """

    rule: Composition
    core: Rows
    own: Mapping[str, Tensor]
    shared: bool

    def output(
        self, x: Tensor, chosen: Tensor | None, gates: Tensor | None, act: Callable[[Tensor], Tensor], dropout: float,
        watch: HiddenSparsity | None = None,
    ) -> Tensor:  # fmt: skip
        """The shared expert + the sum of gate x expert over the chosen ones, [tokens, output] of x [tokens, hidden].

        chosen: bool [tokens, experts], None for all; gates [tokens, experts], None for 1. The core meets x once, and once the
        sum of what all experts put into its second matrix; what is idle is not read. watch: sees hidden activations.
        """
        core = self.core
        up, gate = linear(x, core.up, core.up_bias), None if core.gate is None else linear(x, core.gate, core.gate_bias)
        total, y = torch.zeros_like(up), x.new_zeros(len(x), core.down.shape[1])
        for own, tokens, factor in self._work(x, chosen, gates):
            given = picked(x, tokens)
            of_up = picked(up, tokens) + self._added(own, "up", given)
            z = of_up if gate is None else picked(gate, tokens) + self._added(own, "gate", given)
            h = act(z) if gate is None else act(z) * of_up
            h = h.to(x.dtype)  # some activations give float32 under autocast
            if watch is not None:
                watch.see(z, h, tokens)
            h = F.dropout(h, dropout) if dropout else h
            h = h if factor is None else h * factor
            said = self._added(own, "down", h)
            if tokens is None:
                total, y = total + h, y + said
            else:
                total, y = total.index_add_(0, tokens, h), y.index_add_(0, tokens, said)
        return torch.addmm(y, total, core.down.to(x.dtype))

    def run(self, number: int) -> Rows:
        """The rows of one run as plain ones."""
        return self._folded({name: tensor[number : number + 1] for name, tensor in self.own.items()})

    def folded(self) -> Rows:
        """The rows of all runs as plain ones, [runs * neurons, ...], in new memory; gradients flow back to what is trained."""
        return self._folded(self.own)

    def merged(self) -> Rows:
        """The rows of the shared expert, and row by row the mean of the routed ones."""
        experts = {name: tensor[self.shared :] for name, tensor in self.own.items()}
        mean = self._rows(lambda name, core: self.rule.compose_mean(name, core, experts))
        return self.run(0).joined(mean) if self.shared else mean

    def _folded(self, own: Mapping[str, Tensor]) -> Rows:
        return self._rows(lambda name, core: self.rule.compose(name, core, own).flatten(0, 1))

    def _rows(self, compose: Callable[[str, Tensor], Tensor]) -> Rows:
        core = self.core

        def optional(name: str, tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else compose(name, tensor)

        biases = optional("up_bias", core.up_bias), optional("gate_bias", core.gate_bias)
        return Rows(compose("up", core.up), compose("down", core.down), optional("gate", core.gate), *biases)

    def _work(
        self, x: Tensor, chosen: Tensor | None, gates: Tensor | None
    ) -> Iterator[tuple[Mapping[str, Tensor], Tensor | None, Tensor | None]]:
        """(own tensors, tokens, gate of each) of every run that has work; tokens None for all, gate None for 1."""
        # One unbind a tensor, for its backward writes one gradient, not one an expert.
        runs = [dict(zip(self.own, tensors)) for tensors in zip(*(tensor.unbind() for tensor in self.own.values()))]
        if self.shared:
            yield runs.pop(0), None, None
        for expert, tokens, factor in gathered(len(runs), chosen, gates, x.dtype):
            yield runs[expert], tokens, factor

    def _added(self, own: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
        """What one run adds to the product of x [tokens, ...] with the core's matrix of that name."""
        if self.rule.kind == "lora":
            return linear(linear(x, own[f"{name}_a"]) * self.rule.scale, own[f"{name}_b"])
        return linear(x, own[name].T if name == "down" else own[name], own.get(f"{name}_bias"))


def plain_rows(rows: Rows | ComposedRows) -> Rows:
    """The rows as they are, or folded."""
    return rows.folded() if isinstance(rows, ComposedRows) else rows
