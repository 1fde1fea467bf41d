"""A new router for experts that nothing tells apart yet (granular upcycling: He et al. 2024, section 3.2, virtual groups)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from moeify.errors import UsageError
from moeify.ir.facts import Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class RandomRouter:
    """Scores by a random direction for each expert: a linear router without a bias.

    std: of its weights. The shards of one copy of the FFN get the same row (a virtual group), so that they have one score and
    are chosen together.
    """

    std: float = 0.02

    kind: ClassVar[str] = "random"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise UsageError(f"random.std is {self.std}: choose a number above 0, such as 0.02")

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        return RouterConfig("linear")

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts: weight [experts, hidden]."""
        shards = spec.shards or 1
        generator = context.generator("routers/random", site)
        rows = self.std * torch.randn(len(spec.experts) // shards, site.hidden, generator=generator)
        return Router(self.shape(spec.config(site)), {"weight": rows.repeat_interleave(shards, 0)})
