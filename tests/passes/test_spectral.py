from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moeify.errors import UsageError
from moeify.ir.facts import Experts
from moeify_passes.expert_rows import expert_masses, expert_rows
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.spectral import Spectral
from passes.routed import in_four, planted_figures, routed
from passes.tiny import SITES, correlated_inputs, graph_of, random_site, sampled_context


@pytest.mark.parametrize("whiten", [True, False])
def test_at_full_rank_the_norms_are_those_of_the_folded_matrices(whiten: bool) -> None:
    """SiLU folded as the root of the mean of sigmoid(z)^2 over the nine tenths of the sample."""
    site, x = random_site(gated=True, activation="silu"), correlated_inputs(40)
    spec, context = routed(site, Spectral(rank=12, whiten=whiten))
    fit = correlated_inputs(600)
    fit, _ = held_out(site, fit, context.generator("held-out", site))
    assert site.gate is not None
    gate, up = site.gate.read().double(), site.up.read().double()
    folded = gate * (fit.double() @ gate.T).sigmoid().square().mean(0).sqrt()[:, None]
    wanted = [(x.double() @ folded[e].T).norm(dim=1) * (x.double() @ up[e].T).norm(dim=1) for e in spec.experts]
    assert spec.router is not None
    torch.testing.assert_close(spec.router.scores(x.double()), torch.stack(wanted, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("caption", ["gated", "two-matrix"])
def test_bounds_the_mass_where_the_activation_is_the_identity(caption: str) -> None:
    """Without an activation nothing is estimated: at full rank Cauchy and Schwarz hold exactly (gated), or the norm does."""
    site = random_site(gated=caption == "gated", activation="identity")
    spec, _ = routed(site, Spectral(rank=12))
    x = correlated_inputs(100)
    mass, rows = expert_masses(expert_rows(site, spec), x), torch.tensor([len(e) for e in spec.experts])
    assert spec.router is not None
    bound = spec.router.scores(x) * (1.0 if caption == "gated" else rows.sqrt())
    assert bool((mass <= bound * (1 + 1e-4)).all())


def test_whitening_keeps_the_directions_in_which_inputs_lie() -> None:
    """Inputs in a plane: two projections hold all there is, if they are chosen for such inputs."""
    site = random_site()
    plane = torch.linalg.qr(torch.randn(12, 2, generator=torch.Generator().manual_seed(0))).Q
    x = correlated_inputs(600) @ plane @ plane.T
    errors = {}
    for whiten in (True, False):
        graph = graph_of(site)
        graph.specs[site.path] = in_four(site)
        context = sampled_context(graph, x)
        context.put(site, Experts((1,), True))
        scores = {}
        for rank in (2, 12):
            InsertRouter(top_k=2, by=Spectral(rank=rank, whiten=whiten)).run(graph, context)
            router = graph.specs[site.path].router
            assert router is not None
            scores[rank] = router.scores(x)
        errors[whiten] = float((scores[2] - scores[12]).norm() / scores[12].norm())
    assert errors[True] < 0.02
    assert errors[False] > 0.1


@pytest.mark.parametrize("caption", SITES)
def test_a_rank_beyond_what_there_is_is_cut(caption: str) -> None:
    spec, _ = routed(SITES[caption](), Spectral(rank=500), shared=8)
    assert spec.router is not None
    assert spec.router.config.width == 12
    assert bool(torch.isfinite(F.normalize(spec.router.scores(torch.ones(1, 12)))).all())


def test_its_choice_is_measured_against_the_oracle() -> None:
    figures = planted_figures(Spectral(rank=4))
    assert figures["random_share"] < 0.6 < figures["router_share"] <= 1


def test_refuses_options() -> None:
    with pytest.raises(UsageError, match=r"spectral.rank is 0: choose 1 or more"):
        Spectral(rank=0)
