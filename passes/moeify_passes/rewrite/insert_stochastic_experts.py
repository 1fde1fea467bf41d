"""Lets chance choose the experts (THOR, Zuo et al. 2022).

    y = S(x) + E_1(x) + ... + E_n(x)
        =>
    y = S(x) + mean of E_e(x) over the k experts drawn        for copies; the sum of them otherwise

Preserved: every weight of every expert; with equal copies of the FFN also the function, whatever is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import SEEDS, Inference, MoEConfig, RouterConfig, Scope
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.same_spec import same_spec


@dataclass(frozen=True)
class InsertStochasticExperts:
    """Gives the layer a router that draws experts uniformly; no weights, and only drawn experts are computed.

    top_k: how many are drawn (1 in the paper). scope: one draw for a whole "forward" (as the paper trains), for each "sequence"
    or each "token". inference: "random" draws as in training, "fixed" takes a hash of token id and position, "merged" the mean
    of the experts' weights, "ensemble" the mean of their outputs; it can be changed later (moeify.set_inference).
    """

    top_k: int = 1
    scope: Scope = "forward"
    inference: Inference = "random"

    name: ClassVar[str] = "insert-stochastic-experts"
    needs: ClassVar[tuple[type[Fact], ...]] = (Experts,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Routing,)
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, NeuronGroups, Experts)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"insert-stochastic-experts.top_k is {self.top_k}: choose 1 or more")
        for name, known in (("scope", get_args(Scope)), ("inference", get_args(Inference))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"insert-stochastic-experts.{name} is {value!r}: choose one of {', '.join(known)}")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes the router; compensation made for another routing is taken out. Raises UsageError as `foresee` does."""
        changed = False
        for site in graph.sites:
            spec = self._drawn(site, graph.specs[site.path], context)
            if not same_spec(graph.specs[site.path], spec):
                graph.specs[site.path] = spec
                changed = True
            context.put(site, Routing("stochastic", spec.top_k, None))
            context.measure(site, top_k=spec.top_k, active_fraction=spec.active_fraction(site))
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer with its router. Raises UsageError for more experts than there are, and for shards of copies."""
        if config is None:
            return None
        self._check(site, config.experts, config.shards)
        router = RouterConfig("stochastic", scope=self.scope, inference=self.inference, seed=0)
        return replace(
            config, router=router, gate_rule="one", normalize=config.shards is not None, detach_sum=False, top_k=self.top_k
        )

    def _drawn(self, site: FeedForward, spec: MoESpec, context: PassContext) -> MoESpec:
        self._check(site, len(spec.experts), spec.shards)
        seed = int(torch.randint(1, SEEDS, (), generator=context.generator("routers/stochastic", site)))
        router = Router(RouterConfig("stochastic", scope=self.scope, inference=self.inference, seed=seed), {})
        return replace(spec.all_on(), router=router, normalize=spec.shards is not None, top_k=self.top_k)

    def _check(self, site: FeedForward, experts: int, shards: int | None) -> None:
        if self.top_k > experts:
            raise UsageError(
                f"insert-stochastic-experts.top_k is {self.top_k} but {site.path} has {experts} experts: choose 1 to {experts}"
            )
        if shards is not None and shards > 1:
            raise UsageError(
                f"insert-stochastic-experts draws whole copies, but those of {site.path} are cut in {shards} shards: "
                "leave upcycle-experts.shards at 1"
            )
        if self.inference == "merged" and shards is None:
            raise UsageError(
                f"insert-stochastic-experts.inference is 'merged' but the experts of {site.path} are no copies of one FFN: "
                "choose random, fixed or ensemble, or make them with upcycle-experts"
            )
