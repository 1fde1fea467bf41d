"""The router that needs no data and no weights of its own: each expert's mean key (EMoE, section 3, "avg-k")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moeify.ir.facts import Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.routers.key_rows import expert_means, spec_rows


@dataclass(frozen=True)
class AverageKey:
    """Scores an expert by its mean key.

    score_e(x) = mean over the expert's neurons of key_i . x + key bias_i; the key is the gate row of a gated FFN, else the up
    row. In training the layer computes it anew from the current weights.
    """

    kind: ClassVar[str] = "average-key"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        return RouterConfig("average-key", bias=config.gate_bias if config.gated else config.up_bias)

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts: weight [experts, hidden], and bias [experts] where keys have one."""
        name = "gate" if site.gated else "up"
        tensors = {"weight": expert_means(spec_rows(site, spec, name), spec)}
        if name + "_bias" in spec.weights or getattr(site, name + "_bias") is not None:
            tensors["bias"] = expert_means(spec_rows(site, spec, name + "_bias"), spec)
        return Router(self.shape(spec.config(site)), tensors)
