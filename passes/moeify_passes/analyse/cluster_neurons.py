"""Decides which neurons belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Fact, FeedForwards, NeuronGroups, NeuronStatistics
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.experts.activation_markers import ActivationMarkers
from moeify_passes.experts.balanced_k_means import BalancedKMeans
from moeify_passes.experts.co_activation_graph import CoActivationGraph
from moeify_passes.experts.contributions import contributions
from moeify_passes.experts.expert_sizes import expert_sizes, size_named, sizes_beside, sizes_of
from moeify_passes.experts.gradient_importance import GradientImportance
from moeify_passes.experts.predicted_gain import PredictedGain
from moeify_passes.experts.random import Random
from moeify_passes.strategies import ExpertStrategy, Shares


@dataclass(frozen=True)
class ClusterNeurons:
    """Groups of neurons: one for each routed expert, and those of the shared expert.

    experts: the number of routed experts; "16 neurons": as many as there are with 16 neurons each, some with one more or less
    where that does not come out even; "neurons": every neuron is one, and there is nothing to group. shared_experts: the size
    of the shared expert in units of a routed one. The FFN is cut into experts + shared_experts equal parts; unequal: where they
    do not divide it, sizes may differ by one. by: how to group.

    shared: instead of shared_experts, the shared expert's part of the neurons (0 to 1): as many neurons as leave equal routed
    experts, or with `unequal` exactly that part. shared_by: which neurons it takes, which needs calibration data: those that
    are most often among the strongest ("rate"; CMoE, section 3.1; gradient-importance goes by its own counts), or those with
    the largest E[h^2] ||down row||^2 ("contribution").
    """

    experts: int | str = 16
    shared_experts: int = 0
    unequal: bool = False
    shared: float | None = None
    shared_by: Literal["rate", "contribution"] = "rate"
    by: (
        Random | BalancedKMeans | ActivationMarkers | CoActivationGraph | GradientImportance | PredictedGain | ExpertStrategy
    ) = field(default_factory=BalancedKMeans)

    name: ClassVar[str] = "cluster-neurons"
    gives: ClassVar[tuple[type[Fact], ...]] = (NeuronGroups,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.experts, str):
            size_named(self.experts)
        if isinstance(self.experts, int) and self.experts < 1:
            raise UsageError(f"cluster-neurons.experts is {self.experts}: choose 1 or more")
        if self.shared_experts < 0:
            raise UsageError(f"cluster-neurons.shared_experts is {self.shared_experts}: choose 0 or more")
        if self.shared is not None and not 0 <= self.shared < 1:
            raise UsageError(f"cluster-neurons.shared is {self.shared}: choose a part of the neurons from 0 to below 1")
        if self.shared is not None and self.shared_experts:
            raise UsageError(
                f"cluster-neurons has shared {self.shared} and shared_experts {self.shared_experts}: give one of them"
            )
        if self.shared_by not in ("rate", "contribution"):
            raise UsageError(f"cluster-neurons.shared_by is {self.shared_by!r}: choose rate or contribution")

    @property
    def needs(self) -> tuple[type[Fact], ...]:
        kind = ActivationSample if self.shared_by == "rate" else NeuronStatistics
        shares = bool(self.shared_experts or self.shared)
        own = shares and self.shared_by == "rate" and isinstance(self.by, Shares)
        found = (kind,) if shares and not own else ()
        by = () if self.experts == "neurons" and not own else self.by.needs
        return tuple(dict.fromkeys((FeedForwards, *by, *found)))

    @property
    def uses(self) -> tuple[type[Fact], ...]:
        return self.by.uses

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Gives NeuronGroups. Raises UsageError where the neurons of a site cannot be cut into such parts."""
        sizes = [self._sizes(site) for site in graph.sites]
        for site, (shared_size, expert_size) in zip(graph.sites, sizes):
            shared = self._shared(site, shared_size, context)
            routed = torch.ones(site.neurons, dtype=torch.bool).index_fill_(0, shared, False).nonzero().flatten()
            if self.experts == "neurons":
                groups = torch.split(routed, 1)
            else:
                groups = self._as_asked(site, self.by.group(site, routed, expert_size, context), routed, expert_size)
            context.put(site, NeuronGroups(groups, shared))
        return False

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig:
        """The layer with all experts on. Raises UsageError where the neurons cannot be cut into such parts."""
        shared, sizes = self._sizes(site)
        empty = [torch.empty(size, dtype=torch.int64) for size in (shared, *sizes)]
        return MoESpec(experts=tuple(empty[1:]), shared=empty[0]).config(site)

    def _sizes(self, site: FeedForward) -> tuple[int, tuple[int, ...]]:
        if isinstance(self.experts, str):
            size = size_named(self.experts)
            return sizes_of(site, size, self.shared_experts * size or round((self.shared or 0.0) * site.neurons))
        if self.shared is None:
            return expert_sizes(site, self.experts, self.shared_experts, self.unequal)
        return sizes_beside(site, self.experts, self.shared, self.unequal)

    def _shared(self, site: FeedForward, size: int, context: PassContext) -> Tensor:
        if size == 0:
            return torch.empty(0, dtype=torch.int64)
        if self.shared_by == "contribution":
            return contributions(site, context.get(site, NeuronStatistics)).argsort(descending=True)[:size].sort().values
        by = self.by if isinstance(self.by, Shares) else ActivationMarkers()
        return by.share(site, size, context)

    def _as_asked(
        self, site: FeedForward, groups: tuple[Tensor, ...], neurons: Tensor, sizes: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """The groups. Raises ConversionError where a strategy gave others than it was asked for; only one that says that its
        experts overlap may use a neuron twice, or not at all."""
        found, together = tuple(len(group) for group in groups), torch.cat(groups).sort().values
        if getattr(self.by, "overlap", False):
            right, each = bool(torch.isin(together, neurons).all()), "all of them routed ones"
        else:
            right, each = torch.equal(together, neurons), "each neuron in one group"
        if found != sizes or not right:
            raise ConversionError(
                f"{site.path}: cluster-neurons.by gave groups of {found} neurons; asked for were {sizes}, {each}"
            )
        return groups
