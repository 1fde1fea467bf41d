"""Shares by the measured error curve of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.shares.gain_curve import GainCurve
from moeify_passes.shares.output_effects import check_noise, output_effects
from moeify_passes.shares.share_rule import Limits, ShareRule, divided

#: Bytes that a walk through the model may hold between two layers.
_MEMORY = 1 << 30


@dataclass(frozen=True)
class ErrorCurves:
    """Gives by what errors do to the model's output and by how the error of each layer falls with its active fraction.

    Where the neurons of the largest gains run on each token (`gain_curve`), a layer's error is the sum of the other gains.
    Weighted by the effect a of an error on the model's output (see `exponential`), the sum over layers is least where a neuron
    runs if its gain, a / weights and one level reach 1 together.

    Curves are those of the best choice, which a router comes near to in some layers more than in others.
    """

    noise: float = 0.3

    kind: ClassVar[str] = "curves"

    def __post_init__(self) -> None:
        check_noise(self.kind, self.noise)

    def shares(self, graph: ModelGraph, batches: Sequence[Batch], context: PassContext, limits: Limits) -> list[float]:
        """One for each site. Raises ConversionError where the model's output is not finite."""
        rules = curve_rules(graph, gain_curves(graph, batches), output_effects(graph, batches, self.noise, context))
        return divided(limits, graph.sites, rules)


def gain_curves(graph: ModelGraph, batches: Sequence[Batch]) -> list[GainCurve]:
    """That of each site, on the dense model."""
    with graph.host.walk(batches, "dense", _MEMORY) as walk:
        return [GainCurve.of(site, walk.inputs(site)) for site in graph.sites]


def curve_rules(graph: ModelGraph, curves: Sequence[GainCurve], effects: Sequence[float]) -> list[ShareRule]:
    """For each site the part of its gains that are worth their price."""
    worth = [math.log(effect / site.parameters) for effect, site in zip(effects, graph.sites)]
    return [partial(_share, curve, w) for curve, w in zip(curves, worth)]


def _share(curve: GainCurve, worth: float, level: float) -> float:
    return curve.share_above(-worth - level)
