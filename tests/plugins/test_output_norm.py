"""The strategy of the example plug-in, and what cluster-neurons expects of any."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from installed import install
from moeify.api import registry
from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import Fact, NeuronGroups, NeuronStatistics
from moeify.pipeline.offers import STRATEGIES
from moeify.pipeline.registry import find_strategy
from moeify_example_plugin.output_norm import OutputNorm
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.strategies import ExpertStrategy
from passes.tiny import graph_of, random_site, sampled_context


def test_the_strongest_neurons_come_first() -> None:
    site = random_site()
    graph = graph_of(site)
    context = sampled_context(graph)
    ClusterNeurons(experts=6, by=OutputNorm()).run(graph, context)
    norms = site.down.read().norm(dim=1)
    strengths = [norms[group] for group in context.get(site, NeuronGroups).groups]
    assert all(a.min() >= b.max() for a, b in zip(strengths, strengths[1:]))
    assert context.measurements[site.path]["first_expert_share"] == pytest.approx(float(strengths[0].sum() / norms.sum()))


def test_calibration_data_weigh_them_where_there_are_any() -> None:
    site = random_site()
    graph = graph_of(site)
    context = sampled_context(graph)
    squares = torch.arange(site.neurons).flip(0).float() ** 4
    context.put(site, NeuronStatistics(10, torch.zeros(site.neurons), squares))
    ClusterNeurons(experts=6, by=OutputNorm()).run(graph, context)
    expected = (site.down.read().double().norm(dim=1) * squares.double().sqrt()).argsort(descending=True)
    assert torch.cat(context.get(site, NeuronGroups).groups).tolist() == expected.tolist()


def test_what_a_strategy_uses_its_pass_uses() -> None:
    step = ClusterNeurons(by=OutputNorm())
    assert NeuronStatistics in step.uses
    assert NeuronStatistics not in step.needs
    assert isinstance(step.by, ExpertStrategy)


@dataclass(frozen=True)
class Careless:
    """Gives what it was made with, whatever was asked."""

    groups: tuple[tuple[int, ...], ...]

    kind: ClassVar[str] = "careless"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def group(self, *asked: Any) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(group) for group in self.groups)


@pytest.mark.parametrize(
    ("caption", "groups"),
    [
        ("a group too few", ((0, 1, 2, 3),)),
        ("a group too long", ((0, 1, 2, 3, 4), (5, 6, 7))),
        ("a neuron twice", ((0, 1, 2, 3), (3, 4, 5, 6))),
        ("a neuron that is not there", ((0, 1, 2, 3), (4, 5, 6, 8))),
    ],
)
def test_a_strategy_that_does_not_do_as_asked_is_named(caption: str, groups: tuple[tuple[int, ...], ...]) -> None:
    site = replace(random_site(neurons=8), path="mlp")
    graph = graph_of(site)
    with pytest.raises(
        ConversionError, match=r"^mlp: cluster-neurons.by gave groups of .* asked for were \(4, 4\), each neuron"
    ):
        ClusterNeurons(experts=2, by=Careless(groups)).run(graph, sampled_context(graph))


def test_an_offer_that_keeps_half_of_the_contract_is_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {STRATEGIES: {"insert-router.by.output-norm": f"{OutputNorm.__module__}:OutputNorm"}}
    install(tmp_path, monkeypatch, "halves", points)
    expected = r"^the strategy 'output-norm' of insert-router.by of the package halves 1.0 lacks shape, route: see docs/"
    with pytest.raises(UsageError, match=expected):
        find_strategy(registry(), "insert-router.by.output-norm")
