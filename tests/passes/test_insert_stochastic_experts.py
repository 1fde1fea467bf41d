from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from moeify.errors import UsageError
from moeify.ir.facts import Routing
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import Compensation, MoESpec
from moeify.ir.text import graph_text
from moeify.pipeline.context import PassContext
from moeify_passes.check.match_dense import MatchDense
from moeify_passes.rewrite.insert_stochastic_experts import InsertStochasticExperts
from moeify_passes.rewrite.upcycle_experts import UpcycleExperts
from moeify_passes.upcycling.noise import Noise
from passes.rewriting import compare_golden
from passes.tiny import NEURONS, SITES, graph_of, random_site


def copied(*sites: Any, seed: int = 0, **options: Any) -> tuple[ModelGraph, PassContext]:
    graph, context = graph_of(*sites), PassContext(seed=seed)
    UpcycleExperts(**options).run(graph, context)
    return graph, context


@pytest.mark.parametrize("top_k", [1, 2])
def test_draws(top_k: int, request: pytest.FixtureRequest) -> None:
    graph, context = copied(*(make() for make in SITES.values()), copies=3)
    before = {site.path: graph.specs[site.path].config(site) for site in graph.sites}
    step = InsertStochasticExperts(top_k=top_k, scope="token")
    assert step.run(graph, context)
    compare_golden(graph_text(graph), f"insert_stochastic_experts_{top_k}", request)
    assert not step.run(graph, context)
    MatchDense(tolerance=1e-5).run(graph, context)
    for site in graph.sites:
        spec, fact = graph.specs[site.path], context.get(site, Routing)
        assert (fact.router, fact.top_k, fact.threshold) == ("stochastic", top_k, None)
        assert spec.router is not None
        found = spec.config(site)
        foreseen = step.foresee(site, before[site.path])
        assert foreseen is not None
        assert replace(foreseen, router=spec.router.config) == found
        assert spec.active_fraction(site) == pytest.approx(top_k)


def test_every_layer_has_its_own_seed_and_the_seed_of_the_run_decides() -> None:
    def seeds(seed: int) -> list[int]:
        graph, context = copied(random_site("a"), random_site("b"), seed=seed)
        InsertStochasticExperts().run(graph, context)
        return [spec.router.config.seed for spec in graph.specs.values() if spec.router is not None]

    assert len({*seeds(0), *seeds(1)}) == 4
    assert seeds(0) == seeds(0)


def test_experts_of_a_partition_are_summed() -> None:
    graph, context = graph_of(random_site()), PassContext()
    spec = MoESpec(tuple(torch.split(torch.arange(NEURONS), 12)), compensation=Compensation(torch.ones(4, 10)))
    graph.specs["layers.0.mlp"] = spec
    InsertStochasticExperts(top_k=4).run(graph, context)
    found = graph.specs["layers.0.mlp"]
    assert not found.normalize
    assert found.compensation.idle is None
    assert found.active_fraction(graph.sites[0]) == 1


def test_match_dense_reports_how_far_copies_that_differ_are() -> None:
    graph, context = copied(random_site(), copies=2, by=Noise(0.3))
    InsertStochasticExperts().run(graph, context)
    MatchDense().run(graph, context)
    assert context.measurements["layers.0.mlp"]["dense_distance"] > 0.05


@pytest.mark.parametrize("inference", ["merged", "ensemble"])
def test_modes_that_use_all_experts_count_them(inference: Any) -> None:
    graph, context = copied(random_site(), copies=3)
    InsertStochasticExperts(inference=inference).run(graph, context)
    assert graph.specs["layers.0.mlp"].active_fraction(graph.sites[0]) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InsertStochasticExperts(top_k=0), "insert-stochastic-experts.top_k is 0: choose 1 or more"),
        (lambda: InsertStochasticExperts(scope="batch"), "insert-stochastic-experts.scope is 'batch': choose one of forward"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: InsertStochasticExperts(inference="mean"), "insert-stochastic-experts.inference is 'mean': choose one of"),  # type: ignore[arg-type]  # wrong on purpose
        (
            lambda: InsertStochasticExperts(top_k=4).run(*copied(random_site("a"), copies=3)),
            "insert-stochastic-experts.top_k is 4 but a has 3 experts: choose 1 to 3",
        ),
        (
            lambda: InsertStochasticExperts().run(*copied(random_site("a"), copies=3, shards=2)),
            "draws whole copies, but those of a are cut in 2 shards: leave upcycle-experts.shards at 1",
        ),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


def test_the_mean_of_experts_that_are_no_copies_is_refused() -> None:
    graph = graph_of(random_site("a"))
    graph.specs["a"] = MoESpec(tuple(torch.split(torch.arange(NEURONS), 12)))
    with pytest.raises(UsageError, match="inference is 'merged' but the experts of a are no copies of one FFN"):
        InsertStochasticExperts(inference="merged").run(graph, PassContext())
