"""The experts of a spec as matrices, to compute with outside any host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.activations import activation
from moeify.ir.composition import Composition
from moeify.ir.feed_forward import ROWWISE, FeedForward
from moeify.ir.moe_spec import MoESpec


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """What spec.tensors gives, in float32 (docs/moe-layer.md): rows sorted, the shared expert first.

    composed: how rows come of a frozen core; those of one expert at a time are formed.
    """

    activation: str
    offsets: tuple[int, ...]
    tensors: dict[str, Tensor]
    composed: Composition | None = None

    @property
    def experts(self) -> int:
        return len(self.offsets) - 1

    def shared_output(self, x: Tensor) -> Tensor:
        """S(x), [tokens, output] for x [tokens, hidden]."""
        return self._output(x, -1)

    def output(self, x: Tensor, expert: int) -> Tensor:
        """E_e(x), [tokens, output] for x [tokens, hidden]."""
        return self._output(x, expert)

    def neuron_outputs(self, x: Tensor, expert: int) -> Tensor:
        """h(x) of the expert's rows, [tokens, rows]."""
        return self._neurons(x, self.rows(expert))

    def all_on(self, x: Tensor) -> Tensor:
        """The sum of all experts and the output bias, [tokens, output]."""
        y = self.shared_output(x)
        for expert in range(self.experts):
            y += self.output(x, expert)
        return y + self.tensors.get("output_bias", 0.0)

    def _output(self, x: Tensor, expert: int) -> Tensor:
        rows = self.rows(expert)
        return self._neurons(x, rows) @ rows["down"]

    def _neurons(self, x: Tensor, rows: dict[str, Tensor]) -> Tensor:
        def project(name: str) -> Tensor:
            return F.linear(x, rows[name], rows.get(f"{name}_bias"))

        act = activation(self.activation)
        return act(project("gate")) * project("up") if "gate" in rows else act(project("up"))

    def rows(self, expert: int) -> dict[str, Tensor]:
        """The rows of one expert by name; -1: of the shared one."""
        start, end = (0, *self.offsets)[expert + 1 : expert + 3]
        if self.composed is None or start == end:
            stored = self._under("") if self.composed is None else self._under("core.")
            return {name: stored[name][start:end] for name in ROWWISE if name in stored}
        run = start // (end - start)  # all are of the size of the core
        own = {name: tensor[run : run + 1] for name, tensor in self._under(f"{self.composed.kind}.").items()}
        return {name: self.composed.compose(name, core, own)[0] for name, core in self._under("core.").items()}

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def expert_rows(site: FeedForward, spec: MoESpec) -> ExpertRows:
    """The experts' matrices. Raises ConversionError where a weight is not finite."""
    tensors = {name: value.float() for name, value in spec.all_on().tensors(site).items()}
    return ExpertRows(site.activation, spec.offsets, tensors, None if spec.composed is None else spec.composed.rule)


def expert_norms(rows: ExpertRows, x: Tensor, of_neurons: bool = False) -> Tensor:
    """The L2 norm of each expert's output (or of its neuron outputs h), [tokens, experts]."""
    part = rows.neuron_outputs if of_neurons else rows.output
    return torch.stack([part(x, expert).norm(dim=1) for expert in range(rows.experts)], dim=1)
