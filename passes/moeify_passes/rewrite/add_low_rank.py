"""Puts a linear term of low rank in the place of some of the experts that a token uses.

    y = sum over the k experts with the largest scores of g_e E_e(x) + output bias
        =>
    y = sum over the k' <= k experts with the largest scores of g_e E_e(x) + (x low_rank_in^T) low_rank_out + output bias'

Preserved: every weight of every expert, the router, and the active fraction, which does not grow: the term is paid for in
experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import ExpertRows, expert_rows
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.rewrite.output_fit import OutputFit
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.routed_output import routed_output
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.reduced_rank import ReducedRankFit
from moeify_passes.token_weights import TokenWeights


@dataclass(frozen=True)
class AddLowRank:
    """Predicts what the routing leaves out from the layer's input: reduced-rank regression in closed form.

    ranks: to choose from, counts or fractions of the FFN's inputs. A rank costs as many weights as the input and the output are
    wide; for each rank top_k is lowered until the layer's active fraction is no larger than before. The rank with the least
    error on a held-out tenth of the sample is taken; none where the layer is better without. ridge: penalty on squared weights
    for inputs scaled to variance 1. A layer without a router is left alone. Best run after the router, before refit-outputs.
    """

    ranks: tuple[int | float, ...] | list[int | float] = (0.03, 0.06, 0.12)
    ridge: float = 0.1

    name: ClassVar[str] = "add-low-rank"
    needs: ClassVar[tuple[type[Fact], ...]] = (Routing, ActivationSample)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, NeuronGroups, Experts, Routing)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", tuple(self.ranks))  # TOML gives lists
        for rank in self.ranks:
            if not isinstance(rank, int | float) or rank <= 0 or (isinstance(rank, float) and rank > 1):
                raise UsageError(f"add-low-rank.ranks holds {rank!r}: give counts from 1, or fractions of at most 1.0")
        if not self.ridge > 0:
            raise UsageError(f"add-low-rank.ridge is {self.ridge}: choose a number above 0")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes low_rank_in, low_rank_out, output bias and top_k. Raises ConversionError for a layer that has a threshold."""
        changed = False
        for site in graph.sites:
            spec = graph.specs[site.path]
            found = spec if spec.router is None else self._best(site, spec, context)
            if not same_spec(spec, found):
                graph.specs[site.path] = found
                changed = True
                context.put(site, Routing(context.get(site, Routing).router, found.top_k, None))
            context.measure(site, top_k=found.top_k, active_fraction=found.active_fraction(site))
        return changed

    def _best(self, site: FeedForward, spec: MoESpec, context: PassContext) -> MoESpec:
        if spec.threshold is not None:
            raise ConversionError(f"{site.path}: add-low-rank pays for its term in top_k, but the layer has a threshold")
        inputs, held = held_out(site, context.get(site, ActivationSample).inputs, context.generator("held-out", site))
        weights, rows = TokenWeights.of(held_site(site), inputs), expert_rows(site, spec)

        def error(candidate: MoESpec) -> float:
            fit = OutputFit(site, candidate, expert_rows(site, candidate), weights)
            return fit.errors(held, [fit.start])[0]

        best, least, taken = spec, error(spec), 0
        for rank in sorted({self._count(rank, site) for rank in self.ranks}):
            afforded = _afforded(site, spec, rank)
            if afforded is None:
                break
            found = self._fitted(site, afforded, rows, weights, inputs, rank)
            if (now := error(found)) < least:
                best, least, taken = found, now, rank
        context.measure(site, low_rank=taken, low_rank_error=least)
        return best

    def _count(self, rank: int | float, site: FeedForward) -> int:
        return min(rank if isinstance(rank, int) else max(1, round(rank * site.hidden)), site.hidden, site.output)

    def _fitted(
        self, site: FeedForward, spec: MoESpec, rows: ExpertRows, weights: TokenWeights, inputs: Tensor, rank: int
    ) -> MoESpec:
        """The spec with the term fitted to what it leaves out."""
        dense, fit = held_site(site), ReducedRankFit(inputs, site.output)
        own = 0.0 if dense.output_bias is None else dense.output_bias.read()
        for x in token_chunks(inputs, max(rows.offsets[-1], site.output)):
            y = dense.forward(x)
            fit.add(x, y - routed_output(spec, rows, x), weights.weights(y - own))
        found, dtype = fit.solve(rank, self.ridge), site.down.read().dtype
        out = found["weight_out"].T.contiguous()
        term = replace(spec.compensation, low_rank_in=found["weight_in"], low_rank_out=out)
        bias = found["bias_in"] @ out + found["bias_out"]
        return replace(spec, compensation=term, weights={**spec.weights, "output_bias": bias.to(dtype)})


def _afforded(site: FeedForward, spec: MoESpec, rank: int) -> MoESpec | None:
    """The spec without a term and with the top_k that leaves room for one of that rank; None where not one expert is left."""
    bare = replace(spec, compensation=replace(spec.compensation, low_rank_in=None, low_rank_out=None))
    config, now = bare.config(site), spec.active_fraction(site)
    cost = rank * (site.hidden + site.output) / site.parameters
    for k in range(spec.top_k or len(spec.experts), 0, -1):
        if config.active_fraction(site.neurons, k) + cost <= now + 1e-12:
            return replace(bare, top_k=k)
    return None
