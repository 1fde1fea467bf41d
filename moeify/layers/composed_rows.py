"""Rows on one frozen core (docs/moe-layer.md, 'Composed rows'): run without being formed, or folded into plain rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moeify.ir.composition import Composition
from moeify.layers.expert_tokens import expert_tokens, picked
from moeify.layers.rows import Rows, linear

#: h of the pre-activation that decides, of the other one of a gated FFN, and of the tokens (None: all); as `experts` has it.
Fired = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class ComposedRows:
    """rule: how rows are composed. core: the rows that all runs share. own: what each run adds, by name, [runs, ...].

    shared: run 0 is the shared expert; else it is the first routed one.
    """

    rule: Composition
    core: Rows
    own: Mapping[str, Tensor]
    shared: bool

    def output(self, x: Tensor, chosen: Tensor | None, gates: Tensor | None, fired: Fired) -> Tensor:
        """The shared expert + the sum of gate x expert over the chosen ones, [tokens, output] of x [tokens, hidden].

        chosen: bool [tokens, experts], None for all; gates [tokens, experts], None for 1. The core meets x once, and once the
        sum of what all experts put into its second matrix; what is idle is not read.
        """
        core = self.core
        up, gate = linear(x, core.up, core.up_bias), None if core.gate is None else linear(x, core.gate, core.gate_bias)
        total, y = torch.zeros_like(up), x.new_zeros(len(x), core.down.shape[1])
        for own, tokens, factor in self._work(x, chosen, gates):
            given = picked(x, tokens)
            of_up = picked(up, tokens) + self._added(own, "up", given)
            if gate is None:
                h = fired(of_up, None, tokens)
            else:
                h = fired(picked(gate, tokens) + self._added(own, "gate", given), of_up, tokens)
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
        experts = len(next(iter(self.own.values()))) - self.shared
        mean = self.merged_by(self.core.up.new_full((1, experts), 1 / experts))
        return self.shared_rows().joined(mean.mapped(lambda value: value[0]))

    def merged_by(self, shares: Tensor) -> Rows:
        """Row by row the sums of the routed experts' rows by shares [n, experts], which sum to 1: tensors with n in front."""
        experts = {name: tensor[self.shared :].to(shares.dtype) for name, tensor in self.own.items()}
        return self.core.mapped_by_name(lambda name, core: self.rule.merge(name, core.to(shares.dtype), experts, shares))

    def shared_rows(self) -> Rows:
        """Those of the shared expert; without one none."""
        return self.run(0) if self.shared else self.core.mapped(lambda value: value[:0])

    def _folded(self, own: Mapping[str, Tensor]) -> Rows:
        return self.core.mapped_by_name(lambda name, core: self.rule.compose(name, core, own).flatten(0, 1))

    def _work(
        self, x: Tensor, chosen: Tensor | None, gates: Tensor | None
    ) -> Iterator[tuple[Mapping[str, Tensor], Tensor | None, Tensor | None]]:
        """(own tensors, tokens, gate of each) of every run that has work; tokens None for all, gate None for 1."""
        # One unbind a tensor, for its backward writes one gradient, not one an expert.
        runs = [dict(zip(self.own, tensors)) for tensors in zip(*(tensor.unbind() for tensor in self.own.values()))]
        if self.shared:
            yield runs.pop(0), None, None
        for expert, tokens, factor in expert_tokens(len(runs), chosen, gates, x.dtype):
            yield runs[expert], tokens, factor

    def _added(self, own: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
        """What one run adds to the product of x [tokens, ...] with the core's matrix of that name."""
        if self.rule.kind == "lora":
            return linear(linear(x, own[f"{name}_a"]) * self.rule.scale, own[f"{name}_b"])
        return linear(x, own[name].T if name == "down" else own[name], own.get(f"{name}_bias"))


def plain_rows(rows: Rows | ComposedRows) -> Rows:
    """The rows as they are, or folded."""
    return rows.folded() if isinstance(rows, ComposedRows) else rows
