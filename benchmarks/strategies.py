"""Experts and routers side by side on single FFNs of SmolLM2-135M, before layers add up. One row of JSON.

PYTHONPATH=examples python -m benchmarks.strategies [--tokens N] [--layers 6,14,22] [--write]
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import moeify
import real_models
from benchmarks.rows import arguments, machine, show
from moeify.data.open_data import open_data
from moeify.ir.facts import ActivationSample, CoActivation, Experts, Fact, NeuronGroups, NeuronImportance, NeuronStatistics
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.layers.routing import choose
from moeify.pipeline.context import PassContext
from moeify_passes import (
    ActivationMarkers,
    AverageKey,
    BalancedKMeans,
    Calibrate,
    ClusterNeurons,
    CoActivationGraph,
    FindFeedForward,
    GradientImportance,
    InsertRouter,
    MeasureCoActivation,
    MeasureImportance,
    MlpClassifier,
    NormRegression,
    Random,
    RepresentativeNeuron,
    Similarity,
    Spectral,
    SplitExperts,
)
from moeify_passes.expert_rows import expert_norms, expert_rows
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.rewrite.idle_means import relative_squared_error
from moeify_passes.routers.held_out import held_out

EXPERTS, TOP_K = 16, 8

EXPERT_STRATEGIES: dict[str, Any] = {
    "random": Random(),
    "balanced-k-means": BalancedKMeans(),
    "co-activation-graph, metis": CoActivationGraph("metis"),
    "co-activation-graph, spectral": CoActivationGraph("spectral"),
    "gradient-importance": GradientImportance(),
    "activation-markers, as CMoE": ActivationMarkers(10, False, True, "rates", 1),
    "activation-markers": ActivationMarkers(),
}

ROUTERS: dict[str, Any] = {
    "average-key": AverageKey(),
    "similarity": Similarity(),
    "representative-neuron": RepresentativeNeuron(),
    "mlp-classifier": MlpClassifier(),
    "spectral, rank 8": Spectral(8),
    "norm-regression, linear": NormRegression(),
    "norm-regression, width 128": NormRegression(128),
}


@dataclass(frozen=True)
class Compare:
    """Tries every strategy on the site; leaves specs alone. found: layer -> name -> figures."""

    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    name: ClassVar[str] = "compare"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample, NeuronStatistics, CoActivation, NeuronImportance)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        for site in graph.sites:
            held = held_site(site)
            scratch = ModelGraph(graph.host, (held,))
            rows = self.found.setdefault(site.path, {})
            _, inputs = held_out(site, context.get(site, ActivationSample).inputs, context.generator("held-out", site))
            for caption, by in EXPERT_STRATEGIES.items():
                started = time.perf_counter()
                ClusterNeurons(EXPERTS, by=by).run(scratch, context)
                seconds = time.perf_counter() - started
                spec = MoESpec(context.get(site, NeuronGroups).groups)
                rows[caption] = {"oracle_error": round(_oracle_error(held, spec, inputs), 4), "seconds": round(seconds, 1)}
            SplitExperts().run(scratch, context)  # the last ones: markers
            context.put(site, Experts((1,), True))
            split = scratch.specs[site.path]
            for caption, by in ROUTERS.items():
                scratch.specs[site.path] = split
                started = time.perf_counter()
                InsertRouter(TOP_K, by=by).run(scratch, context)
                seconds = time.perf_counter() - started
                rows[caption] = _router_figures(held, scratch.specs[site.path], inputs, context) | {
                    "seconds": round(seconds, 1)
                }
        return False


def _oracle_error(site: FeedForward, spec: MoESpec, inputs: Tensor) -> float:
    """Squared relative error where each token uses the TOP_K experts that say most."""
    rows, error, size = expert_rows(site, spec), 0.0, 0.0
    for x in token_chunks(inputs, site.neurons):
        off = ~choose(expert_norms(rows, x), TOP_K, None)
        missing = sum(off[:, e, None] * rows.output(x, e) for e in range(EXPERTS))
        error += float(torch.as_tensor(missing).double().square().sum())
        size += float(rows.all_on(x).double().square().sum())
    return error / size


def _router_figures(site: FeedForward, spec: MoESpec, inputs: Tensor, context: PassContext) -> dict[str, float]:
    measured, bare = context.measurements[site.path], replace(spec, router=None, top_k=None)
    share, chance = measured["router_share"], measured["random_share"]
    cost = spec.active_fraction(site) - bare.active_fraction(site) * TOP_K / EXPERTS
    return {
        "error": round(relative_squared_error(site, spec, expert_rows(site, spec), inputs), 4),
        "share of the oracle's gain": round((share - chance) / (1 - chance), 3),
        "router's weights / FFN's": round(cost, 4),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", default="6,14,22")
    options = parser.parse_args()
    graph = moeify.open_model(real_models.smollm2())
    loaded = graph.host.loaded  # type: ignore[attr-defined]  # an eager host
    data = open_data(real_models.technical_text(), tokenizer=loaded.tokenizer, example=loaded.example, tokens=options.tokens)
    compare = Compare()
    steps = (Calibrate(options.tokens), MeasureCoActivation(), compare)
    find = FindFeedForward(",".join(f"model.layers.{layer}.mlp" for layer in options.layers.split(",")))
    importance = MeasureImportance(groups=EXPERTS, tokens=options.tokens)
    report = moeify.Pipeline((find, importance, moeify.EachLayer(steps, prefix="dense"))).run(graph, data)
    seconds = {name: round(report.seconds[name], 1) for name in (importance.name, "measure-co-activation")}
    figures = {"benchmark": "strategies", "experts": EXPERTS, "top_k": TOP_K, "tokens": options.tokens, "seconds": seconds}
    show({**figures, **machine(), "layers": compare.found}, options.write)


if __name__ == "__main__":
    main()
