from __future__ import annotations

import pytest
import torch

from moeify_passes.routers.similarity import Similarity
from passes.routed import planted_figures, routed
from passes.tiny import SITES, correlated_inputs


@pytest.mark.parametrize("caption", SITES)
def test_experts_stand_in_the_order_of_their_distance(caption: str) -> None:
    """The paper's score is -||x/|x| - centre||; ours must rank every token's experts alike."""
    site = SITES[caption]()
    spec, _ = routed(site, Similarity(), shared=8)
    x = correlated_inputs(200).double()
    keys = site.keys().double()
    centres = torch.stack([torch.nn.functional.normalize(keys[e], dim=1).mean(0) for e in spec.experts])
    distance = torch.cdist(torch.nn.functional.normalize(x, dim=1), centres)
    assert spec.router is not None
    scores = spec.router.scores(x)
    torch.testing.assert_close(2 * scores, 1 - distance.square(), rtol=1e-5, atol=1e-5)


def test_its_choice_is_measured_against_the_oracle() -> None:
    figures = planted_figures(Similarity())
    assert figures["random_share"] < 0.6 < figures["router_share"] <= 1
