"""The square-Hoyer loss of hidden activations, against a loop over tokens and their active neurons."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from layers.dense_sites import dense_site, split_spec
from moeify.ir.activations import activation
from moeify.layers.moe_layer import MoELayer
from moeify.training.settings import auxiliary_loss, set_training


def layer(gated: bool, top_k: int | None, shared: int = 0, router: bool = True) -> MoELayer:
    site = dense_site(activation="silu", gated=gated, dtype=torch.float64)
    spec = split_spec(site, experts=4, shared=shared, top_k=top_k)
    return MoELayer.from_spec(site, spec if router else replace(spec, router=None, top_k=None))


def by_hand(moe: MoELayer, x: Tensor, floor: float | None) -> Tensor:
    chosen, offsets = moe.route(x).chosen, moe.config.offsets
    up = nn.functional.linear(x, moe.up, moe.up_bias)
    z = up if moe.gate is None else nn.functional.linear(x, moe.gate, moe.gate_bias)
    h = activation("silu")(z) * (1 if moe.gate is None else up)
    a = h if floor is None else z.clamp(min=floor) - floor
    values = []
    for t in range(len(x)):
        rows = list(range(offsets[0]))
        rows += [i for e in range(4) if chosen[t, e] for i in range(offsets[e], offsets[e + 1])]
        active = a[t, rows]
        values.append(active.abs().sum() ** 2 / (active.square().sum() + 1e-15))
    return torch.stack(values).mean()


@pytest.mark.parametrize("floor", [None, -0.5])
@pytest.mark.parametrize(
    ("gated", "top_k", "shared", "router"),
    [(False, 2, 0, True), (True, 2, 4, True), (True, None, 4, True), (False, None, 0, False), (True, 1, 0, True)],
)
def test_it_is_over_the_neurons_that_a_token_uses(
    floor: float | None, gated: bool, top_k: int | None, shared: int, router: bool
) -> None:
    moe = layer(gated, top_k, shared, router)
    model, keys = nn.Sequential(moe), moe.up if moe.gate is None else moe.gate
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = model(x)
    wanted = by_hand(moe, x, floor)
    truth = torch.autograd.grad(wanted, keys)[0]
    set_training(model, sparsity=0.5, sparsity_floor=floor)
    torch.testing.assert_close(model(x), y, rtol=0, atol=0)
    found = auxiliary_loss(model)
    torch.testing.assert_close(found, 0.5 * wanted.float())
    torch.testing.assert_close(torch.autograd.grad(found, keys)[0], 0.5 * truth, rtol=1e-4, atol=1e-6)


def test_it_makes_activations_sparser() -> None:
    model = nn.Sequential(layer(True, None))
    x = torch.randn(64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    set_training(model, sparsity=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    seen = []
    for _ in range(30):
        model(x)
        loss = auxiliary_loss(model)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        seen.append(loss.item())
    assert 1 <= seen[-1] < 0.6 * seen[0]


def test_a_token_that_uses_no_neuron_counts_as_0() -> None:
    moe = layer(True, None)
    moe.threshold = 1e9
    model = nn.Sequential(moe)
    set_training(model, sparsity=1.0)
    model(torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    assert auxiliary_loss(model) == 0
