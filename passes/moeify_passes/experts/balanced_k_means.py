"""Experts by weights: neurons whose rows point the same way fire together (MoEfication, section 3.2; EMoE, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.errors import UsageError
from moeify.ir.facts import Fact
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.experts.k_means import balanced_k_means


@dataclass(frozen=True)
class BalancedKMeans:
    """Balanced k-means on rows of weights. Needs no data.

    rows: "key" (gate rows of a gated FFN, else up rows), "up", or "down". normalize: to L2 norm 1 first, as in both papers.
    iterations: at most so many.
    """

    rows: Literal["key", "up", "down"] = "key"
    normalize: bool = True
    iterations: int = 20

    kind: ClassVar[str] = "balanced-k-means"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.rows not in ("key", "up", "down"):
            raise UsageError(f"balanced-k-means.rows is {self.rows!r}: choose key, up or down")
        if self.iterations < 1:
            raise UsageError(f"balanced-k-means.iterations is {self.iterations}: choose 1 or more")

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes."""
        matrix = site.keys() if self.rows == "key" else (site.up if self.rows == "up" else site.down).read()
        rows = matrix[neurons].float()
        if self.normalize:
            rows = F.normalize(rows, dim=1)
        found = balanced_k_means(rows, torch.tensor(sizes), self.iterations, context.generator("experts/k-means", site))
        context.measure(site, clustering_objective=found.objectives[-1], clustering_rounds=len(found.objectives))
        return tuple(neurons[group] for group in found.groups())
