"""Fits the output weights anew to what the routing leaves of the hidden neurons.

    y = sum over the rows that are on of g h_i(x) down_i + compensation + output bias
        =>
    y = sum over the rows that are on of g h_i(x) down'_i + (x low_rank_in^T) low_rank_out' + output bias'

Preserved: which rows there are, their weights going in, the router and its choice, idle vectors, the active fraction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronStatistics, OutputGoals, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.held_site import held_site
from moeify_passes.rewrite.output_fit import OutputFit
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.threshold import active_share
from moeify_passes.token_weights import TokenWeights


@dataclass(frozen=True)
class RefitOutputs:
    """Ridge regression, in closed form, of the dense FFN's output on what is on, towards the weights so far.

    The reconstruction of one-shot pruning (Optimal Brain Surgeon, Hassibi, Stork 1993; as layer-wise least squares in
    SparseGPT, Frantar, Alistarh 2023, section 3), conditional on the routing: a row takes over what is missing when it is on.

    shrink: strengths of the penalty to choose from, each above 0, in units of a feature's own sum of squares; the one with the
    least error on a held-out tenth of the sample is taken, and none of them where the weights so far are better.
    stream: the part of what the layers before have lost that a layer tries to take back, 0 to 1. At 0 its goal is what the
    dense FFN says to the layer's own input; at 1 what brings the sum that the output goes into (the residual stream) to where
    it is in the dense model (asymmetric calibration: GPTAQ, Li et al. 2025). All of it is more than can be told from the
    layer's input: half lost less on SmolLM2. It takes the dense model along; where there is no such sum, or nothing was lost
    before (each-layer on the dense prefix), it is 0.
    Best run last: after the router, and after a low-rank term, which is fitted anew together with the rest.
    """

    shrink: tuple[float, ...] | list[float] = (0.1, 0.3, 1.0, 3.0)
    stream: float = 0.0

    name: ClassVar[str] = "refit-outputs"
    needs: ClassVar[tuple[type[Fact], ...]] = (Experts, ActivationSample)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, NeuronGroups, Experts, Routing)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shrink", tuple(self.shrink))  # TOML gives lists
        if not self.shrink or not all(isinstance(s, int | float) and 0 < s < float("inf") for s in self.shrink):
            raise UsageError(f"refit-outputs.shrink is {list(self.shrink)}: give numbers above 0, such as [0.3, 1.0, 3.0]")

        if not 0 <= self.stream <= 1:
            raise UsageError(f"refit-outputs.stream is {self.stream}: choose a part from 0 to 1, such as 0.5")

    @property
    def uses(self) -> tuple[type[Fact], ...]:
        return (OutputGoals,) if self.stream > 0 else ()

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes down rows, output bias and low_rank_out; reports the strength taken and the error without and with it."""
        changed = False
        for site in graph.sites:
            spec = graph.specs[site.path]
            found = self._refitted(site, spec, context)
            if not same_spec(spec, found):
                graph.specs[site.path] = found
                changed = True
            context.measure(site, active_fraction=active_share(site, found, context))
        return changed

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer with an output bias."""
        return None if config is None else replace(config, output_bias=True)

    def fit_memory(self, config: MoEConfig) -> int:
        """The products of all pairs of features, once as they are, once with the penalty and once decomposed; float32."""
        return 3 * 4 * (config.rows + config.rank + 1) ** 2

    def _refitted(self, site: FeedForward, spec: MoESpec, context: PassContext) -> MoESpec:
        if spec.router is None and spec.partitions(site.neurons):
            return spec  # the dense FFN itself
        if spec.composed is not None:
            raise ConversionError(f"{site.path}: refit-outputs fits rows of their own, but these experts share a frozen core")
        sample = context.get(site, ActivationSample).inputs
        known = context.find(site, OutputGoals) if self.stream > 0 else None
        goals = (None, None) if known is None else held_out(site, known.goals, context.generator("held-out", site))
        inputs, held = held_out(site, sample, context.generator("held-out", site))
        fit = OutputFit(site, spec, expert_rows(site, spec), TokenWeights.of(held_site(site), inputs), self.stream)
        solve = fit.candidates(inputs, goals[0])
        candidates = [fit.start, *map(solve, self.shrink)]
        errors = fit.errors(held, candidates, goals[1])
        taken = min(range(len(errors)), key=errors.__getitem__)
        context.measure(site, output_error_before=errors[0], output_error=errors[taken])
        context.measure(site, refit_shrink=self.shrink[taken - 1] if taken else None)
        return _with_outputs(site, spec, candidates[taken])


def _with_outputs(site: FeedForward, spec: MoESpec, found: Tensor) -> MoESpec:
    """The spec with these weights [rows (+ rank) + 1, output] in the dtype of the dense ones."""
    rows, dtype = spec.offsets[-1], site.down.read().dtype
    weights = {**spec.weights, "down": found[:rows].to(dtype), "output_bias": found[-1].to(dtype)}
    term = spec.compensation
    if term.low_rank_out is not None:
        term = replace(term, low_rank_out=found[rows:-1].to(torch.float32))
    return replace(spec, weights=weights, compensation=term)
