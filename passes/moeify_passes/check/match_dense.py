"""Refuses a split that does not compute what the dense FFN computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.held_site import held_site, token_chunks


@dataclass(frozen=True)
class MatchDense:
    """Compares all experts on with the dense FFN, in float32: largest difference / largest output.

    tolerance: the distance above which the conversion fails. tokens: how many to compare on, taken from the calibration
    sample, or drawn from a normal distribution. Where the experts are no partition, or are routed or compensated already,
    equality was not promised: the distance is reported, and only values that are not finite fail.
    """

    tolerance: float = 3e-5
    tokens: int = 256

    name: ClassVar[str] = "match-dense"
    needs: ClassVar[tuple[type[Fact], ...]] = (Experts,)
    uses: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise UsageError(f"match-dense.tolerance is {self.tolerance}: choose a number above 0, such as 3e-5")
        if self.tokens < 1:
            raise UsageError(f"match-dense.tokens is {self.tokens}: choose 1 or more")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Reports `dense_distance`. Raises ConversionError where it is above the tolerance or not finite."""
        for site in graph.sites:
            spec = graph.specs[site.path]
            distance = _distance(site, spec, self._inputs(site, context))
            if not math.isfinite(distance):
                raise ConversionError(f"{site.path}: the experts or the dense FFN give values that are not finite")
            if distance > self.tolerance and _promised(site, spec):
                raise ConversionError(
                    f"{site.path}: the experts differ from the dense FFN by {distance:.3g} of its largest output "
                    f"(match-dense.tolerance is {self.tolerance:g}); the split is wrong or the weights are ill-conditioned"
                )
            context.measure(site, dense_distance=distance)
        return False

    def _inputs(self, site: FeedForward, context: PassContext) -> Tensor:
        """[tokens, hidden] float32."""
        generator = context.generator("match-dense", site)
        sample = context.find(site, ActivationSample)
        if sample is None:
            return torch.randn(self.tokens, site.hidden, generator=generator)
        return sample.inputs[torch.randperm(len(sample.inputs), generator=generator)[: self.tokens]]


def _promised(site: FeedForward, spec: MoESpec) -> bool:
    compensated = spec.compensation.idle is not None or spec.compensation.low_rank_in is not None
    return spec.router is None and not compensated and spec.partitions(site.neurons)


def _distance(site: FeedForward, spec: MoESpec, inputs: Tensor) -> float:
    """Largest difference / largest dense output, over all tokens; NaN or infinite where an output is."""
    dense, rows = held_site(site), expert_rows(site, spec)
    difference = largest = torch.tensor(0.0)
    for x in token_chunks(inputs, site.neurons):
        expected = dense.forward(x)
        difference = torch.maximum(difference, (rows.all_on(x) - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
    return float(difference / largest.clamp(min=torch.finfo(torch.float32).tiny))
