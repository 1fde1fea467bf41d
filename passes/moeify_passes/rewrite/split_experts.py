"""Splits an FFN into experts.

    y = sum over all neurons of h_i(x) down_i
        =>
    y = S(x) + E_1(x) + ... + E_n(x)        each the same sum over its own group of neurons

Preserved: the function of the FFN, up to the order of floating-point sums, when the groups are a partition; every weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronImportance, NeuronStatistics
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.same_spec import same_spec


@dataclass(frozen=True)
class SplitExperts:
    """Makes the groups that a clustering found the experts of the layer, all on; neurons ascend within each."""

    name: ClassVar[str] = "split-experts"
    needs: ClassVar[tuple[type[Fact], ...]] = (NeuronGroups,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Experts,)
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, NeuronGroups, NeuronImportance)
    rewrites: ClassVar[bool] = True

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes specs. Raises ConversionError for a group that is empty or names a neuron that is not there."""
        changed = False
        for site in graph.sites:
            found = context.get(site, NeuronGroups)
            groups = tuple(_checked(site, group) for group in found.groups)
            if not groups or any(len(group) == 0 for group in groups):
                raise ConversionError(f"{site.path}: a group of neurons is empty; choose fewer experts")
            spec = MoESpec(groups, _checked(site, found.shared))
            if not same_spec(graph.specs.get(site.path), spec):
                graph.specs[site.path] = spec
                changed = True
            context.put(site, Experts(tuple(map(len, groups)), spec.partitions(site.neurons)))
            context.measure(site, active_fraction=spec.active_fraction(site))
        return changed


def _checked(site: FeedForward, group: Tensor) -> Tensor:
    if len(group) and not 0 <= int(group.min()) <= int(group.max()) < site.neurons:
        raise ConversionError(
            f"{site.path}: a group names neurons from {int(group.min())} to {int(group.max())}; "
            f"there are {site.neurons}, counted from 0"
        )
    return group.to(torch.int64).sort().values
