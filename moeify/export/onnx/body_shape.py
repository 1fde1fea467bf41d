"""What tells one function body of `moeify::MoE` from another."""

from __future__ import annotations

from dataclasses import dataclass

from moeify.errors import UsageError
from moeify.ir.activations import activation
from moeify.ir.moe_config import GATE_RULES

DOMAIN = "moeify"
OPERATOR = "MoE"
QUANTISED = "QMoE"
VERSION = 1

#: The inputs of the operator in their order (docs/moe-layer.md); the first five are required.
INPUTS = (
    "x", "scores", "up", "down", "offsets", "k", "threshold", "gate", "up_bias", "gate_bias", "selection_bias",
    "output_bias", "idle", "low_rank_in", "low_rank_out",
)  # fmt: skip
REQUIRED = INPUTS[:5]
OPTIONAL = INPUTS[5:]
#: The same of `moeify::QMoE`; the first seven are required.
QUANTISED_INPUTS = (
    "x", "scores", "up", "up_scale", "down", "down_scale", "offsets", "k", "threshold", "gate", "gate_scale", "up_bias",
    "gate_bias", "selection_bias", "output_bias", "idle", "low_rank_in", "low_rank_out",
)  # fmt: skip
#: Matrices that QMoE stores as integers, each beside its NAME_scale.
INTEGERS = ("up", "down", "gate")
#: Weights that share a scale in 4 bits; in 8 bits it is a row.
BLOCK = 32


@dataclass(frozen=True)
class BodyShape:
    """Everything that the operations of a body depend on. Values (k, sizes of the experts, weights) are inputs.

    experts: their number. shared: is there a shared expert (offsets[0] > 0)? present: the optional inputs of MoE that are
    given. bits: 8 or 4 of the weights of QMoE, 0 for MoE.
    Raises UsageError for names that are not in the tables.
    """

    experts: int
    activation: str
    shared: bool = False
    gate_rule: str = "one"
    normalize: bool = False
    present: frozenset[str] = frozenset()
    bits: int = 0

    def __post_init__(self) -> None:
        activation(self.activation)
        if self.gate_rule not in GATE_RULES:
            raise UsageError(f"gate_rule is {self.gate_rule!r}: choose one of {', '.join(GATE_RULES)}")
        if self.experts < 1:
            raise UsageError(f"experts is {self.experts}: it takes at least 1")
        if self.bits not in (0, 4, 8):
            raise UsageError(f"bits is {self.bits}: it is 8 or 4, or 0 for floats")
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
    def operator(self) -> str:
        return QUANTISED if self.bits else OPERATOR

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs of the operator in their order."""
        return QUANTISED_INPUTS if self.bits else INPUTS

    @property
    def given(self) -> frozenset[str]:
        """The inputs that a node of this shape has."""
        scales = {f"{name}_scale" for name in INTEGERS if name != "gate" or self.gated} if self.bits else set()
        return self.present | set(REQUIRED) | scales

    @property
    def overload(self) -> str:
        """The name of the plain body, for FunctionProto and NodeProto; equal for equal shapes only."""
        parts = [f"{self.experts}x", self.activation, self.gate_rule]
        parts += ["normalized"] if self.normalize else []
        parts += ["shared"] if self.shared else []
        parts += [name for name in OPTIONAL if name in self.present]
        parts += [f"int{self.bits}"] if self.bits else []
        return "-".join(parts)
