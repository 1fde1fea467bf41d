"""Shares for layers whose errors fall exponentially with their active fraction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from moeify.errors import UsageError
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.shares.output_effects import check_noise, output_effects
from moeify_passes.shares.share_rule import Limits, divided


@dataclass(frozen=True)
class ExponentialErrors:
    """Gives by what errors do to the model's output; the errors themselves are taken to be alike in all layers.

    Each layer's output is disturbed in turn by noise of `noise` times its norm, and the change of the model's output is its
    effect a (mean KL of logits, else the squared relative error). The error of a layer is taken to fall with its active
    fraction f as exp(-slope f); then the sum of a exp(-slope f) is least at f = (log(a / weights) + a constant) / slope.
    """

    noise: float = 0.3
    slope: float = 4.0

    kind: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        check_noise(self.kind, self.noise)
        if not self.slope > 0:
            raise UsageError(f"{self.kind}.slope is {self.slope}: choose a number above 0")

    def shares(self, graph: ModelGraph, batches: Sequence[Batch], context: PassContext, limits: Limits) -> list[float]:
        """One for each site. Raises ConversionError where the model's output is not finite."""
        effects = output_effects(graph, batches, self.noise, context)
        rules = [partial(self._share, math.log(a / site.parameters)) for a, site in zip(effects, graph.sites)]
        return divided(limits, graph.sites, rules)

    def _share(self, worth: float, level: float) -> float:
        return (worth + level) / self.slope
