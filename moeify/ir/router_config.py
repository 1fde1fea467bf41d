"""The shape of a router: where scores come from. Plain data; JSON in the output folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from moeify.errors import UsageError

RouterKind = Literal["linear", "average-key", "mlp", "stochastic"]

#: How often a stochastic router draws, and what it does in inference (docs/moe-layer.md).
Scope = Literal["forward", "sequence", "token"]
Inference = Literal["random", "fixed", "merged", "ensemble"]

#: Seeds of stochastic routers lie below: an ONNX file holds them as float32.
SEEDS = 2**24


@dataclass(frozen=True)
class RouterConfig:
    """How scores [tokens, experts] come from x [tokens, hidden].

    linear:       x weight^T (+ bias)            weight [experts, hidden], bias [experts]
    average-key:  the same, and in training the weight follows the mean key row of each expert (EMoE, section 3)
    mlp:          act(x weight_in^T (+ bias_in)) weight_out^T (+ bias_out), then `output`
                  weight_in [width, hidden], weight_out [experts, width]
    stochastic:   drawn, not computed: scope, inference and seed are its alone
    """

    kind: RouterKind
    bias: bool = False
    width: int | None = None
    activation: str | None = None
    output: Literal["identity", "abs"] = "identity"
    scope: Scope = "forward"
    inference: Inference = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("scope", get_args(Scope)), ("inference", get_args(Inference))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} of a stochastic router is {value!r}: choose one of {', '.join(known)}")
        if type(self.seed) is not int or not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed of a stochastic router is {self.seed!r}: choose a whole number from 0 to {SEEDS - 1}")

    def parameters(self, hidden: int, experts: int) -> int:
        """The number of weights in its matrices."""
        if self.kind == "stochastic":
            return 0
        return experts * hidden if self.width is None else self.width * (hidden + experts)
