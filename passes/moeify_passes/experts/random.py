"""Experts by chance: the baseline of every split (LLaMA-MoE's "independent, random")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.ir.facts import Fact
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class Random:
    """Neurons are shuffled, then cut."""

    kind: ClassVar[str] = "random"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes."""
        order = torch.randperm(len(neurons), generator=context.generator("experts/random", site))
        return tuple(torch.split(neurons[order], list(sizes)))
