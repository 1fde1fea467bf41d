"""The shape of a router: how scores come from the layer's input. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from moeify.errors import UsageError

RouterKind = Literal["linear", "average-key", "mlp", "neuron", "spectral", "stochastic"]

#: What is done with the scores at last (docs/moe-layer.md, 'Routers').
RouterOutput = Literal["identity", "abs", "relative"]

#: How often a stochastic router draws, and what it does in inference (docs/moe-layer.md).
Scope = Literal["forward", "sequence", "token"]
Inference = Literal["random", "fixed", "merged", "ensemble"]

#: Seeds of stochastic routers lie below: an ONNX file holds them as float32.
SEEDS = 2**24


@dataclass(frozen=True)
class RouterConfig:
    """How scores [tokens, experts] come from x [tokens, hidden] (docs/moe-layer.md, 'Routers').

    linear:       x weight^T (+ bias)            weight [experts, hidden], bias [experts]
    average-key:  the same, and in training the weight follows the mean key row of each expert (EMoE, section 3)
    mlp:          act(x weight_in^T (+ bias_in)) weight_out^T (+ bias_out)
                  weight_in [width, hidden], weight_out [experts, width]
    neuron:       what one neuron of each expert says: act(x gate^T (+ gate_bias)) * (x up^T (+ up_bias)), not gated
                  act(x up^T (+ up_bias)); gate, up [experts, hidden] (CMoE, section 3.3)
    spectral:     ||x up_e^T|| (* ||x gate_e^T||, gated), up, gate [experts * width, hidden], `width` rows an expert
    stochastic:   drawn, not computed: scope, inference and seed are its alone

    unit_input: x is divided by its L2 norm first. output: scores as they are, their absolute value, or that divided by the
    token's largest. gated: of neuron and spectral alone.
    """

    kind: RouterKind
    bias: bool = False
    width: int | None = None
    activation: str | None = None
    output: RouterOutput = "identity"
    scope: Scope = "forward"
    inference: Inference = "random"
    seed: int = 0
    unit_input: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        for name, known in (("scope", get_args(Scope)), ("inference", get_args(Inference))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} of a stochastic router is {value!r}: choose one of {', '.join(known)}")
        if self.output not in get_args(RouterOutput):
            raise UsageError(f"output of a router is {self.output!r}: choose one of {', '.join(get_args(RouterOutput))}")
        if type(self.seed) is not int or not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed of a stochastic router is {self.seed!r}: choose a whole number from 0 to {SEEDS - 1}")

    def shapes(self, hidden: int, experts: int) -> dict[str, tuple[int, ...]]:
        """Its tensors by name. Raises UsageError for a kind that is not in the table, or one that lacks its width."""
        if self.kind not in get_args(RouterKind):
            raise UsageError(f"router kind is {self.kind!r}: choose one of {', '.join(get_args(RouterKind))}")
        width = self.width or 0
        if self.kind in ("mlp", "spectral") and width < 1:
            raise UsageError(
                f"width of {'an' if self.kind == 'mlp' else 'a'} {self.kind} router is {self.width}: choose 1 or more"
            )
        found: dict[str, tuple[int, ...]] = {}
        match self.kind:
            case "linear" | "average-key":
                found = {"weight": (experts, hidden), "bias": (experts,)}
            case "mlp":
                found = {"weight_in": (width, hidden), "bias_in": (width,)}
                found |= {"weight_out": (experts, width), "bias_out": (experts,)}
            case "neuron":
                found = {"up": (experts, hidden), "up_bias": (experts,)}
                found |= {"gate": (experts, hidden), "gate_bias": (experts,)} if self.gated else {}
            case "spectral":
                found = dict.fromkeys(("up", "gate")[: 1 + self.gated], (experts * width, hidden))
        return {name: shape for name, shape in found.items() if self.bias or len(shape) == 2}

    def parameters(self, hidden: int, experts: int) -> int:
        """The number of weights in its matrices."""
        return sum(prod(shape) for shape in self.shapes(hidden, experts).values() if len(shape) == 2)
