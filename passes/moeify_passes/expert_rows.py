"""The experts of a spec as matrices, to compute with outside any host."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

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

    def hidden(self, x: Tensor) -> Tensor:
        """h(x) of all rows, [tokens, rows]."""
        return self._neurons(x, self.all_rows())

    def all_on(self, x: Tensor) -> Tensor:
        """The sum of all experts and the output bias, [tokens, output]."""
        bias = self.tensors.get("output_bias", torch.zeros(()))
        if self.composed is None:
            return self.hidden(x) @ self.tensors["down"] + bias
        return sum((self._output(x, expert) for expert in range(-1, self.experts)), start=bias)

    def gated_outputs(self, x: Tensor, gates: Tensor) -> Tensor:
        """h(x) of all rows times the gate of the expert that each is in, 1 in the shared one: [tokens, rows] of gates [tokens,
        experts]. A gate of 0 gives 0 whatever h is."""
        return self.gated(self.hidden(x), gates)

    def gated(self, h: Tensor, gates: Tensor) -> Tensor:
        """The same of h = hidden(x)."""
        sizes = torch.tensor(self.offsets).diff()
        of_rows = gates.repeat_interleave(sizes, dim=1, output_size=int(sizes.sum()))
        of_rows = F.pad(of_rows, (self.offsets[0], 0), value=1.0)
        return (h * of_rows).masked_fill_(of_rows == 0, 0.0)

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

    def all_rows(self) -> dict[str, Tensor]:
        """All rows by name, the shared expert first."""
        if self.composed is None:
            return {name: self.tensors[name] for name in ROWWISE if name in self.tensors}
        parts = [self.rows(expert) for expert in range(-1, self.experts)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def expert_rows(site: FeedForward, spec: MoESpec) -> ExpertRows:
    """The experts' matrices. Raises ConversionError where a weight is not finite."""
    found = spec.all_on().tensors(site)
    tensors = {name: found.pop(name).float() for name in tuple(found)}  # one after another: all of both is a layer more
    return ExpertRows(site.activation, spec.offsets, tensors, None if spec.composed is None else spec.composed.rule)


def expert_norms(rows: ExpertRows, x: Tensor, of_neurons: bool = False) -> Tensor:
    """The L2 norm of each expert's output (or of its neuron outputs h), [tokens, experts]."""
    if of_neurons:
        return torch.stack([rows.neuron_outputs(x, expert).norm(dim=1) for expert in range(rows.experts)], dim=1)
    if rows.composed is None and _fine(rows):
        return squared_norms(rows, x).sqrt_()
    return torch.stack([rows.output(x, expert).norm(dim=1) for expert in range(rows.experts)], dim=1)


def expert_masses(rows: ExpertRows, x: Tensor) -> Tensor:
    """The sum of |h_i| over each expert's neurons, [tokens, experts]."""
    return torch.stack([rows.neuron_outputs(x, expert).abs().sum(1) for expert in range(rows.experts)], dim=1)


def squared_norms(rows: ExpertRows, x: Tensor) -> Tensor:
    """||E_e(x)||^2, [tokens, experts]."""
    if rows.composed is not None or not _fine(rows):
        return expert_norms(rows, x).square_()
    return norms_of_hidden(rows, rows.hidden(x))


def norms_of_hidden(rows: ExpertRows, h: Tensor) -> Tensor:
    """The same for h(x) of all rows, [tokens, rows], of experts that share no core."""
    found, down = [], rows.tensors["down"]
    if rows.experts == len(down) - rows.offsets[0]:  # of single neurons
        return h[:, rows.offsets[0] :].square() * down[rows.offsets[0] :].square().sum(1)
    for start, end in pairwise(rows.offsets):
        own, out = h[:, start:end], down[start:end]
        few = 2 * len(out) <= down.shape[1]  # then h (down down^T) h^T is less work
        found.append((own @ (out @ out.T)).mul_(own).sum(1) if few else (own @ out).square_().sum(1))
    return torch.stack(found, dim=1).clamp_(min=0)


def _fine(rows: ExpertRows) -> bool:
    """Have routed experts so few rows, on average, that products of rows are less work than outputs?"""
    return 2 * (rows.offsets[-1] - rows.offsets[0]) <= rows.experts * rows.tensors["down"].shape[1]
