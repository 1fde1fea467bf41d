from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeify.errors import ConversionError, UsageError
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.check.match_dense import MatchDense
from passes.tiny import NEURONS, SITES, correlated_inputs, graph_of, random_site, sampled_context

HALVES = MoESpec((torch.arange(24), torch.arange(24, 48)))
ROUTER = Router(RouterConfig("linear"), {"weight": torch.ones(2, 12)})


def distance(site: FeedForward, spec: MoESpec, context: PassContext, step: MatchDense | None = None) -> float:
    graph = graph_of(site)
    graph.specs[site.path] = spec
    assert not (step or MatchDense()).run(graph, context)
    return float(context.measurements[site.path]["dense_distance"])


@pytest.mark.parametrize("sampled", [True, False], ids=["on the sample", "on normal inputs"])
@pytest.mark.parametrize("caption", SITES)
def test_a_split_matches(caption: str, sampled: bool) -> None:
    site = SITES[caption]()
    order = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(1))
    spec = MoESpec(tuple(torch.split(order[8:], [5, 15, 20])), order[:8])
    context = sampled_context(graph_of(site)) if sampled else PassContext()
    assert 0 < distance(site, spec, context) < 3e-6


def test_a_difference_is_an_error_that_names_layer_and_figure() -> None:
    site = random_site("net.mlp")
    values = [site.up.read(), site.up.read() * 1.01]
    changing = replace(site, up=replace(site.up, load=lambda _: values.pop()))
    with pytest.raises(
        ConversionError, match=r"^net\.mlp: the experts differ from the dense FFN by 0\.0\d+ of its largest output"
    ):
        distance(changing, HALVES, PassContext())


def test_the_tolerance_decides() -> None:
    site = random_site()
    values = [site.up.read(), site.up.read() * 1.01]
    changing = replace(site, up=replace(site.up, load=lambda _: values.pop()))
    assert 0.001 < distance(changing, HALVES, PassContext(), MatchDense(tolerance=0.5)) < 0.5


@pytest.mark.parametrize(
    ("caption", "spec", "equal"),
    [
        ("a neuron missing", MoESpec((torch.arange(20), torch.arange(24, 48))), False),
        ("neurons twice", MoESpec((torch.arange(30), torch.arange(24, 48))), False),
        ("new weights", replace(HALVES, weights={"down": torch.ones(48, 10)}), False),
        ("routed", replace(HALVES, router=ROUTER, top_k=1), True),
        ("compensated", replace(HALVES, compensation=Compensation(idle=torch.ones(2, 10))), True),
    ],
)
def test_only_reports_where_equality_was_not_promised(caption: str, spec: MoESpec, equal: bool) -> None:
    assert (distance(random_site(), spec, PassContext()) < 3e-6) == equal, caption


@pytest.mark.parametrize("spec", [HALVES, replace(HALVES, router=ROUTER, top_k=1)], ids=["split", "routed"])
def test_weights_that_are_not_finite_fail_everywhere(spec: MoESpec) -> None:
    site = random_site("net.mlp")
    bad = site.down.read().clone()
    bad[3, 4] = torch.nan
    with pytest.raises(ConversionError, match=r"net\.mlp: down holds values that are not finite"):
        distance(replace(site, down=replace(site.down, load=lambda _: bad)), spec, PassContext())


def test_outputs_that_are_not_finite_fail() -> None:
    site = random_site("net.mlp")
    huge = torch.full((48, 10), 3e38)
    with pytest.raises(ConversionError, match=r"net\.mlp: the experts or the dense FFN give values that are not finite"):
        distance(replace(site, down=replace(site.down, load=lambda _: huge)), HALVES, PassContext())


def test_an_ffn_that_is_all_zero_matches() -> None:
    site = random_site()
    assert distance(replace(site, down=replace(site.down, load=lambda _: torch.zeros(48, 10))), HALVES, PassContext()) == 0


def test_a_part_of_the_sample_is_enough() -> None:
    site = random_site()
    context = sampled_context(graph_of(site), correlated_inputs(1000))
    assert distance(site, HALVES, context, MatchDense(tokens=1)) < 3e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "match-dense.tolerance is 0.0: choose a number above 0"),
        ({"tolerance": float("nan")}, "match-dense.tolerance is nan: choose a number above 0"),
        ({"tokens": 0}, "match-dense.tokens is 0: choose 1 or more"),
    ],
)
def test_refuses_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as error:
        MatchDense(**options)  # type: ignore[arg-type]  # one table for options of two types
    assert message in str(error.value)
