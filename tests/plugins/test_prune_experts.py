"""The pass of the example plug-in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Experts
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import Compensation, MoESpec
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify_example_plugin.prune_experts import PruneExperts
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.routers.choice import route_tokens
from moeify_passes.routers.norm_regression import NormRegression
from passes.rewriting import reference
from passes.tiny import correlated_inputs, graph_of, random_site, sampled_context

#: Four shared neurons, and eleven experts of four.
EXPERTS = tuple(torch.split(torch.arange(4, 48), 4))


def routed(site: FeedForward, router: InsertRouter) -> tuple[ModelGraph, PassContext]:
    graph = graph_of(site)
    graph.specs[site.path] = MoESpec(EXPERTS, torch.arange(4))
    context = sampled_context(graph)
    router.run(graph, context)
    return graph, context


def sample(site: FeedForward, context: PassContext) -> Tensor:
    return context.get(site, ActivationSample).inputs


ROUTERS = {
    "average key": InsertRouter(top_k=3),
    "linear": InsertRouter(top_k=3, by=NormRegression()),
    "mlp": InsertRouter(top_k=3, by=NormRegression(width=16, steps=200)),
}


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_the_experts_that_the_fewest_tokens_choose_are_removed(router: InsertRouter) -> None:
    site = random_site(gated=True, biases=True)
    graph, context = routed(site, router)
    before = graph.specs[site.path]
    chosen = route_tokens(before, sample(site, context)).chosen
    assert PruneExperts(remove=2).run(graph, context)
    after = graph.specs[site.path]
    kept = [any(expert is one for one in after.experts) for expert in before.experts]
    assert sum(kept) == len(after.experts) == 9
    times = chosen.sum(0)
    assert max(times[~torch.tensor(kept)]) <= min(times[torch.tensor(kept)])
    share = context.measurements[site.path]["pruned_choices"]
    assert share == pytest.approx(int(times[~torch.tensor(kept)].sum()) / int(times.sum()))
    assert context.get(site, Experts).sizes == (4,) * 9
    assert after.config(site) == PruneExperts(remove=2).foresee(site, before.config(site))


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_tokens_that_chose_none_of_them_get_the_same_output(router: InsertRouter) -> None:
    site = random_site(gated=True, biases=True)
    graph, context = routed(site, router)
    before = graph.specs[site.path]
    PruneExperts(remove=6).run(graph, context)
    after = graph.specs[site.path]
    x = correlated_inputs(500).double()
    gone = torch.tensor([not any(expert is one for one in after.experts) for expert in before.experts])
    untouched = ~route_tokens(before, x).chosen[:, gone].any(1)
    assert 0 < int(untouched.sum()) < len(x)
    same = (reference(site, before, x) - reference(site, after, x)).abs().amax(1) < 1e-12
    assert bool(same[untouched].all())
    assert not bool(same.all()), "the others lose what the removed experts said"


def test_what_belongs_to_an_expert_goes_with_it() -> None:
    site = random_site()
    graph, context = routed(site, ROUTERS["linear"])
    spec = graph.specs[site.path]
    new = {"up": torch.randn(48, site.hidden), "output_bias": torch.randn(site.output)}
    idle = torch.randn(11, site.output)
    graph.specs[site.path] = replace(spec, weights=new, selection_bias=torch.zeros(11), compensation=Compensation(idle=idle))
    PruneExperts(remove=10).run(graph, replace_top_k(graph, context, 1))
    after = graph.specs[site.path]
    (left,) = [i for i, expert in enumerate(EXPERTS) if expert is after.experts[0]]
    rows = torch.cat((torch.arange(4), EXPERTS[left]))
    assert torch.equal(after.weights["up"], new["up"][rows])
    assert torch.equal(after.weights["output_bias"], new["output_bias"])
    assert after.selection_bias is not None
    assert after.selection_bias.shape == (1,)
    assert after.compensation.idle is not None
    assert torch.equal(after.compensation.idle, idle[[left]])


def replace_top_k(graph: ModelGraph, context: PassContext, top_k: int) -> PassContext:
    for path, spec in graph.specs.items():
        graph.specs[path] = replace(spec, top_k=top_k)
    return context


def test_top_k_experts_stay() -> None:
    site = random_site()
    graph, context = routed(site, ROUTERS["linear"])
    expected = r"^prune-experts.remove is 9 but layers.0.mlp has 11 experts and top_k 3: choose at most 8$"
    with pytest.raises(UsageError, match=expected):
        PruneExperts(remove=9).run(graph, context)
    with pytest.raises(UsageError, match=expected):
        PruneExperts(remove=9).foresee(site, graph.specs[site.path].config(site))
    with pytest.raises(UsageError, match=r"^prune-experts.remove is 0: choose 1 or more$"):
        PruneExperts(remove=0)


def test_it_keeps_the_contract() -> None:
    step = PruneExperts()
    assert isinstance(step, Pass)
    assert step.foresee(random_site(), None) is None
