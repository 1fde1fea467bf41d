"""Experts by chance: a partition, at the price that was named, behind their average keys."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from measure.small_models import HIDDEN, NEURONS, llama, moe_of
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.random_experts import RandomExperts, random_experts


def ffn() -> DenseFFN:
    return DenseFFN.of_layer(moe_of(llama().get_submodule("model.layers.0.mlp")))


def inputs(tokens: int = 20) -> Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1))


def dealt(experts: int, shared: float, fraction: float, seed: int = 0) -> RandomExperts:
    return random_experts(ffn(), experts, shared, fraction, torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(experts=st.sampled_from([1, 2, 5, 16, 65]), shared=st.floats(0, 1), fraction=st.floats(0, 1.2))
def test_it_costs_what_was_named(experts: int, shared: float, fraction: float) -> None:
    null = dealt(experts, shared, fraction)
    count = 16 if experts in (1, 65) else experts
    assert len(null.sizes) == len(null.keys) == count
    assert sorted(null.order.tolist()) == list(range(NEURONS))
    assert null.shared + int(null.sizes.sum()) == NEURONS
    assert int(null.sizes.max() - null.sizes.min()) <= 1
    rows = null.on(inputs()).sum(1)
    assert bool((rows == null.shared + null.rows).all())
    router = count * HIDDEN / (3 * HIDDEN * NEURONS)
    assert null.fraction == float(rows[0]) / NEURONS + router
    assert null.fraction <= max(fraction, router) + 1e-6
    assert null.fraction > min(fraction, 1 + router) - 1 / NEURONS - 1e-6


def test_experts_run_in_the_order_of_their_mean_keys() -> None:
    null, x = dealt(4, 0.25, 0.75), inputs()
    assert null.ffn.rows.gate is not None
    order, size = null.order.tolist(), (NEURONS - null.shared) // 4
    assert null.shared == NEURONS // 4
    experts = [order[start : start + size] for start in range(null.shared, NEURONS, size)]
    on = null.on(x)
    for token in range(len(x)):
        scores = [float(null.ffn.rows.gate.detach()[expert].mean(0) @ x[token]) for expert in experts]
        ranked = [n for e in sorted(range(4), key=lambda e: -scores[e]) for n in experts[e]]
        assert set(on[token].nonzero().flatten().tolist()) == {*order[: null.shared], *ranked[: null.rows]}
    h = null.ffn.hidden(x)
    torch.testing.assert_close(null(x, h), (h * on) @ null.ffn.rows.down)


def test_the_seed_decides() -> None:
    x = inputs()
    assert torch.equal(dealt(4, 0.0, 0.5).on(x), dealt(4, 0.0, 0.5).on(x))
    assert not torch.equal(dealt(4, 0.0, 0.5).on(x), dealt(4, 0.0, 0.5, seed=1).on(x))
