"""The experts of a spec as matrices, to compute with outside any host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.activations import activation
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """What spec.tensors gives, in float32 (docs/moe-layer.md): rows sorted, the shared expert first."""

    activation: str
    offsets: tuple[int, ...]
    tensors: dict[str, Tensor]

    @property
    def experts(self) -> int:
        return len(self.offsets) - 1

    def shared_output(self, x: Tensor) -> Tensor:
        """S(x), [tokens, output] for x [tokens, hidden]."""
        return self._output(x, 0, self.offsets[0])

    def output(self, x: Tensor, expert: int) -> Tensor:
        """E_e(x), [tokens, output] for x [tokens, hidden]."""
        return self._output(x, self.offsets[expert], self.offsets[expert + 1])

    def neuron_outputs(self, x: Tensor, expert: int) -> Tensor:
        """h(x) of the expert's rows, [tokens, rows]."""
        return self._neurons(x, self.offsets[expert], self.offsets[expert + 1])

    def hidden(self, x: Tensor) -> Tensor:
        """h(x) of all rows, [tokens, rows]."""
        return self._neurons(x, 0, self.offsets[-1])

    def all_on(self, x: Tensor) -> Tensor:
        """The sum of all experts and the output bias, [tokens, output]."""
        return self._output(x, 0, self.offsets[-1]) + self.tensors.get("output_bias", 0.0)

    def gated_outputs(self, x: Tensor, gates: Tensor) -> Tensor:
        """h(x) of all rows times the gate of the expert that each is in, 1 in the shared one: [tokens, rows] of gates [tokens,
        experts]. A gate of 0 gives 0 whatever h is."""
        sizes = torch.tensor(self.offsets).diff()
        of_rows = gates.repeat_interleave(sizes, dim=1, output_size=int(sizes.sum()))
        of_rows = F.pad(of_rows, (self.offsets[0], 0), value=1.0)
        return (self.hidden(x) * of_rows).masked_fill_(of_rows == 0, 0.0)

    def _output(self, x: Tensor, start: int, end: int) -> Tensor:
        return self._neurons(x, start, end) @ self.tensors["down"][start:end]

    def _neurons(self, x: Tensor, start: int, end: int) -> Tensor:
        def project(name: str) -> Tensor:
            bias = self.tensors.get(f"{name}_bias")
            return F.linear(x, self.tensors[name][start:end], None if bias is None else bias[start:end])

        act = activation(self.activation)
        return act(project("gate")) * project("up") if "gate" in self.tensors else act(project("up"))


def expert_rows(site: FeedForward, spec: MoESpec) -> ExpertRows:
    """The experts' matrices. Raises ConversionError where a weight is not finite."""
    tensors = {name: value.float() for name, value in spec.all_on().tensors(site).items()}
    return ExpertRows(site.activation, spec.offsets, tensors)


def expert_norms(rows: ExpertRows, x: Tensor, of_neurons: bool = False) -> Tensor:
    """The L2 norm of each expert's output (or of its neuron outputs h), [tokens, experts]."""
    if rows.experts == rows.offsets[-1] - rows.offsets[0] and not of_neurons:
        return squared_norms(rows, x).sqrt_()
    part = rows.neuron_outputs if of_neurons else rows.output
    return torch.stack([part(x, expert).norm(dim=1) for expert in range(rows.experts)], dim=1)


def expert_masses(rows: ExpertRows, x: Tensor) -> Tensor:
    """The sum of |h_i| over each expert's neurons, [tokens, experts]."""
    return torch.stack([rows.neuron_outputs(x, expert).abs().sum(1) for expert in range(rows.experts)], dim=1)


def squared_norms(rows: ExpertRows, x: Tensor) -> Tensor:
    """||E_e(x)||^2, [tokens, experts]."""
    if rows.experts == rows.offsets[-1] - rows.offsets[0]:  # a neuron each
        h = rows.hidden(x)[:, rows.offsets[0] :]
        return h.square_() * rows.tensors["down"][rows.offsets[0] :].square().sum(1)
    return expert_norms(rows, x).square_()
