from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import Experts, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.scale_experts import ScaleExperts
from passes.rewriting import reference
from passes.routed import in_four
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context


def scaled(site: FeedForward, step: ScaleExperts, top_k: int = 2) -> tuple[MoESpec, MoESpec, float]:
    """The spec behind a softmax router, before and after; the factor."""
    graph = graph_of(site)
    graph.specs[site.path] = in_four(site, shared=8)
    context = sampled_context(graph)
    context.put(site, Experts((1,), True))
    InsertRouter(top_k=top_k, gate="softmax", normalize=True).run(graph, context)
    before = graph.specs[site.path]
    assert step.run(graph, context)
    after = graph.specs[site.path]
    assert not step.run(graph, context)
    assert graph.specs[site.path] is after
    assert context.find(site, Routing) is not None
    return before, after, context.measurements[site.path]["scale_factor"]


def parts(site: FeedForward, spec: MoESpec) -> tuple[torch.Tensor, torch.Tensor]:
    """The routed experts' part of the output, and what it should be: the dense output without the shared expert's part."""
    x = correlated_inputs(600).double()
    idle = replace(spec, threshold=2.0)  # no softmax reaches it
    shared = reference(site, idle, x)
    return reference(site, spec, x) - shared, site.forward(x) - shared


@pytest.mark.parametrize("caption", [c for c in SITES if "bfloat16" not in c])
def test_a_factor_scales_the_routed_part_alone(caption: str) -> None:
    site = SITES[caption]()
    before, after, factor = scaled(site, ScaleExperts(4.0))
    assert factor == 4.0
    torch.testing.assert_close(parts(site, after)[0], 4 * parts(site, before)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts(site, after)[1], parts(site, before)[1])


@pytest.mark.parametrize("caption", [c for c in SITES if "bfloat16" not in c])
def test_the_fitted_factor_has_the_least_squared_error(caption: str) -> None:
    site = SITES[caption]()
    before, _, factor = scaled(site, ScaleExperts())
    routed, wanted = parts(site, before)
    assert factor == pytest.approx(float((routed * wanted).sum() / routed.square().sum()), rel=1e-4)


def test_copies_of_the_ffn_are_refused() -> None:
    graph = graph_of(random_site("a"))
    graph.specs["a"] = MoESpec((torch.arange(48), torch.arange(48)), normalize=True, shards=1)
    with pytest.raises(ConversionError, match="a: experts that are copies of the FFN have their own scale"):
        ScaleExperts(2.0).run(graph, sampled_context(graph))


def test_refuses_options() -> None:
    with pytest.raises(UsageError, match=r"scale-experts.factor is 0.0: choose a number above 0, or none"):
        ScaleExperts(0.0)
