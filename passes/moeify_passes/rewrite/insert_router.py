"""Puts a router in front of the experts.

    y = S(x) + E_1(x) + ... + E_n(x)
        =>
    y = S(x) + sum over the k experts with the largest scores of g_e E_e(x)        scores = router(x)
    or     sum over the experts whose score reaches a threshold

Preserved: every weight of every expert. With top_k = experts and gate "one" also the function.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Budget, Experts, Fact, NeuronGroups, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import GATE_RULES, GateRule, MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.gain_regression import GainRegression
from moeify_passes.routers.mlp_classifier import MlpClassifier
from moeify_passes.routers.norm_regression import NormRegression
from moeify_passes.routers.random_router import RandomRouter
from moeify_passes.routers.representative_neuron import RepresentativeNeuron
from moeify_passes.routers.router_share import measure_router
from moeify_passes.routers.similarity import Similarity
from moeify_passes.routers.spectral import Spectral
from moeify_passes.routers.text_centres import TextCentres
from moeify_passes.routers.threshold import active_share, calibrated_threshold
from moeify_passes.strategies import RouterStrategy


@dataclass(frozen=True)
class InsertRouter:
    """Gives the layer a router and a rule of choice.

    top_k: how many routed experts a token uses; default a quarter of them, where they are copies of the FFN two whole ones.
    active: instead, the largest top_k whose active fraction (weights that one token uses / weights of the dense FFN, router
    included) is at most this; where allocate-budget has run, at most what it gave the layer, and a layer that may use all of
    its weights gets no router. gate, normalize: see docs/moe-layer.md; "one" leaves the chosen experts as they are. detach_sum:
    what normalize divides by counts as a constant in the gradient, so that a gate that is always 1 still teaches the router.
    by: where the scores come from.

    choice: "threshold" gives the layer a threshold on raw values instead of top-k: the one at which a token of the calibration
    sample uses, on average, the weights that top-k would have used (those of `active`), so that easy tokens use fewer experts
    and hard ones more; of several sources of calibration data, a token of the one that asks for most. most: no token uses more
    than so many experts; None: as many as reach the threshold. reserve: the threshold keeps this part of the weights back,
    since other texts may ask for more than the calibration sample does.
    """

    top_k: int | None = None
    active: float | None = None
    gate: GateRule = "one"
    normalize: bool = False
    detach_sum: bool = False
    by: (
        AverageKey
        | NormRegression
        | GainRegression
        | RandomRouter
        | Similarity
        | MlpClassifier
        | RepresentativeNeuron
        | Spectral
        | TextCentres
        | RouterStrategy
    ) = field(default_factory=AverageKey)
    choice: Literal["top-k", "threshold"] = "top-k"
    most: int | None = None
    reserve: float = 0.0

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

        if self.choice not in ("top-k", "threshold"):
            raise UsageError(f"insert-router.choice is {self.choice!r}: choose top-k or threshold")
        if self.most is not None and (self.most < 1 or self.choice == "top-k"):
            raise UsageError(f"insert-router.most is {self.most}: choose 1 or more, with choice = threshold")
        if not 0 <= self.reserve < 1:
            raise UsageError(f"insert-router.reserve is {self.reserve}: choose a fraction from 0 on, such as 0.02")

    @property
    def needs(self) -> tuple[type[Fact], ...]:
        sample = (ActivationSample,) if self.choice == "threshold" else ()
        return tuple(dict.fromkeys((Experts, *self.by.needs, *sample)))

    @property
    def uses(self) -> tuple[type[Fact], ...]:
        return tuple(dict.fromkeys((ActivationSample, Budget, *self.by.uses)))

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes router, gate rule and the rule of choice; compensation made for another routing is taken out.

        Raises UsageError where top_k is more than there are experts, or no top_k is as small as `active`.
        """
        changed = False
        for site in graph.sites:
            spec = self._routed(site, graph.specs[site.path], context)
            if not same_spec(graph.specs[site.path], spec):
                graph.specs[site.path] = spec
                changed = True
            context.put(site, Routing(self.by.kind, spec.top_k, spec.threshold))
            context.measure(site, top_k=spec.top_k, threshold=spec.threshold, active_fraction=active_share(site, spec, context))
            measure_router(site, spec, context)
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer with its router and top_k (for a threshold: the top_k that uses as many weights). Raises as `run` does."""
        if config is None:
            return None
        self._check(site, config.experts)
        gates: dict[str, Any] = {"gate_rule": self.gate, "normalize": self.normalize, "detach_sum": self.detach_sum}
        routed = replace(config, router=self.by.shape(config), top_k=None, **gates)
        return replace(routed, top_k=self._choose_top_k(site, routed, self.active))

    def _routed(self, site: FeedForward, spec: MoESpec, context: PassContext) -> MoESpec:
        active, own = self._active(site, context), context.find(site, Budget) is not None
        if own and active is not None and active >= 1 and spec.partitions(site.neurons):
            return spec.all_on()  # allocated all of its weights, a layer needs no router
        bare = replace(spec.all_on(), gate_rule=self.gate, normalize=self.normalize, detach_sum=self.detach_sum)
        self._check(site, len(spec.experts))
        routed = replace(bare, router=self.by.route(site, bare, context))
        top_k = self._choose_top_k(site, routed.config(site), active)
        if self.choice == "top-k":
            return replace(routed, top_k=top_k)
        rows = _mean_rows(site, routed.config(site), active, top_k) * (1 - self.reserve)
        return calibrated_threshold(replace(routed, top_k=self._most(site, len(spec.experts))), rows, site, context)

    def _most(self, site: FeedForward, experts: int) -> int | None:
        return None if self.most is None else min(self.most, experts)

    def _check(self, site: FeedForward, experts: int) -> None:
        if self.top_k is not None and self.top_k > experts:
            raise UsageError(
                f"insert-router.top_k is {self.top_k} but {site.path} has {experts} experts: choose 1 to {experts}"
            )

    def _active(self, site: FeedForward, context: PassContext) -> float | None:
        """The layer's budget, where one is set at all: its own, else that of every layer."""
        found = context.find(site, Budget)
        return self.active if found is None or self.active is None else found.active

    def _choose_top_k(self, site: FeedForward, config: MoEConfig, active: float | None) -> int:
        if active is not None:
            return _largest_top_k(site, config, active)
        usual = config.experts // 4 if config.shards is None else min(2 * config.shards, config.experts)
        return self.top_k or max(1, usual)


def _mean_rows(site: FeedForward, config: MoEConfig, active: float | None, top_k: int) -> float:
    """The rows of routed experts that a token may use on average: what the budget leaves, or what top_k takes."""
    routed = config.rows - config.shared
    if active is None:
        return top_k * routed / config.experts
    every = config.active_fraction(site.neurons, config.experts)
    row = (every - config.active_fraction(site.neurons, 0)) / routed
    return min(max(routed - (every - active) / row, 0.0), float(routed))


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
