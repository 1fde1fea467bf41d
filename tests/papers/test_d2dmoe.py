"""D2DMoE's own rules (Szatkowski et al. 2024, section 3), written down plainly, against the recipe `d2dmoe`."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from moeify_passes.expert_rows import expert_norms, expert_rows
from papers.by_recipe import by_recipe, fitted_on
from passes.rewriting import reference
from passes.tiny import correlated_inputs, random_site

SETTINGS = {
    "cluster-neurons.experts": 6,
    "insert-router.top_k": 2,
    "insert-router.by": {"kind": "norm-regression", "width": 24, "relative": True, "steps": 600, "learning_rate": 5e-3},
}


@pytest.mark.parametrize("gated", [False, True])
def test_the_same_choice_and_the_same_output(gated: bool) -> None:
    """Run e iff R_e >= (1 - tau) max R, gates 1: with the tau that the budget makes of the calibration sample."""
    site, inputs = random_site(gated=gated, activation="silu" if gated else "relu"), correlated_inputs(600)
    spec, _ = by_recipe("d2dmoe", site, inputs, SETTINGS)
    assert spec.router is not None
    assert spec.threshold is not None
    assert spec.top_k is None
    tau, t = 1 - spec.threshold, spec.router.tensors
    x = correlated_inputs(660)[600:]
    predicted = F.linear(torch.tanh(F.linear(x, t["weight_in"], t["bias_in"])), t["weight_out"], t["bias_out"]).abs()
    h, down = site.neuron_outputs(x), site.down.read()
    y, on = torch.zeros(60, site.output), 0
    for token, row in enumerate(predicted):
        for e, expert in enumerate(spec.experts):
            if float(row[e]) >= (1 - tau) * float(row.max()):
                y[token] += h[token, expert] @ down[expert]
                on += 1
    torch.testing.assert_close(reference(site, spec, x.double()).float(), y, rtol=1e-4, atol=1e-4)
    assert 1 < on / 60 < 3  # two of six experts on average, never fewer than the best one


def test_the_router_has_learnt_the_norms() -> None:
    """Least squares on ||E_e(x)||: the MLP leaves less than the mean alone does."""
    site, inputs = random_site(), correlated_inputs(600)
    spec, _ = by_recipe("d2dmoe", site, inputs, SETTINGS)
    assert spec.router is not None
    t, x = spec.router.tensors, correlated_inputs(800)[600:]
    predicted = F.linear(torch.tanh(F.linear(x, t["weight_in"], t["bias_in"])), t["weight_out"], t["bias_out"]).abs()
    rows = expert_rows(site, spec)
    norms, mean = expert_norms(rows, x), expert_norms(rows, fitted_on(site, inputs)).mean(0)
    assert float((predicted - norms).square().mean()) < 0.3 * float((mean - norms).square().mean())


def test_experts_are_a_fixed_point_of_balanced_k_means() -> None:
    """The assignment to the experts' own centres, by repeated columns as the authors' solver sees it, changes nothing."""
    site = random_site()
    spec, _ = by_recipe("d2dmoe", site, correlated_inputs(300), SETTINGS)
    rows = F.normalize(site.up.read(), dim=1)
    centres = torch.stack([rows[expert].mean(0) for expert in spec.experts])
    cost = torch.cdist(rows.double(), centres.double()).square()
    solved = cost.repeat_interleave(8, dim=1).numpy()
    best = solved[linear_sum_assignment(solved)].sum()
    ours = sum(float(cost[expert, e].sum()) for e, expert in enumerate(spec.experts))
    assert ours == pytest.approx(best, rel=1e-6)
