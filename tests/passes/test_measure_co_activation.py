from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import CoActivation
from moeify.ir.feed_forward import FeedForward
from moeify_passes.analyse.measure_co_activation import MeasureCoActivation
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context


def measured(step: MeasureCoActivation, site: FeedForward, inputs: Tensor) -> CoActivation:
    graph = graph_of(site)
    context = sampled_context(graph, inputs)
    assert not step.run(graph, context)
    found = context.get(site, CoActivation)
    assert context.measurements[site.path] == {"co_activation_edges": len(found.weights) // 2}
    return found


def dense(found: CoActivation) -> Tensor:
    """[neurons, neurons], 0 where there is no edge."""
    neurons = len(found.offsets) - 1
    matrix = torch.zeros(neurons, neurons)
    source = torch.repeat_interleave(torch.arange(neurons), found.offsets.diff())
    return matrix.index_put_((source, found.neighbours), found.weights)


@pytest.mark.parametrize("cap", [1.0, 0.1, None])
def test_is_the_authors_matrix_where_all_neighbours_are_kept(cap: float | None) -> None:
    """Token by token: relu, outer products summed over 8 tokens, clamped, summed."""
    site, inputs = random_site(), correlated_inputs(100)
    wanted = torch.zeros(48, 48, dtype=torch.float64)
    for batch in torch.split(torch.relu(inputs @ site.up.read().T).double(), 8):
        together = torch.stack([torch.outer(a, a) for a in batch]).sum(0)
        wanted += together if cap is None else together.clamp(max=cap)
    found = dense(measured(MeasureCoActivation(neighbours=1000, cap=cap), site, inputs))
    torch.testing.assert_close(found, wanted.fill_diagonal_(0).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("caption", SITES)
def test_keeps_the_strongest_neighbours_and_is_symmetric(caption: str) -> None:
    site, inputs = SITES[caption](), correlated_inputs(100)
    whole = dense(measured(MeasureCoActivation(neighbours=1000), site, inputs))
    found = measured(MeasureCoActivation(neighbours=5), site, inputs)
    matrix = dense(found)
    strongest = torch.zeros_like(whole).scatter_(1, whole.topk(5, dim=1).indices, 1.0)
    kept = (strongest + strongest.T > 0) & (whole > 0)
    torch.testing.assert_close(matrix, torch.where(kept, whole, 0.0), rtol=1e-4, atol=1e-5)
    assert torch.equal(matrix, matrix.T)
    for a, b in zip(found.offsets, found.offsets[1:]):
        assert bool((found.neighbours[a:b].diff() > 0).all())


def test_of_more_tokens_than_asked_groups_are_taken_evenly() -> None:
    site = random_site()
    inputs = correlated_inputs(800)
    some = torch.cat([inputs[:8], inputs[392:400], inputs[792:]])
    found, wanted = (
        dense(measured(step, site, x))
        for step, x in (
            (MeasureCoActivation(neighbours=50, tokens=24), inputs),
            (MeasureCoActivation(neighbours=50), some),
        )
    )
    torch.testing.assert_close(found, wanted)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    site, inputs = random_site(gated=True), correlated_inputs(100)
    whole = dense(measured(MeasureCoActivation(), site, inputs))
    monkeypatch.setattr("moeify_passes.analyse.measure_co_activation.CHUNK_BYTES", 1)
    torch.testing.assert_close(dense(measured(MeasureCoActivation(), site, inputs)), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "measure-co-activation.neighbours is 0: choose 1 or more"),
        ({"tokens": 0}, "measure-co-activation.tokens is 0: choose 1 or more"),
        ({"batch": 0}, "measure-co-activation.batch is 0: choose 1 or more"),
        ({"cap": 0.0}, "measure-co-activation.cap is 0.0: choose a number above 0, or none"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        MeasureCoActivation(**options)
    assert str(error.value) == message
