"""Takes out the experts that the router hardly chooses.

    y = S(x) + sum over the k chosen of n experts of g_e E_e(x)
        =>
    y = S(x) + sum over the k chosen of n - remove experts of g_e E_e(x)

Preserved: the outputs of all tokens that chose none of those experts, where the gate is "one"; every other weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.layers.routing import ChoiceRule, route
from moeify.pipeline.context import PassContext

#: Tensors of a router with a row for each expert.
_BY_EXPERT = ("weight", "bias", "weight_out", "bias_out")


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
            graph.specs[site.path] = pruned = _only(spec, keep)
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
    rule = ChoiceRule(spec.top_k, spec.threshold, spec.gate_rule, spec.normalize)
    total = torch.zeros(len(spec.experts), dtype=torch.float64)
    for x in torch.split(inputs, 4096):
        scores = x.new_zeros(len(x), len(spec.experts)) if spec.router is None else spec.router.scores(x.float())
        total += route(scores, rule, spec.selection_bias).chosen.sum(0)
    return total


def _only(spec: MoESpec, keep: Tensor) -> MoESpec:
    """The spec with those experts alone (int64 indices, ascending)."""
    sizes = [len(spec.shared), *map(len, spec.experts)]
    rows = torch.split(torch.arange(sum(sizes)), sizes)
    kept = torch.cat((rows[0], *(rows[1 + int(e)] for e in keep)))
    idle = spec.compensation.idle
    return replace(
        spec,
        experts=tuple(spec.experts[int(e)] for e in keep),
        router=spec.router and Router(spec.router.config, _rows_of(spec.router.tensors, keep)),
        selection_bias=None if spec.selection_bias is None else spec.selection_bias[keep],
        compensation=replace(spec.compensation, idle=None if idle is None else idle[keep]),
        weights={name: value if name == "output_bias" else value[kept] for name, value in spec.weights.items()},
    )


def _rows_of(tensors: Mapping[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    return {name: value[keep] if name in _BY_EXPERT else value for name, value in tensors.items()}
