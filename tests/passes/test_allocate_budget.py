from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Budget, FeedForwards
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, ModelGraph, StandIn, Trial
from moeify.ir.moe_spec import MoESpec
from moeify.ir.token_weights import damped
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.pipeline import Pipeline
from moeify_passes.analyse.allocate_budget import AllocateBudget, _rows
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.shares.beam_search import BeamSearch, _Search
from moeify_passes.shares.error_curves import ErrorCurves
from moeify_passes.shares.exponential_errors import ExponentialErrors
from moeify_passes.shares.share_rule import Limits, ShareRule, divided
from moeify_passes.shares.uniform_shares import UniformShares
from passes.tiny import correlated_inputs, graph_of, random_site, sampled_context

SITES = [random_site(f"layers.{i}.mlp", neurons=n) for i, n in enumerate((48, 48, 24, 96))]
BATCH = {"input_ids": torch.arange(12).view(3, 4), "other": torch.zeros(3, 2), "scale": torch.ones(2)}


def spent(shares: list[float]) -> float:
    weights = [site.parameters for site in SITES]
    return sum(s * w for s, w in zip(shares, weights)) / sum(weights)


def by_effects(active: float, effects: list[float], least: float = 0.5, whole: float = 0.92) -> list[float]:
    graph, context = graph_of(*SITES[: len(effects)]), PassContext(batches=[BATCH])
    with patch.object(graph.host, "effects", return_value=effects):
        AllocateBudget(active, least=least, whole=whole).run(graph, context)
    return [context.get(site, Budget).active for site in graph.sites]


@settings(deadline=None, max_examples=60)
@given(st.floats(0.05, 1.0), st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_the_budget_is_spent_and_no_more(active: float, effects: list[float]) -> None:
    shares = by_effects(active, effects)
    assert spent(shares) <= active + 1e-9
    assert spent(shares) >= active - 0.08 * 96 / 216 - 1e-6, "but for the step of the largest layer to all of its weights"
    assert all(0.5 * active - 1e-9 <= share <= 1 and (share == 1 or share <= 0.92) for share in shares)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.01, 3), min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 3), st.floats(-0.02, 0.02))
def test_no_shift_between_two_layers_would_do_better(effects: list[float], a: int, b: int, shift: float) -> None:
    shares = by_effects(0.5, effects, whole=1.0, least=0.01)

    def loss(shares: list[float]) -> float:
        return sum(e * math.exp(-4 * s) for e, s in zip(effects, shares))

    other = list(shares)
    other[a] += shift / SITES[a].parameters * 1000
    other[b] -= shift / SITES[b].parameters * 1000
    if all(0.005 <= s <= 1 for s in other):
        assert loss(other) >= loss(shares) - 1e-6


def test_uniform_shares_are_the_budget() -> None:
    graph, context = graph_of(*SITES), PassContext(batches=[BATCH])
    AllocateBudget(0.3, by=UniformShares()).run(graph, context)
    assert [context.get(site, Budget).active for site in SITES] == [pytest.approx(0.3)] * 4


def test_curves_spend_where_a_neuron_on_a_token_is_worth_most() -> None:
    """Against sorting every neuron of every layer on every token by its worth, and running the best that the budget pays."""
    tokens = [{"x": x[None]} for x in correlated_inputs(80)]
    graph, context = graph_of(*SITES), PassContext(batches=tokens)
    AllocateBudget(0.3, by=ErrorCurves(), tokens=80, least=1e-6, whole=1.0).run(graph, context)
    effects = graph.host.effects(graph.sites, [], 0.3, torch.Generator())
    worth = []
    for site, effect in zip(SITES, effects):
        h, down = site.neuron_outputs(correlated_inputs(80)), site.down.read()
        gains = h.square() * down.square().sum(1)
        gains *= damped((h @ down).square().sum(1))[:, None]
        worth.append(gains / gains.mean() * effect / site.parameters)
    order = torch.cat([w.flatten() for w in worth]).sort(descending=True).values
    price = order[int(0.3 * len(order))]  # sites cost as much a neuron
    for site, values in zip(SITES, worth):
        assert context.get(site, Budget).active == pytest.approx(float((values >= price).float().mean()), abs=0.02)


