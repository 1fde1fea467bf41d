"""Lets vectors stand in for what a token does not use.

    y = S(x) + sum over chosen e of g_e E_e(x) + output bias
        =>
    y = S(x) + sum over chosen e of g_e E_e(x) + output bias + sum over idle e of idle_e        idle-mean
    y = S(x) + sum over chosen e of g_e E_e(x) + another output bias                            mean-bias

Preserved: every weight, the router and its choice. The vectors cost no matrix weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import ExpertRows, expert_rows
from moeify_passes.rewrite.idle_means import idle_means, mean_bias, relative_squared_error
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.threshold import active_share


@dataclass(frozen=True)
class Compensate:
    """Adds what a token does not use, as it is on average.

    kind: "mean-bias" is one vector, the mean of what is off over all calibration tokens, added to the output bias (FLAP, An et
    al. 2023, section 3.3); it serves neurons that no expert holds too, and needs no router. "idle-mean" makes it conditional on
    the routing: a vector for each expert, the mean of E_e(x) over the tokens on which e is idle, added where it is idle; an
    expert that is never idle gets zeros. Best run after the router is final.
    """

    kind: Literal["idle-mean", "mean-bias"] = "idle-mean"

    name: ClassVar[str] = "compensate"
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, NeuronGroups, Experts, Routing)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in ("idle-mean", "mean-bias"):
            raise UsageError(f"compensate.kind is {self.kind!r}: choose idle-mean or mean-bias")

    @property
    def needs(self) -> tuple[type[Fact], ...]:
        return (Routing if self.kind == "idle-mean" else Experts, ActivationSample)

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes the vectors; reports the squared relative error on held-out tokens without them and with them."""
        changed = False
        for site in graph.sites:
            spec = self._compensated(site, graph.specs[site.path], context)
            if not same_spec(graph.specs[site.path], spec):
                graph.specs[site.path] = spec
                changed = True
            context.measure(site, active_fraction=active_share(site, spec, context))
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer with idle vectors, or with an output bias."""
        if config is None:
            return None
        return replace(config, idle=True) if self.kind == "idle-mean" else replace(config, output_bias=True)

    def _compensated(self, site: FeedForward, spec: MoESpec, context: PassContext) -> MoESpec:
        sample = context.get(site, ActivationSample).inputs
        fit, held = held_out(site, sample, context.generator("held-out", site))
        if self.kind == "mean-bias":
            without = _with_bias(site, spec, None)
            rows = expert_rows(site, without)
            found = _with_bias(site, spec, mean_bias(site, spec, rows, fit))
        else:
            without = replace(spec, compensation=replace(spec.compensation, idle=None))
            rows = expert_rows(site, without)
            found = replace(spec, compensation=replace(spec.compensation, idle=idle_means(spec, rows, fit)))
        context.measure(
            site,
            squared_error_uncompensated=relative_squared_error(site, without, rows, held),
            squared_error=relative_squared_error(site, found, _biased(rows, found), held),
        )
        return found


def _biased(rows: ExpertRows, spec: MoESpec) -> ExpertRows:
    """The same matrices, with the output bias that the spec has of its own."""
    bias = spec.weights.get("output_bias")
    return rows if bias is None else replace(rows, tensors=rows.tensors | {"output_bias": bias.float()})


def _with_bias(site: FeedForward, spec: MoESpec, bias: Tensor | None) -> MoESpec:
    """The spec with that output bias [output] in the dtype of the weights; None: the dense FFN's own."""
    others = {name: value for name, value in spec.weights.items() if name != "output_bias"}
    return replace(spec, weights=others if bias is None else others | {"output_bias": bias.to(site.down.read().dtype)})
