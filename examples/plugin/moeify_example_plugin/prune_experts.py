"""Takes out the experts that the router hardly chooses.

    y = S(x) + sum over the k chosen of n experts of g_e E_e(x)
        =>
    y = S(x) + sum over the k chosen of n - remove experts of g_e E_e(x)

Preserved: the outputs of all tokens that chose none of those experts, where the gate is "one"; every other weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.expert_selection import select_spec
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.routers.choice import route_tokens


@dataclass(frozen=True)
class PruneExperts:
    """Removes the experts that the fewest calibration tokens choose, and their rows of the router.

    remove: how many of a layer. Runs after the router is final, and before what is fitted to it (compensate). Reports
    `pruned_choices`, the part of all choices that fell on the removed experts.
    """

    remove: int = 1

    name: ClassVar[str] = "prune-experts"
    needs: ClassVar[tuple[type[Fact], ...]] = (Experts, Routing, ActivationSample)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Experts,)
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, Routing)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.remove < 1:
            raise UsageError(f"prune-experts.remove is {self.remove}: choose 1 or more")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes smaller specs. Raises UsageError where fewer experts than top_k, or none, would be left."""
        for site in graph.sites:
            spec = graph.specs[site.path]
            self._check(site, len(spec.experts), spec.top_k)
            chosen = _times_chosen(spec, context.get(site, ActivationSample).inputs)
            keep = chosen.argsort(descending=True, stable=True)[: len(chosen) - self.remove].sort().values
            graph.specs[site.path] = pruned = select_spec(spec, keep.tolist())
            context.put(site, Experts(tuple(map(len, pruned.experts)), pruned.partitions(site.neurons)))
            context.measure(
                site,
                pruned_choices=1 - float(chosen[keep].sum() / chosen.sum().clamp(min=1)),
                active_fraction=pruned.active_fraction(site),
            )
        return bool(graph.sites)

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer without its last experts: which ones go is known only with data."""
        if config is None:
            return None
        self._check(site, config.experts, config.top_k)
        return replace(config, offsets=config.offsets[: len(config.offsets) - self.remove])

    def _check(self, site: FeedForward, experts: int, top_k: int | None) -> None:
        if experts - self.remove < (top_k or 1):
            raise UsageError(
                f"prune-experts.remove is {self.remove} but {site.path} has {experts} experts and top_k {top_k or 'of all'}: "
                f"choose at most {experts - (top_k or 1)}"
            )


def _times_chosen(spec: MoESpec, inputs: Tensor) -> Tensor:
    """How many of the tokens choose each expert, float64 [experts]; inputs: [tokens, hidden]."""
    total = torch.zeros(len(spec.experts), dtype=torch.float64)
    for x in torch.split(inputs, 4096):
        total += route_tokens(spec, x.float()).chosen.sum(0)
    return total