def divergence(graph: ModelGraph, data: list[Batch], shares: list[float]) -> float:
    """Of the host where each layer runs the neurons of the largest gains on each token that so much pays for, by sorting."""

    def best(site: FeedForward, share: float) -> StandIn:
        def run(x: Tensor) -> Tensor:
            h, down = site.neuron_outputs(x), site.down.read()
            gains = h.square() * down.square().sum(1) * damped((h @ down).square().sum(1))[:, None]
            lowest = gains.flatten().sort(descending=True).values[min(math.ceil(share * h.numel()), h.numel()) - 1]
            return h * (gains >= lowest) @ down

        return run

    with graph.host.trials(data) as start:
        return start.distance({site.path: best(site, share) for site, share in zip(SITES, shares)})


@pytest.mark.parametrize("active", [0.1, 0.15, 0.2])
def test_a_beam_finds_what_does_better_on_the_model_than_curves(active: float) -> None:
    data: list[Batch] = [{"x": x[None]} for x in correlated_inputs(80)]
    found = {}
    for by in (ErrorCurves(), BeamSearch(width=1), BeamSearch(width=6)):
        graph, context = graph_of(*SITES), PassContext(batches=data)
        AllocateBudget(active, by=by, tokens=80, least=0.2).run(graph, context)
        shares = [context.get(site, Budget).active for site in SITES]
        assert spent(shares) <= active + 1e-9
        assert min(shares) >= 0.2 * active - 1e-9
        found[getattr(by, "width", 0)] = divergence(graph, data, shares)
    assert found[6] <= found[1] <= found[0]
    assert found[6] < found[0]


def test_a_beam_tries_nothing_twice_and_divides_the_rest_as_curves_do() -> None:
    data: list[Batch] = [{"x": x[None]} for x in correlated_inputs(40)]
    graph, context, tried = graph_of(*SITES), PassContext(batches=data), list[tuple[float, ...]]()

    def keep(search: Any, shares: tuple[float, ...], trial: Trial, settled: int) -> Any:
        tried.append(shares)
        return whole(search, shares, trial, settled)

    whole = _Search._tried
    with patch.object(_Search, "_tried", keep):
        AllocateBudget(0.4, by=BeamSearch(width=2), tokens=40).run(graph, context)
    assert len(tried) == len(set(tried)) <= 1 + 2 * (1 + 3 * 2)
    assert all(spent(list(shares)) <= 0.4 + 1e-9 for shares in tried)
    first = tried[0]
    assert sorted(shares[0] / first[0] for shares in tried[1:3]) == pytest.approx([0.8, 1.25])


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 0.95), st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(0.5, 3))
def test_any_rules_that_rise_are_divided(active: float, starts: list[float], power: float) -> None:
    def rule(start: float) -> ShareRule:
        return lambda level: start + math.copysign(abs(level) ** power, level)

    shares = divided(Limits(active, 0.0, 1.0), SITES, [rule(start) for start in starts])
    assert spent(shares) <= active + 1e-9
    assert spent(shares) == pytest.approx(active, abs=1e-3)


def test_every_site_gets_its_budget_and_an_equal_effect_an_equal_one() -> None:
    graph, context = graph_of(*SITES), PassContext(batches=[BATCH])
    context.put(None, FeedForwards(4, 0))
    assert not AllocateBudget(0.4, whole=1.0).run(graph, context)
    shares = [context.get(site, Budget).active for site in SITES]
    assert spent(shares) == pytest.approx(0.4)
    assert [context.measurements[site.path]["budget"] for site in SITES] == shares
    assert shares[2] > shares[1] > shares[0]  # effects 1, 2, 4 (of half as many weights), 8 (of twice as many)
    assert by_effects(0.4, [0.7, 0.7]) == [pytest.approx(0.4)] * 2


