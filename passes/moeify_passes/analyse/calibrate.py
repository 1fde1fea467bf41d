"""Collects what calibration data do inside each FFN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, CalibrationData, Fact, FeedForwards, NeuronStatistics, OutputGoals
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.size import parse_size
from moeify_passes.analyse.moments import Moments
from moeify_passes.analyse.reservoir import Reservoir


@dataclass(frozen=True)
class Calibrate:
    """Streams the FFN's inputs: a uniform sample of them, what the FFN would have to say to those for the model to be where the
    dense one is, and moments of the neuron outputs; only what later passes want.

    tokens: how many tokens to look at, a layer. memory: what the sample of one layer, and the matrices of one chunk, may take
    ("256MiB" or bytes); of more tokens than fit, the sample keeps a uniform choice.
    """

    tokens: int = 8192
    memory: int | str = "256MiB"

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards, CalibrationData)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, OutputGoals, NeuronStatistics)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UsageError(f"calibrate.tokens is {self.tokens}: choose 1 or more")
        parse_size(self.memory, "calibrate.memory")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Gives the facts. Raises ConversionError where no token reaches a layer or an input is not finite."""
        if context.wanted & {*self.gives}:
            for site in graph.sites:
                self._calibrate(site, context)
        return False

    def _calibrate(self, site: FeedForward, context: PassContext) -> None:
        memory = parse_size(self.memory, "calibrate.memory")
        goals = context.goals(site) if context.goals is not None and OutputGoals in context.wanted else None
        width = site.hidden if goals is None else site.hidden + site.output
        capacity = max(1, min(self.tokens, memory // (4 * width)))
        sampled = ActivationSample in context.wanted or goals is not None
        # Two of one seed draw the same tokens.
        sample, aims, sources = (Reservoir(capacity, context.generator("calibrate", site)) for _ in range(3))
        moments = Moments(site, memory) if NeuronStatistics in context.wanted else None
        seen = 0
        for source, inputs in self._inputs(site, context):
            seen += len(inputs)
            if sampled:
                sample.add(inputs)
                sources.add(torch.full((len(inputs), 1), source))
            if goals is not None:
                aims.add(next(goals)[: len(inputs)])
            if moments is not None:
                moments.add(inputs)
            context.progress(f"calibrate {site.path}", seen, self.tokens)
        if seen == 0:
            raise ConversionError(f"{site.path}: no calibration token reached this layer; check the calibration data")
        if sampled:
            numbers = sources.rows().long().flatten()
            context.put(site, ActivationSample(sample.rows(), seen, numbers if bool(numbers.any()) else None))
        if goals is not None:
            context.put(site, OutputGoals(aims.rows()))
        if moments is not None:
            context.put(site, moments.statistics())
        context.measure(site, calibration_tokens=seen)

    def _inputs(self, site: FeedForward, context: PassContext) -> Iterator[tuple[int, Tensor]]:
        """The layer's inputs, [tokens, hidden] a batch, `tokens` of them in all, and the source of each batch."""
        if context.inputs is None:
            raise ConversionError(f"{site.path}: calibrate runs inside each-layer, which walks the calibration data")
        left, order = self.tokens, context.get(None, CalibrationData).order
        for number, batch in enumerate(context.inputs(site)):
            inputs = batch.detach()[:left]
            if not bool(torch.isfinite(inputs).all()):
                raise ConversionError(f"{site.path}: an input on the calibration data is not finite; check the model's weights")
            left -= len(inputs)
            yield order[number // site.calls] if order else 0, inputs
            if left <= 0:
                return
