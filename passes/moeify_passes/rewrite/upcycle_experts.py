"""Makes every expert a copy of the whole FFN, to be trained further (sparse upcycling).

    y = F(x)
        =>
    y = mean over the copies of F_c(x)        F_c = F, or what the strategy makes of it

Preserved: with equal copies the function of the FFN, and it stays so behind any router whose gates sum to 1 over the chosen
copies. The output bias is added once, as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from moeify.errors import ConversionError, UsageError
from moeify.ir.composed_spec import ComposedSpec
from moeify.ir.facts import ActivationSample, Experts, Fact, FeedForwards, NeuronStatistics
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.upcycling.checkpoints import Checkpoints
from moeify_passes.upcycling.copied_rows import copied_rows
from moeify_passes.upcycling.copies import Copies
from moeify_passes.upcycling.drop import Drop
from moeify_passes.upcycling.frozen_core import Composing, check_composing, composed_rows
from moeify_passes.upcycling.lora import Lora
from moeify_passes.upcycling.noise import Noise
from moeify_passes.upcycling.residual import Residual
from moeify_passes.upcycling.shards import is_lossless, shard_size

#: More experts in one layer than anybody has trained; the list of their sizes alone would fill the memory.
_MOST = 65536


@dataclass(frozen=True)
class UpcycleExperts:
    """Makes every expert a copy of the whole FFN, of a model that is to be trained further.

    copies: how many; default 8, or one a checkpoint. shards: cuts every copy into so many experts of neighbouring neurons
    (granular upcycling, He et al. 2024, section 3); their outputs are scaled by that number, so that gates which sum to 1
    over the experts of whole copies give back the FFN. shared: one more copy is always on; it and the routed ones count half.
    by: what the copies are; of residual and lora one frozen FFN is stored, and what is trained beside it.
    """

    copies: int | None = None
    shards: int = 1
    shared: bool = False
    by: Copies | Noise | Drop | Checkpoints | Residual | Lora = field(default_factory=Copies)

    name: ClassVar[str] = "upcycle-experts"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Experts,)
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics)
    rewrites: ClassVar[bool] = True
    grows: ClassVar[bool] = True  # what it makes may not fit: looked at before weights are read

    def __post_init__(self) -> None:
        for name in ("copies", "shards"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"upcycle-experts.{name} is {value}: choose 1 or more")
        if isinstance(self.by, Checkpoints) and self.copies not in (None, len(self.by.paths)):
            raise UsageError(
                f"upcycle-experts.copies is {self.copies} but checkpoints.paths names {len(self.by.paths)}: "
                f"give as many, or leave copies out"
            )
        if isinstance(self.by, Composing):
            check_composing(self.by, self.shards)
        if self.experts > _MOST:
            raise UsageError(f"upcycle-experts makes {self.experts} experts a layer: choose {_MOST} or fewer copies x shards")

    @property
    def experts(self) -> int:
        """How many routed experts a layer gets."""
        return self._count * self.shards

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The other checkpoints that it will read."""
        return tuple(self.by.paths) if isinstance(self.by, Checkpoints) else ()

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes specs. Raises UsageError for neurons that cannot be cut so, ConversionError for a layer that is routed."""
        changed = False
        for site in graph.sites:
            before = graph.specs.get(site.path)
            if before is not None and before.router is not None:
                raise ConversionError(f"{site.path}: has a router already: an FFN is upcycled once, before its router goes in")
            spec = self._spec(site, context)
            if not same_spec(before, spec):
                graph.specs[site.path] = spec
                changed = True
            context.put(site, Experts(tuple(map(len, spec.experts)), partition=False, copies=self._exact(site)))
            context.measure(site, active_fraction=spec.active_fraction(site))
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig:
        """The layer with all copies on. Raises UsageError for neurons that cannot be cut so, or an FFN that has experts."""
        if config is not None:
            raise UsageError(f"upcycle-experts: {site.path} has experts by then: leave the pass that makes them out")
        if isinstance(self.by, Composing):
            self.by.check(site)
        return self._shape(site).config(site)

    @property
    def _count(self) -> int:
        return self.copies or len(self.checkpoints) or 8

    def _exact(self, site: FeedForward) -> bool:
        return self.by.exact and is_lossless(self.shards, site.down.read().dtype)

    def _shape(self, site: FeedForward) -> MoESpec:
        """The spec without new weights. Raises UsageError for neurons that cannot be cut so."""
        neurons = torch.arange(site.neurons)
        # Each a tensor of its own: what overlaps in memory cannot be kept in a file.
        parts = torch.split(neurons, shard_size(site, self.shards)) * self._count
        composed = ComposedSpec(self.by.rule) if isinstance(self.by, Composing) else None
        shared = neurons if self.shared else neurons[:0]
        return MoESpec(
            tuple(part.clone() for part in parts), shared, normalize=True, shards=self.shards, composed=composed
        )  # fmt: skip

    def _spec(self, site: FeedForward, context: PassContext) -> MoESpec:
        shape = self._shape(site)
        if isinstance(self.by, Composing):
            self.by.check(site)
            return replace(shape, composed=composed_rows(self.by, site, self._count, self.shared, context))
        return replace(shape, weights=copied_rows(self.by, site, self._count, self.shards, self.shared, context))
