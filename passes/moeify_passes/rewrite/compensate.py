"""Lets a vector stand in for each expert that is not chosen.

    y = S(x) + sum over chosen e of g_e E_e(x)
        =>
    y = S(x) + sum over chosen e of g_e E_e(x) + sum over idle e of idle_e

Preserved: every weight, the router and its choice. The vectors cost no matrix weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.rewrite.idle_means import idle_means, relative_squared_error
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.routers.held_out import held_out


@dataclass(frozen=True)
class Compensate:
    """Adds, for every expert that a token does not use, what it says on average when it is not used.

    kind: "idle-mean" is the mean of E_e(x) over the calibration tokens on which e is idle (FLAP's bias, An et al. 2023, section
    3.3, made conditional on the routing); an expert that is never idle gets zeros. Best run after the router is final.
    """

    kind: Literal["idle-mean"] = "idle-mean"

    name: ClassVar[str] = "compensate"
    needs: ClassVar[tuple[type[Fact], ...]] = (Routing, ActivationSample)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, NeuronGroups, Experts, Routing)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind != "idle-mean":
            raise UsageError(f"compensate.kind is {self.kind!r}: choose idle-mean")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes the idle vectors; reports the squared relative error on held-out tokens without them and with them."""
        changed = False
        for site in graph.sites:
            spec = self._compensated(site, graph.specs[site.path], context)
            if not same_spec(graph.specs[site.path], spec):
                graph.specs[site.path] = spec
                changed = True
            context.measure(site, active_fraction=spec.active_fraction(site))
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer with idle vectors."""
        return None if config is None else replace(config, idle=True)

    def _compensated(self, site: FeedForward, spec: MoESpec, context: PassContext) -> MoESpec:
        sample = context.get(site, ActivationSample).inputs
        fit, held = held_out(site, sample, context.generator("held-out", site))
        rows = expert_rows(site, spec)
        without = replace(spec, compensation=replace(spec.compensation, idle=None))
        found = replace(spec, compensation=replace(spec.compensation, idle=idle_means(spec, rows, fit)))
        context.measure(
            site,
            squared_error_uncompensated=relative_squared_error(site, without, rows, held),
            squared_error=relative_squared_error(site, found, rows, held),
        )
        return found
