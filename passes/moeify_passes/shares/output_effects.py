"""How far an error of each layer moves the model's output."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moeify.errors import ConversionError, UsageError
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext


def check_noise(where: str, noise: float) -> None:
    """Raises UsageError for noise that is none."""
    if not noise > 0:
        raise UsageError(f"{where}.noise is {noise}: choose a number above 0")


def output_effects(graph: ModelGraph, batches: Sequence[Batch], noise: float, context: PassContext) -> list[float]:
    """For each site what noise of `noise` times its output's norm does to the model's output (`Host.effects`); above 0.

    Raises ConversionError where that is not finite.
    """
    effects = graph.host.effects(graph.sites, batches, noise, context.generator("allocate-budget"))
    if not all(map(math.isfinite, effects)):
        raise ConversionError("allocate-budget: the model's output is not finite on the calibration data; check its weights")
    for site, effect in zip(graph.sites, effects):
        context.measure(site, output_effect=effect)
    return [max(effect, 1e-12) for effect in effects]
