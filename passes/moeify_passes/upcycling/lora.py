"""Experts on a frozen core, each with low-rank adapters (Hu et al. 2022, section 4; MixLoRA, Li et al. 2024, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.composition import Composition
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class Lora:
    """Every expert is the frozen FFN plus the product of two small matrices at each of its matrices, which alone are trained.

    rank: of the products. alpha: they count alpha / rank. The second factor is zero at first; the first is drawn for each
    expert, uniform within 1 / sqrt(width of what it reads).
    """

    rank: int = 8
    alpha: float = 16.0

    kind: ClassVar[str] = "lora"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"lora.rank is {self.rank}: choose 1 or more")
        if not 0 < self.alpha < float("inf"):
            raise UsageError(f"lora.alpha is {self.alpha}: choose a number above 0, such as {2 * self.rank}")

    @property
    def rule(self) -> Composition:
        """How rows come of the core and of what is trained."""
        return Composition("lora", self.rank, self.alpha)

    def check(self, site: FeedForward) -> None:
        """Raises UsageError for a rank above that of the FFN's matrices."""
        most = min(site.hidden, site.neurons, site.output)
        if self.rank > most:
            raise UsageError(
                f"lora.rank is {self.rank} but the matrices of {site.path} ({site.hidden} -> {site.neurons} -> {site.output}) "
                f"have rank {most} at most: choose 1 to {most}"
            )

    def own(self, site: FeedForward, runs: int, context: PassContext) -> dict[str, Tensor]:
        """What is trained and does not start as zero, by name: the first factors, [runs, rank, hidden or neurons]."""
        generator = context.generator("upcycling/lora", site)
        widths = {"up": site.hidden, "gate": site.hidden, "down": site.neurons}

        def drawn(width: int) -> Tensor:
            uniform = torch.rand(runs, self.rank, width, generator=generator)
            return (2 * uniform - 1) / math.sqrt(width)

        return {f"{name}_a": drawn(width) for name, width in widths.items() if name != "gate" or site.gated}
