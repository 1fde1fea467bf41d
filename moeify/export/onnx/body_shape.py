"""What tells one function body of `moeify::MoE` from another."""

from __future__ import annotations

from dataclasses import dataclass

from moeify.errors import UsageError
from moeify.ir.activations import activation
from moeify.ir.moe_config import GATE_RULES

DOMAIN = "moeify"
OPERATOR = "MoE"
VERSION = 1

#: The inputs of the operator in their order (docs/moe-layer.md); the first five are required.
INPUTS = (
    "x", "scores", "up", "down", "offsets", "k", "threshold", "gate", "up_bias", "gate_bias", "selection_bias",
    "output_bias", "idle", "low_rank_in", "low_rank_out",
)  # fmt: skip
REQUIRED = INPUTS[:5]
OPTIONAL = INPUTS[5:]


@dataclass(frozen=True)
class BodyShape:
    """Everything that the operations of a body depend on. Values (k, sizes of the experts, weights) are inputs.

    experts: their number. shared: is there a shared expert (offsets[0] > 0)? present: the optional inputs that are given.
    Raises UsageError for names that are not in the tables.
    """

    experts: int
    activation: str
    shared: bool = False
    gate_rule: str = "one"
    normalize: bool = False
    present: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        activation(self.activation)
        if self.gate_rule not in GATE_RULES:
            raise UsageError(f"gate_rule is {self.gate_rule!r}: choose one of {', '.join(GATE_RULES)}")
        if self.experts < 1:
            raise UsageError(f"experts is {self.experts}: it takes at least 1")
        if unknown := self.present - set(OPTIONAL):
            raise UsageError(f"not an optional input of {DOMAIN}::{OPERATOR}: {', '.join(sorted(unknown))}")

    @property
    def gated(self) -> bool:
        return "gate" in self.present

    @property
    def choosing(self) -> bool:
        """Is there a rule that leaves experts out?"""
        return bool({"k", "threshold"} & self.present)

    @property
    def overload(self) -> str:
        """The name of the plain body, for FunctionProto and NodeProto; equal for equal shapes only."""
        parts = [f"{self.experts}x", self.activation, self.gate_rule]
        parts += ["normalized"] if self.normalize else []
        parts += ["shared"] if self.shared else []
        parts += [name for name in OPTIONAL if name in self.present]
        return "-".join(parts)
