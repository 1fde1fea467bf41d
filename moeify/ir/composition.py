"""Experts on one frozen core (docs/moe-layer.md, 'Composed rows'): what is stored, and how rows come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from moeify.errors import UsageError

CompositionKind = Literal["residual", "lora"]


@dataclass(frozen=True)
class Composition:
    """kind: what a run of rows adds to the core: a residual of the core's own shapes, or low-rank factors. rank, alpha: of the
    factors, whose product counts alpha / rank; 0 for residuals."""

    kind: CompositionKind
    rank: int = 0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(CompositionKind):
            raise UsageError(f"composition is {self.kind!r}: choose one of {', '.join(get_args(CompositionKind))}")
        if self.kind == "lora" and not (self.rank >= 1 and 0 < self.alpha < float("inf")):
            raise UsageError(f"rank of lora is {self.rank} and alpha {self.alpha}: choose a rank from 1 and an alpha above 0")
        if self.kind == "residual" and (self.rank, self.alpha) != (0, 0.0):
            raise UsageError(f"rank {self.rank} and alpha {self.alpha} are for lora: leave both at 0 for residual")

    def __str__(self) -> str:
        return f"lora of rank {self.rank}, alpha {self.alpha:g}" if self.kind == "lora" else self.kind

    @property
    def scale(self) -> float:
        """What the product of two factors is multiplied by."""
        return self.alpha / self.rank

    def own_shapes(self, core: Mapping[str, tuple[int, ...]], runs: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what is trained, by name, for a core whose tensors have those shapes."""
        if self.kind == "residual":
            return {name: (runs, *shape) for name, shape in core.items()}
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in core.items():
            if len(shape) == 2:  # a bias is the core's alone
                outer, inner = reversed(shape) if name == "down" else shape
                found |= {f"{name}_a": (runs, self.rank, inner), f"{name}_b": (runs, outer, self.rank)}
        return found

    def compose(self, name: str, core: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Rows [runs, neurons, ...] of the core's tensor `name` [neurons, ...] and of what is trained, by name, [runs, ...];
        a run is sliced off by slicing every tensor of `own`."""
        if self.kind == "residual":
            return core + own[name]
        if core.ndim == 1:
            return core.expand(len(own["up_a"]), -1)
        product = self.scale * (own[f"{name}_b"] @ own[f"{name}_a"])
        return core + (product.mT if name == "down" else product)

    def merge(self, name: str, core: Tensor, own: Mapping[str, Tensor], shares: Tensor) -> Tensor:
        """The rows of all runs summed by shares [n, runs], which sum to 1: [n, neurons, ...], without the rows of each run."""
        if self.kind == "residual":
            return core + (shares @ own[name].flatten(1)).view(len(shares), *core.shape)
        if core.ndim == 1:
            return core.expand(len(shares), -1)
        a, b = own[f"{name}_a"], own[f"{name}_b"] * shares.view(*shares.shape, 1, 1)
        product = self.scale * (b.movedim(1, 2).flatten(2) @ a.flatten(0, 1))  # one matrix of rank runs x rank
        return core + (product.mT if name == "down" else product)


def core_shapes(
    hidden: int, neurons: int, output: int, *, gated: bool, up_bias: bool, gate_bias: bool
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a core, by name."""
    found: dict[str, tuple[int, ...]] = {"up": (neurons, hidden), "down": (neurons, output)}
    found |= {"gate": (neurons, hidden)} if gated else {}
    found |= {"up_bias": (neurons,)} if up_bias else {}
    return found | ({"gate_bias": (neurons,)} if gate_bias else {})


def count(shapes: Mapping[str, tuple[int, ...]], *, of_biases: bool = False) -> int:
    """The number of values in the matrices, or in the biases, of those shapes by name."""
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if name.endswith("_bias") == of_biases)
