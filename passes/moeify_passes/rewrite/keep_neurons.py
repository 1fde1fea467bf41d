"""Keeps some neurons for every token and lets the others go.

    y = sum over all neurons of h_i(x) down_i
        =>
    y = sum over the kept neurons of h_i(x) down_i        one expert, always on

Preserved: the weights of the neurons that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Budget, Experts, Fact, FeedForwards, NeuronStatistics
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.experts.contributions import contributions, fluctuations
from moeify_passes.rewrite.same_spec import same_spec


@dataclass(frozen=True)
class KeepNeurons:
    """The static mask: what a conversion that routes has to beat at the same active fraction.

    active: the part of the FFN's neurons to keep, rounded down (above 0, up to 1); where allocate-budget has run, what it gave
    the layer. by: "contribution" keeps those with the
    largest E[h^2] ||down row||^2, "fluctuation" those with the largest variance instead of the second moment (FLAP, An et al.
    2023, section 3.2), which goes with a compensation by the mean.
    """

    active: float = 0.5
    by: Literal["contribution", "fluctuation"] = "contribution"

    name: ClassVar[str] = "keep-neurons"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards, NeuronStatistics)
    uses: ClassVar[tuple[type[Fact], ...]] = (Budget,)
    gives: ClassVar[tuple[type[Fact], ...]] = (Experts,)
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.active <= 1:
            raise UsageError(f"keep-neurons.active is {self.active}: choose a part of the neurons above 0 and up to 1")
        if self.by not in ("contribution", "fluctuation"):
            raise UsageError(f"keep-neurons.by is {self.by!r}: choose contribution or fluctuation")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes specs."""
        changed = False
        measure = contributions if self.by == "contribution" else fluctuations
        for site in graph.sites:
            gains = measure(site, context.get(site, NeuronStatistics))
            own = context.find(site, Budget)
            count = _count(site, self.active if own is None else own.active)
            kept = gains.argsort(descending=True, stable=True)[:count].sort().values
            spec = MoESpec((kept,))
            if not same_spec(graph.specs.get(site.path), spec):
                graph.specs[site.path] = spec
                changed = True
            context.put(site, Experts((len(kept),), spec.partitions(site.neurons)))
            share = float(gains[kept].sum() / gains.sum()) if float(gains.sum()) else 1.0
            context.measure(site, active_fraction=spec.active_fraction(site), kept_share=share)
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig:
        """The layer with that many neurons in one expert."""
        return MoESpec((torch.empty(_count(site, self.active), dtype=torch.int64),)).config(site)


def _count(site: FeedForward, active: float) -> int:
    return max(1, int(active * site.neurons + 1e-9))
