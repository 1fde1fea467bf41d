"""Puts a router in front of the experts.

    y = S(x) + E_1(x) + ... + E_n(x)
        =>
    y = S(x) + sum over the k experts with the largest scores of g_e E_e(x)        scores = router(x)

Preserved: every weight of every expert. With top_k = experts and gate "one" also the function.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import GATE_RULES, GateRule, MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.norm_regression import NormRegression
from moeify_passes.routers.random_router import RandomRouter
from moeify_passes.routers.router_share import measure_router
from moeify_passes.strategies import RouterStrategy


@dataclass(frozen=True)
class InsertRouter:
    """Gives the layer a router and a top-k rule.

    top_k: how many routed experts a token uses; default a quarter of them, where they are copies of the FFN two whole ones.
    active: instead, the largest top_k whose active fraction (weights that one token uses / weights of the dense FFN, router
    included) is at most this. gate, normalize: see docs/moe-layer.md; "one" leaves the chosen experts as they are. detach_sum:
    what normalize divides by counts as a constant in the gradient, so that a gate that is always 1 still teaches the router.
    by: where the scores come from.
    """

    top_k: int | None = None
    active: float | None = None
    gate: GateRule = "one"
    normalize: bool = False
    detach_sum: bool = False
    by: AverageKey | NormRegression | RandomRouter | RouterStrategy = field(default_factory=AverageKey)

    name: ClassVar[str] = "insert-router"
    gives: ClassVar[tuple[type[Fact], ...]] = (Routing,)
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, NeuronGroups, Experts)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.top_k is not None and self.active is not None:
            raise UsageError(f"insert-router has top_k {self.top_k} and active {self.active}: give one of them")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"insert-router.top_k is {self.top_k}: choose 1 or more")
        if self.active is not None and not self.active > 0:
            raise UsageError(f"insert-router.active is {self.active}: choose a fraction above 0, such as 0.5")
        if self.gate not in GATE_RULES:
            raise UsageError(f"insert-router.gate is {self.gate!r}: choose one of {', '.join(GATE_RULES)}")
        if self.detach_sum and not self.normalize:
            raise UsageError("insert-router.detach_sum is about the sum that normalize divides by: set normalize = true too")

    @property
    def needs(self) -> tuple[type[Fact], ...]:
        return (Experts, *self.by.needs)

    @property
    def uses(self) -> tuple[type[Fact], ...]:
        return tuple(dict.fromkeys((ActivationSample, *self.by.uses)))

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes router, gate rule and top_k; compensation made for another routing is taken out.

        Raises UsageError where top_k is more than there are experts, or no top_k is as small as `active`.
        """
        changed = False
        for site in graph.sites:
            spec = self._routed(site, graph.specs[site.path], context)
            if not same_spec(graph.specs[site.path], spec):
                graph.specs[site.path] = spec
                changed = True
            context.put(site, Routing(self.by.kind, spec.top_k, spec.threshold))
            context.measure(site, top_k=spec.top_k, active_fraction=spec.active_fraction(site))
            measure_router(site, spec, context)
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer with its router and top_k. Raises UsageError as `run` does."""
        if config is None:
            return None
        self._check(site, config.experts)
        gates: dict[str, Any] = {"gate_rule": self.gate, "normalize": self.normalize, "detach_sum": self.detach_sum}
        routed = replace(config, router=self.by.shape(config), top_k=None, **gates)
        return replace(routed, top_k=self._choose_top_k(site, routed))

    def _routed(self, site: FeedForward, spec: MoESpec, context: PassContext) -> MoESpec:
        bare = replace(spec.all_on(), gate_rule=self.gate, normalize=self.normalize, detach_sum=self.detach_sum)
        self._check(site, len(spec.experts))
        routed = replace(bare, router=self.by.route(site, bare, context))
        return replace(routed, top_k=self._choose_top_k(site, routed.config(site)))

    def _check(self, site: FeedForward, experts: int) -> None:
        if self.top_k is not None and self.top_k > experts:
            raise UsageError(
                f"insert-router.top_k is {self.top_k} but {site.path} has {experts} experts: choose 1 to {experts}"
            )

    def _choose_top_k(self, site: FeedForward, config: MoEConfig) -> int:
        if self.active is not None:
            return _largest_top_k(site, config, self.active)
        usual = config.experts // 4 if config.shards is None else min(2 * config.shards, config.experts)
        return self.top_k or max(1, usual)


def _largest_top_k(site: FeedForward, config: MoEConfig, active: float) -> int:
    fits = [k for k in range(1, config.experts + 1) if config.active_fraction(site.neurons, k) <= active]
    if not fits:
        least = config.active_fraction(site.neurons, 1)
        core = "" if config.composed is None else "the frozen core, "
        raise UsageError(
            f"insert-router.active is {active:g} but in {site.path} {core}one expert, the shared expert and the router take "
            f"{least:.4f} of the FFN's weights: choose {least + 5e-5:.4f} or more, more experts, or a smaller router"
        )
    return fits[-1]
