from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import FeedForwards, NeuronImportance
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.measure_importance import MeasureImportance
from passes.tiny import SITES, correlated_inputs, graph_of, random_site


def measured(step: MeasureImportance, site: FeedForward, batches: list[Tensor]) -> tuple[NeuronImportance, PassContext]:
    graph = graph_of(site)
    context = PassContext(batches=[{"x": x} for x in batches])
    context.put(None, FeedForwards(1, 0))
    assert not step.run(graph, context)
    return context.get(site, NeuronImportance), context


@pytest.mark.parametrize("caption", SITES)
@pytest.mark.parametrize("span", [1, 7])
def test_sums_what_each_neuron_changes_over_the_groups_tokens(caption: str, span: int) -> None:
    """The host's loss is sum(y^2) / 2, so that dL/dh is y . down; spans are grouped by their mean, by the nearest centre."""
    site, batches = SITES[caption](), [correlated_inputs(60), correlated_inputs(45, seed=4)]
    found, context = measured(MeasureImportance(groups=3, span=span), site, batches)
    wanted, counts = torch.zeros(3, site.neurons, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    for x in batches:
        h = site.neuron_outputs(x)
        effect = (h * (site.forward(x) @ site.down.read().float().T)).abs().double()
        for start in range(0, len(x), span):
            group = int((found.centres - x[start : start + span].mean(0)).square().sum(1).argmin())
            wanted[group] += effect[start : start + span].sum(0)
            counts[group] += len(x[start : start + span])
    torch.testing.assert_close(found.values, wanted.float(), rtol=1e-3, atol=1e-3)
    assert found.tokens.tolist() == counts.tolist()
    assert context.measurements[site.path] == {"importance_tokens": 105}


def test_groups_are_kinds_of_text() -> None:
    """Two clouds of inputs, far apart and equally large: a group each."""
    x = torch.cat((correlated_inputs(50) + 30, correlated_inputs(50, seed=9) - 30))
    found, _ = measured(MeasureImportance(groups=2), random_site(), [x])
    assert found.tokens.tolist() == [50, 50]
    assert sorted(round(float(centre.mean())) // 20 for centre in found.centres) == [-2, 1]


def test_stops_at_the_tokens_asked_for() -> None:
    found, _ = measured(MeasureImportance(groups=2, tokens=100), random_site(), [correlated_inputs(60)] * 5)
    assert int(found.tokens.sum()) == 120  # whole batches


def test_refuses_to_run_among_layers_that_are_converted() -> None:
    graph, context = graph_of(random_site()), PassContext(batches=[{"x": correlated_inputs(9)}])
    context.inputs = lambda _: iter(())
    with pytest.raises(ConversionError, match="runs before each-layer: gradients go through the whole dense model"):
        MeasureImportance().run(graph, context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "measure-importance.groups is 0: choose 1 or more"),
        ({"span": 0}, "measure-importance.span is 0: choose 1 or more"),
        ({"tokens": 0}, "measure-importance.tokens is 0: choose 1 or more"),
        ({"sample": 0}, "measure-importance.sample is 0: choose 1 or more"),
        ({"loss": "mse"}, "measure-importance.loss is 'mse': choose auto, next-token or energy"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        MeasureImportance(**options)
    assert str(error.value) == message


def test_refuses_too_little_text() -> None:
    with pytest.raises(ConversionError, match=r"1 spans of calibration text cannot make 8 groups; give more text, or choose"):
        measured(MeasureImportance(span=64), random_site(), [correlated_inputs(50)])
