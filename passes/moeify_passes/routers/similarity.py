"""The router that compares directions (MoEfication, section 3.3, "similarity")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moeify.ir.facts import Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.routers.key_rows import key_centres


@dataclass(frozen=True)
class Similarity:
    """Scores an expert by how near the token's direction is to the mean direction of its keys.

    The distance ||x/|x| - c_e|| of MoEfication, c_e the mean of the expert's keys scaled to norm 1, orders experts as
    x/|x| . c_e - |c_e|^2 / 2 does, from the largest to the smallest: a linear router that reads x/|x|. Needs no data.
    """

    kind: ClassVar[str] = "similarity"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        return RouterConfig("linear", bias=True, unit_input=True)

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts: weight [experts, hidden], bias [experts]."""
        centres = key_centres(site, spec)
        return Router(self.shape(spec.config(site)), {"weight": centres, "bias": -centres.square().sum(1) / 2})
