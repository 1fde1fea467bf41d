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
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import ExpertRows, expert_rows
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.routed_output import routed_output


@dataclass(frozen=True)
class MatchDense:
    """Compares the experts with the dense FFN, in float32: largest difference / largest output.

    tolerance: the distance above which the conversion fails. tokens: how many to compare on, taken from the calibration
    sample, or drawn from a normal distribution. Equality is promised by a partition with all experts on, and by equal copies
    of the FFN with gates that sum to 1, routed or not: a layer of copies is compared as it is routed, others with all experts
    on. Where it was not promised the distance is reported, and only values that are not finite fail.
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
            exact = spec.shards is not None and (found := context.find(site, Experts)) is not None and found.copies
            distance = _distance(site, spec, self._inputs(site, context))
            if not math.isfinite(distance):
                raise ConversionError(f"{site.path}: the experts or the dense FFN give values that are not finite")
            if distance > self.tolerance and (_promised(spec) if exact else _partitioned(site, spec)):
                raise ConversionError(
                    f"{site.path}: the experts differ from the dense FFN by {distance:.3g} of its largest output "
                    f"(match-dense.tolerance is {self.tolerance:g}); the experts are wrong or the weights are ill-conditioned"
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


def _partitioned(site: FeedForward, spec: MoESpec) -> bool:
    return spec.router is None and not _compensated(spec) and spec.partitions(site.neurons)


def _promised(spec: MoESpec) -> bool:
    """Do the gates of equal copies sum to 1, with whole copies chosen?"""
    shards, k = spec.shards or 1, spec.top_k or len(spec.experts)
    if _compensated(spec) or spec.threshold is not None or spec.selection_bias is not None or k % shards:
        return False
    single = spec.gate_rule == "one" and k == shards == 1
    return (spec.normalize or single) and (spec.router is None or shards == 1 or _grouped(spec.router, shards))


def _grouped(router: Router, shards: int) -> bool:
    """Has every shard of a copy the same score?"""
    if router.config.kind != "linear":
        return False
    rows = (tensor.view(-1, shards, *tensor.shape[1:]) for tensor in router.tensors.values())
    return all(bool((row == row[:, :1]).all()) for row in rows)


def _compensated(spec: MoESpec) -> bool:
    return spec.compensation.idle is not None or spec.compensation.low_rank_in is not None


def _copies(spec: MoESpec, rows: ExpertRows, x: Tensor) -> Tensor:
    """The layer's output as it is routed; without a router all copies are on and their mean counts."""
    if spec.router is not None:
        return routed_output(spec, rows, x) + rows.tensors.get("output_bias", 0.0)
    bias, shared = rows.tensors.get("output_bias", torch.zeros(())), rows.shared_output(x)
    return (rows.all_on(x) - bias - shared) / rows.experts + shared + bias


def _dense_outputs(site: FeedForward, inputs: Tensor) -> list[Tensor]:
    """A chunk each. The dense weights are let go before the experts' are read: in float32 each take twice a bf16 layer."""
    dense = held_site(site)
    return [dense.forward(x) for x in token_chunks(inputs, site.neurons)]


def _distance(site: FeedForward, spec: MoESpec, inputs: Tensor) -> float:
    """Largest difference / largest dense output, over all tokens; NaN or infinite where an output is."""
    dense = _dense_outputs(site, inputs)
    rows = expert_rows(site, spec)
    difference = largest = torch.tensor(0.0)
    for x, expected in zip(token_chunks(inputs, site.neurons), dense, strict=True):
        found = rows.all_on(x) if spec.shards is None else _copies(spec, rows, x)
        difference = torch.maximum(difference, (found - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
    return float(difference / largest.clamp(min=torch.finfo(torch.float32).tiny))
