"""Experts on a frozen core, each with a residual (RMoE, Wu et al. 2022, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moeify.ir.composition import Composition
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class Residual:
    """Every expert is the frozen FFN plus a residual of the same shapes, zero at first, that alone is trained."""

    kind: ClassVar[str] = "residual"
    exact: ClassVar[bool] = True

    @property
    def rule(self) -> Composition:
        """How rows come of the core and of what is trained."""
        return Composition("residual")

    def check(self, site: FeedForward) -> None:
        """Any FFN will do."""

    def own(self, site: FeedForward, runs: int, context: PassContext) -> dict[str, Tensor]:
        """What is trained and does not start as zero, by name: nothing."""
        return {}
