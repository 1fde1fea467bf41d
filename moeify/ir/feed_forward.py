"""A site: where a feed-forward network stands in its host, with lazy handles to its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from moeify.ir.activations import activation
from moeify.ir.weight_place import WeightPlace

#: Gives a tensor by the name of a parameter.
ReadTensor = Callable[[str], Tensor]

#: How the eager model is rewritten (see docs/decisions/0001-four-ways-of-rewriting.md); "graph": an ONNX graph instead.
Way = Literal["submodule", "identity", "stash", "weights", "graph"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A lazy handle to one parameter of the host, or to a run of its rows. A 1x1 convolution's kernel counts as its matrix.

    `read()` gives the neuron-major form: a matrix of shape [neurons, hidden] (up, gate) or [neurons, output] (down), a
    bias of shape [neurons] or [output]. Nothing is held in memory until then.
    left: is told of what `read` gave once a copy was made of it, so that the host can let go of values that lie in files.
    """

    parameter: str
    shape: tuple[int, ...]
    load: ReadTensor = field(repr=False)
    rows: tuple[int, int] | None = None  # along the neuron axis, after transposing
    transposed: bool = False  # the host stores the transpose of the neuron-major form
    left: Callable[[Tensor], None] = field(default=lambda _: None, repr=False)

    def read(self) -> Tensor:
        """The values, detached, on the CPU, in the host's dtype; may share memory with the host: never write to it."""
        return self.place.view(self.load(self.parameter).detach().cpu())

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Tensor:
        """What `copy` makes of `read()`. Once it has, the host may let go of the values."""
        values = self.read()
        found = copy(values)
        if found is not values:
            self.left(values)
        return found

    @property
    def place(self) -> WeightPlace:
        """The same handle without its reader: plain data."""
        return WeightPlace(self.parameter, self.shape, self.rows, self.transposed)


#: The weights that have a row for each neuron, by the names that they have everywhere; and all that an FFN may have.
ROWWISE = ("up", "gate", "up_bias", "gate_bias", "down")
ROLES = (*ROWWISE, "output_bias")


@dataclass(frozen=True)
class Rewrite:
    """How a finished MoE layer is put into the eager model; plain data, kept in the output folder.

    `modules` names what is touched, by role: "submodule" -> {ffn}; "identity" and "stash" -> {up, [gate], [activation],
    down}; "weights" -> {owner, up, [gate], down, [biases]} with parameter names relative to the owner; "graph" -> {x, y}, the
    names of values of an ONNX graph, {x@1, y@1} and so on for further calls.
    `hidden_dropout` and `output_dropout` are probabilities that the new layer must apply itself in training.
    `channels`: the features stand in dim 1, [batch, hidden, ...], as 1x1 convolutions have them; else in the last dimension.
    """

    way: Way
    modules: Mapping[str, str]
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    channels: bool = False

    def to_json(self) -> dict[str, Any]:
        """Its fields; `channels` only where it is true, so that folders older than it say the same."""
        return {name: value for name, value in asdict(self).items() if name != "channels" or value}


@dataclass(frozen=True, eq=False)
class FeedForward:
    """One feed-forward network of the host, in execution order of its first call.

    path: the module path that names it (the FFN module, or the one that owns its matrices); unique among sites.
    neurons, hidden, output: sizes. calls: how often one forward runs it (2 and more: a shared FFN).
    """

    path: str
    activation: str
    hidden: int
    neurons: int
    output: int
    up: Weight
    down: Weight
    rewrite: Rewrite
    gate: Weight | None = None
    up_bias: Weight | None = None
    gate_bias: Weight | None = None
    output_bias: Weight | None = None
    calls: int = 1

    @property
    def gated(self) -> bool:
        return self.gate is not None

    @property
    def kind(self) -> Literal["gated", "two-matrix"]:
        return "gated" if self.gated else "two-matrix"

    @property
    def parameters(self) -> int:
        """The number of weights in the matrices, biases left out."""
        return self.neurons * (self.hidden * (2 if self.gated else 1) + self.output)

    @property
    def vectors(self) -> int:
        """The number of values in the biases."""
        return sum(bias.shape[0] for bias in (self.up_bias, self.gate_bias, self.output_bias) if bias is not None)

    @property
    def places(self) -> dict[str, WeightPlace]:
        """Where its weights stand, by role."""
        return {role: weight.place for role in ROLES if (weight := getattr(self, role)) is not None}

    def rowwise(self) -> dict[str, Weight]:
        """The handles that there are of ROWWISE, by name."""
        return {name: handle for name in ROWWISE if (handle := getattr(self, name)) is not None}

    def keys(self) -> Tensor:
        """The rows that decide whether a neuron fires, [neurons, hidden]: gate rows if gated, else up rows."""
        return (self.gate or self.up).read()

    def neuron_outputs(self, x: Tensor, neurons: Tensor | None = None) -> Tensor:
        """h(x), [tokens, neurons] for x [tokens, hidden], in x's dtype; `neurons` (indices) picks some of them."""

        def project(weight: Weight, bias: Weight | None) -> Tensor:
            matrix = _picked(weight.read(), neurons).to(x.dtype)
            return torch.nn.functional.linear(x, matrix, None if bias is None else _picked(bias.read(), neurons).to(x.dtype))

        act = activation(self.activation)
        up = project(self.up, self.up_bias)
        return act(up) if self.gate is None else act(project(self.gate, self.gate_bias)) * up

    def forward(self, x: Tensor) -> Tensor:
        """The dense output, [tokens, output] for x [tokens, hidden], in x's dtype."""
        y = self.neuron_outputs(x) @ self.down.read().to(x.dtype)
        return y if self.output_bias is None else y + self.output_bias.read().to(x.dtype)


def _picked(value: Tensor, neurons: Tensor | None) -> Tensor:
    return value if neurons is None else value[neurons]


@dataclass(frozen=True)
class Refusal:
    """A place that looks like a feed-forward network but is left alone, and why (one sentence)."""

    path: str
    reason: str
