"""The best choice of experts, against all choices there are."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from measure.small_models import HIDDEN, llama, moe_of
from moeify.layers.moe_layer import MoELayer
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.nulls import oracle
from moeify.measure.oracle import nearest_choice
from moeify.measure.substitute import computed_by, neuron_outputs, values_of, with_choice

FFN = llama().get_submodule("model.layers.0.mlp")
FORMS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "three of four": {"top_k": 3},
    "unequal": {"sizes": (2, 4, 14, 20)},
    "no shared expert, threshold": {"shared": 0, "sizes": (12, 12, 12, 12), "top_k": None, "threshold": 0.0},
    "gates": {"gate_rule": "softmax"},
    "gates of sum 1": {"gate_rule": "sigmoid", "normalize": True},
    "idle means and a low-rank term": {"rank": 2, "idle": True},
}


def case(seed: int = 0, tokens: int = 40, **options: Any) -> tuple[MoELayer, Tensor, Tensor]:
    """A layer whose output rows were fitted anew, so that all experts on are far from the dense FFN; x; what that says."""
    layer, generator = moe_of(FFN, seed=seed, **options), torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        layer.down.add_(torch.randn(layer.down.shape, generator=generator), alpha=0.5 * float(layer.down.std()))
    x = torch.randn(tokens, HIDDEN, generator=generator)
    dense = DenseFFN.of_layer(moe_of(FFN, seed=seed))
    return layer, x, dense.output(dense.hidden(x)).detach()


@torch.no_grad()
def errors(layer: MoELayer, x: Tensor, wanted: Tensor, chosen: Tensor) -> Tensor:
    values = values_of(layer, layer.route(x).scores)
    return (with_choice(layer, x, neuron_outputs(layer, x), values, chosen) - wanted).square().sum(-1)


@torch.no_grad()
def found(layer: MoELayer, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The router's choice and the nearest."""
    routing = layer.route(x)
    values = values_of(layer, routing.scores)
    return routing.chosen, nearest_choice(layer, x, neuron_outputs(layer, x), values, routing.chosen, wanted)


@torch.no_grad()
def least(layer: MoELayer, x: Tensor, wanted: Tensor, count: Tensor) -> Tensor:
    """The least error of each token over all sets of its number of experts."""
    experts = layer.config.experts
    best = torch.full((len(x),), torch.inf)
    for size in range(experts + 1):
        for members in combinations(range(experts), size):
            chosen = torch.zeros(len(x), experts, dtype=torch.bool)
            chosen[:, list(members)] = True
            best = torch.where(count == size, torch.minimum(best, errors(layer, x, wanted, chosen)), best)
    return best


@pytest.mark.parametrize("form", FORMS)
def test_is_nearly_the_best_of_all_sets(form: str) -> None:
    layer, x, wanted = case(tokens=200, **FORMS[form])
    routed, nearest = found(layer, x, wanted)
    ideal = least(layer, x, wanted, routed.sum(-1)).sum()
    by_router, by_oracle = (errors(layer, x, wanted, chosen).sum() for chosen in (routed, nearest))
    assert torch.equal(nearest.sum(-1), routed.sum(-1))
    assert ideal <= by_oracle * (1 + 1e-5)
    assert by_oracle - ideal < 0.15 * (by_router - ideal)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), form=st.sampled_from(list(FORMS)))
def test_is_never_farther_than_the_routers_choice(seed: int, form: str) -> None:
    layer, x, wanted = case(seed, **FORMS[form])
    routed, nearest = found(layer, x, wanted)
    assert torch.equal(nearest.sum(-1), routed.sum(-1))
    assert bool((errors(layer, x, wanted, nearest) <= errors(layer, x, wanted, routed)).all())


def test_the_null_chooses_by_the_dense_ffn_where_that_is_known() -> None:
    layer, x, wanted = case()
    dense = DenseFFN.of_layer(moe_of(FFN, seed=0))
    _, nearest = found(layer, x, wanted)
    off = []
    for null in (oracle({"": layer}, {"": dense}), oracle({"": layer})):
        with torch.no_grad(), computed_by({"": layer}, null.compute):
            off.append(float((layer(x) - wanted).square().sum()))
    assert off[0] == pytest.approx(float(errors(layer, x, wanted, nearest).sum()), rel=1e-5)
    assert off[0] < off[1]