def test_the_router_keeps_to_the_layer_s_own_budget_and_a_whole_layer_has_none() -> None:
    graph = graph_of(*SITES)
    context = sampled_context(graph)
    for site, share in zip(SITES, (0.4, 0.8, 0.6, 1.0)):
        graph.specs[site.path] = MoESpec(tuple(torch.split(torch.arange(site.neurons), 4)))
        context.put(site, Budget(share))
    InsertRouter(active=0.5).run(graph, context)
    found = [graph.specs[site.path].active_fraction(site) for site in SITES]
    assert found[3] == 1.0
    assert graph.specs[SITES[3].path].router is None
    for site, share, fraction in zip(SITES[:3], (0.4, 0.8, 0.6), found):
        assert fraction <= share
        one_more = replace(graph.specs[site.path], top_k=(graph.specs[site.path].top_k or 0) + 1)
        assert one_more.active_fraction(site) > share
    InsertRouter(top_k=3).run(graph, context)
    assert [graph.specs[site.path].top_k for site in SITES] == [3] * 4, "a top_k that is asked for holds"


def test_a_rewrite_does_not_end_a_budget() -> None:
    site = SITES[0]
    graph = graph_of(site)
    graph.specs[site.path] = MoESpec(tuple(torch.split(torch.arange(48), 8)))

    class Change(InsertRouter):
        def run(self, graph: Any, context: Any) -> bool:
            context.put(site, ActivationSample(correlated_inputs(50), 50))
            return super().run(graph, context)

    steps: tuple[Pass, ...] = (FindFeedForward(), AllocateBudget(0.5), Change(top_k=2), InsertRouter(active=0.5))
    from moeify.pipeline.running import run_passes

    context = PassContext(batches=[BATCH])
    run_passes(steps, graph, context)
    assert context.get(site, Budget).active == pytest.approx(0.5)
    assert Pipeline((FindFeedForward(), AllocateBudget())).passes


def test_the_first_rows_of_several_batches_are_looked_at() -> None:
    rows = list(_rows([BATCH] * 9, 10))
    assert len(rows) == 3
    assert all(isinstance(row, dict) for row in rows)
    assert {name: list(t.shape) for name, t in rows[0].items()} == {"input_ids": [1, 4], "other": [1, 2], "scale": [2]}  # type: ignore[union-attr]  # a dict
    floats = list(_rows([(torch.zeros(5, 3),)] * 9, 4))
    assert [batch[0].shape for batch in floats] == [(1, 3)] * 4  # type: ignore[index]  # tuples


def shapes(batches: list[dict[str, Tensor]]) -> list[dict[str, list[int]]]:
    """Those of the rows that are looked at for 256 tokens, by name."""
    found = []
    for row in _rows(batches, 256):
        assert isinstance(row, dict)
        found.append({name: list(t.shape) for name, t in row.items()})
    return found


def test_long_rows_of_tokens_are_cut_so_that_several_texts_are_looked_at() -> None:
    long = {"input_ids": torch.arange(1200).view(2, 600), "attention_mask": torch.ones(2, 600, dtype=torch.bool)}
    assert shapes([long] * 9) == [{"input_ids": [1, 128], "attention_mask": [1, 128]}] * 2
    late = long | {"attention_mask": torch.arange(1200).view(2, 600) % 600 >= 300}
    [padded] = shapes([late] * 9)
    assert padded["input_ids"] == [1, 600], "its beginning may be padding"
    [whole] = shapes([long | {"pixels": torch.ones(2, 600, 3)}] * 9)
    assert whole["input_ids"] == [1, 600], "what else there is may belong to every token"


def test_an_output_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(*SITES)
    monkeypatch.setattr(graph.host, "effects", lambda *_: [1.0, float("nan"), 1.0, 1.0])
    with pytest.raises(ConversionError, match="the model's output is not finite on the calibration data"):
        AllocateBudget().run(graph, PassContext(batches=[BATCH]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AllocateBudget(active=0), "allocate-budget.active is 0: choose a fraction above 0 and up to 1"),
        (lambda: AllocateBudget(whole=1.2), "allocate-budget.whole is 1.2: choose a fraction"),
        (lambda: ExponentialErrors(slope=0), "exponential.slope is 0: choose a number above 0"),
        (lambda: ExponentialErrors(noise=-1), "exponential.noise is -1: choose a number above 0"),
        (lambda: BeamSearch(width=0), "beam.width is 0: choose a number above 0"),
        (lambda: BeamSearch(noise=0), "beam.noise is 0: choose a number above 0"),
        (lambda: ErrorCurves(noise=0), "curves.noise is 0: choose a number above 0"),
        (lambda: AllocateBudget(tokens=0), "allocate-budget.tokens is 0: choose a number above 0"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
