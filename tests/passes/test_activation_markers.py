from __future__ import annotations

import pytest
import torch

from moeify.pipeline.context import PassContext
from moeify_passes.experts.activation_markers import ActivationMarkers
from moeify_passes.experts.markers import marker_rates, markers
from passes.test_balanced_k_means import agreement
from passes.tiny import SITES, correlated_inputs, graph_of, planted_site, sampled_context, site_of


@pytest.mark.parametrize("caption", SITES)
@pytest.mark.parametrize(("top", "count"), [(0.1, 5), (10, 10), (1, 1), (1.0, 48), (0.001, 1), (1000, 48)])
def test_every_token_marks_its_strongest(caption: str, top: int | float, count: int) -> None:
    site, inputs = SITES[caption](), correlated_inputs(60)
    marked = torch.cat(list(markers(site, inputs, top, weighted=True)))
    strength = site.neuron_outputs(inputs).abs() * site.down.read().float().norm(dim=1)
    assert marked.sum(1).tolist() == [count] * 60
    weakest = strength.masked_fill(~marked, torch.inf).amin(1)
    assert bool((strength.masked_fill(marked, 0.0).amax(1) <= weakest).all())
    rates = marker_rates(site, inputs, top, weighted=True)
    torch.testing.assert_close(rates, marked.double().mean(0))


def test_chunks_of_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    site, inputs = SITES["gated"](), correlated_inputs(60)
    whole = list(markers(site, inputs, 0.2, weighted=False))
    monkeypatch.setattr("moeify_passes.held_site.token_chunks.__defaults__", (4 * 48 * 7,))
    parts = list(markers(site, inputs, 0.2, weighted=False))
    assert [len(part) for part in parts] == [7] * 8 + [4]
    assert torch.equal(torch.cat(parts), torch.cat(whole))


def test_weighting_counts_what_a_neuron_can_do_to_the_output() -> None:
    """Neurons 0 and 1 fire equally on every token; only one of them reaches the output."""
    site = site_of("two", "relu", up=torch.ones(2, 3), down=torch.tensor([[0.1], [5.0]]))
    inputs = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    assert marker_rates(site, inputs, 1, weighted=True).tolist() == [0.0, 1.0]


def test_planted_co_activation_is_found_where_weights_say_nothing() -> None:
    """Every neuron reads one direction of its group's own two, which always occur together in the inputs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48)[torch.randperm(48, generator=generator)] % 4
    half = torch.randint(2, (48,), generator=generator)
    up = torch.nn.functional.one_hot(2 * labels + half, 8).float()
    site = site_of("planted", "relu", up=up, down=torch.randn(48, 5, generator=generator))
    active = torch.rand(500, 4, generator=generator) < 0.3
    inputs = active.float().repeat_interleave(2, dim=1) * (0.5 + torch.rand(500, 8, generator=generator))
    context = sampled_context(graph_of(site), inputs - 0.01)
    groups = ActivationMarkers(top=0.25, weighted=False).group(site, torch.arange(48), (12,) * 4, context)
    assert agreement(groups, labels) > 0.95


def test_the_measured_objective_is_reported() -> None:
    planted = planted_site()
    context: PassContext = sampled_context(graph_of(planted.site))
    ActivationMarkers().group(planted.site, torch.arange(48), (12,) * 4, context)
    assert context.measurements["planted"]["clustering_rounds"] >= 1
    assert context.measurements["planted"]["clustering_objective"] > 0
