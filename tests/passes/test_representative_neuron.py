from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moeify.errors import UsageError
from moeify_passes.experts.markers import markers
from moeify_passes.routers.representative_neuron import RepresentativeNeuron, representatives
from passes.routed import planted_figures, routed
from passes.tiny import SITES, correlated_inputs, random_site


@pytest.mark.parametrize("caption", SITES)
def test_the_neuron_nearest_to_its_experts_mean_column_stands_for_it(caption: str) -> None:
    site, by = SITES[caption](), RepresentativeNeuron(top=6)
    spec, _ = routed(site, by, shared=8)
    inputs = correlated_inputs(600)
    columns = torch.cat(list(markers(site, inputs, 6, weighted=False, normalized=True))).T.double()
    found = representatives(by, site, spec, inputs)
    for neuron, expert in zip(found, spec.experts):
        distance = (columns[expert] - columns[expert].mean(0)).abs().sum(1)
        assert neuron in expert
        torch.testing.assert_close(float(distance[expert == neuron]), float(distance.min()))


def test_scores_are_those_of_the_neuron_with_unit_rows() -> None:
    site, x = random_site(gated=True, activation="silu"), correlated_inputs(30)
    for absolute in (True, False):
        by = RepresentativeNeuron(absolute=absolute)
        spec, _ = routed(site, by)
        assert spec.router is not None
        assert site.gate is not None
        chosen = representatives(by, site, spec, correlated_inputs(600))
        gate, up = (F.normalize(w.read()[chosen], dim=1) for w in (site.gate, site.up))
        wanted = F.silu(x @ gate.T) * (x @ up.T)
        torch.testing.assert_close(spec.router.scores(x), wanted.abs() if absolute else wanted)


def test_without_unit_rows_it_is_the_neuron_itself() -> None:
    site, by, x = (
        random_site(gated=True, biases=True),
        RepresentativeNeuron(unit_rows=False, absolute=False),
        correlated_inputs(9),
    )
    spec, _ = routed(site, by)
    assert spec.router is not None
    chosen = representatives(by, site, spec, correlated_inputs(600))
    torch.testing.assert_close(spec.router.scores(x), site.neuron_outputs(x, chosen))


def test_markers_by_unit_rows_and_inputs_do_not_depend_on_their_scale() -> None:
    site, inputs = random_site(gated=True, activation="silu"), correlated_inputs(50)
    assert site.gate is not None
    gate, up = (F.normalize(w.read(), dim=1) for w in (site.gate, site.up))
    u = F.normalize(inputs, dim=1)
    strongest = (F.silu(u @ gate.T) * (u @ up.T)).abs().topk(5, dim=1).indices
    wanted = torch.zeros(50, 48, dtype=torch.bool).scatter_(1, strongest, True)
    assert torch.equal(torch.cat(list(markers(site, inputs, 5, weighted=False, normalized=True))), wanted)


def test_its_choice_is_measured_against_the_oracle() -> None:
    figures = planted_figures(RepresentativeNeuron(top=0.2))
    assert figures["random_share"] < figures["router_share"] <= 1


def test_refuses_options() -> None:
    with pytest.raises(UsageError, match=r"representative-neuron.top is 1.5: choose a count from 1 or a fraction"):
        RepresentativeNeuron(top=1.5)
