"""The same active fraction for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.shares.share_rule import Limits, divided


@dataclass(frozen=True)
class UniformShares:
    """Every layer gets `active`: what to compare the others with."""

    kind: ClassVar[str] = "uniform"

    def shares(self, graph: ModelGraph, batches: Sequence[Batch], context: PassContext, limits: Limits) -> list[float]:
        """One for each site."""
        return divided(limits, graph.sites, [lambda level: level for _ in graph.sites])
