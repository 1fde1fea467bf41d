"""FLAP's own steps (An et al. 2023, sections 3.2 and 3.3), for the FFN alone, against the recipe `flap`."""

from __future__ import annotations

import pytest
import torch

from papers.by_recipe import by_recipe, fitted_on
from passes.rewriting import reference
from passes.tiny import SITES, correlated_inputs


@pytest.mark.parametrize("caption", [c for c in SITES if "bfloat16" not in c])
def test_the_same_neurons_the_same_bias_the_same_output(caption: str) -> None:
    site, inputs = SITES[caption](), correlated_inputs(500)
    spec, _ = by_recipe("flap", site, inputs, {"keep-neurons.active": 0.25})
    h, down = site.neuron_outputs(inputs).double(), site.down.read().double()
    fluctuation = h.var(0) * down.square().sum(1)
    kept = fluctuation.topk(12).indices
    assert set(spec.experts[0].tolist()) == set(kept.tolist())
    assert (len(spec.experts), len(spec.shared), spec.router) == (1, 0, None)

    gone = torch.ones(48, dtype=torch.bool).index_fill_(0, kept, False)
    mean = site.neuron_outputs(fitted_on(site, inputs)).double().mean(0)
    bias = mean[gone] @ down[gone]
    if site.output_bias is not None:
        bias = bias + site.output_bias.read().double()
    x = correlated_inputs(40, seed=8)
    wanted = site.neuron_outputs(x).double()[:, kept] @ down[kept] + bias
    torch.testing.assert_close(reference(site, spec, x.double()), wanted, rtol=1e-4, atol=1e-4)
