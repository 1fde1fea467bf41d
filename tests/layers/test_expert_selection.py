"""Another set of experts: what belongs to an expert goes with it, whatever the layer is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layers.stochastic_layers import stochastic_layer
from moeify.errors import UsageError
from moeify.ir.expert_selection import select_config, select_spec
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify.layers.expert_selection import select_experts
from moeify.layers.moe_layer import MoELayer
from passes.tiny import random_site

HIDDEN, SIZES = 6, (3, 1, 4, 2, 2)

#: caption -> router
ROUTERS: dict[str, RouterConfig] = {
    "linear": RouterConfig("linear", bias=True),
    "average key": RouterConfig("average-key", bias=True),
    "mlp": RouterConfig("mlp", bias=True, width=3, activation="tanh"),
    "neuron": RouterConfig("neuron", bias=True, activation="silu", gated=True),
    "spectral": RouterConfig("spectral", width=2, gated=True),
}


def layer_of(router: RouterConfig, **options: Any) -> MoELayer:
    """Five experts of unequal size beside a shared one, with everything that a layer can have."""
    offsets = tuple(torch.tensor([2, *SIZES]).cumsum(0).tolist())
    config = MoEConfig(
        HIDDEN, 4, "silu", True, offsets, router, gate_rule="sigmoid", up_bias=True, gate_bias=True, output_bias=True,
        selection_bias=True, idle=True, rank=2, **{"top_k": 2, **options},
    )  # fmt: skip
    layer, generator = MoELayer(config, dtype=torch.float64), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*layer.parameters(), *layer.buffers()):
            value.copy_(torch.randn(value.shape, generator=generator))
    layer.train().eval()  # an average-key router follows its keys
    return layer


def tokens(count: int = 12) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=7), st.sampled_from(sorted(ROUTERS)))
def test_it_computes_what_those_experts_compute(experts: list[int], router: str) -> None:
    """All on: shared + sum of g_e E_e + low rank, taken apart by leaving all others out of the whole layer."""
    whole, some, x = layer_of(ROUTERS[router], top_k=None), layer_of(ROUTERS[router], top_k=None), tokens()
    select_experts(some, experts)
    with torch.no_grad():
        routing, found = whole.route(x), some.route(x)
        torch.testing.assert_close(found.scores, routing.scores[:, experts])
        nobody = alone(whole, x, None)
        expected = nobody + sum(alone(whole, x, e) - nobody for e in experts)
        torch.testing.assert_close(some(x), expected)
    assert some.config.experts == len(experts)
    assert some.config.sizes == tuple(SIZES[e] for e in experts)


def alone(layer: MoELayer, x: Tensor, expert: int | None) -> Tensor:
    """y with that expert on and all others off, idle vectors left out."""
    down, idle = layer.down.clone(), layer.idle
    keep = torch.zeros(layer.config.rows, 1, dtype=down.dtype)
    keep[: layer.config.shared] = 1
    if expert is not None:
        keep[layer.config.offsets[expert] : layer.config.offsets[expert + 1]] = 1
    try:
        layer.down.data, layer.idle = down * keep, None
        y: Tensor = layer(x)
        return y
    finally:
        layer.down.data, layer.idle = down, idle


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_every_tensor_has_the_size_that_the_config_says(router: RouterConfig) -> None:
    layer = layer_of(router)
    select_experts(layer, [4, 0, 0])
    fresh = MoELayer(layer.config, dtype=torch.float64)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh.eval()(tokens()), layer(tokens()))
    assert layer.idle is not None
    assert layer.selection_bias is not None
    assert torch.equal(layer.idle[1], layer.idle[2])
    assert torch.equal(layer.selection_bias[1], layer.selection_bias[2])


def test_it_trains_on_and_an_old_optimizer_fails_loudly() -> None:
    layer = layer_of(ROUTERS["linear"]).train()
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(tokens()).square().sum().backward()
    optimizer.step()
    parameters = list(layer.parameters())
    select_experts(layer, [0, 1, 2])
    assert all(a is b for a, b in zip(parameters, layer.parameters()))
    assert layer.up.grad is None
    layer(tokens()).square().sum().backward()
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()
    torch.optim.AdamW(layer.parameters()).step()


def test_a_stochastic_layer_draws_from_those_that_are_left() -> None:
    layer = stochastic_layer(5, scope="token")
    select_experts(layer, [3, 1])
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert layer.route(x).chosen.shape == (40, 2)
    assert layer.route(x).chosen.any(0).all()
    assert layer.config.shards == 1


@pytest.mark.parametrize(
    ("experts", "shards"),
    [([0, 1, 2, 3], 2), ([4, 5, 0, 1], 2), ([2, 3, 2, 3], 2), ([0, 1, 2], None), ([1, 2], None), ([1, 0], None)],
)
def test_it_stays_a_layer_of_copies_where_whole_copies_go_along(experts: list[int], shards: int | None) -> None:
    config = MoEConfig(4, 4, "relu", False, tuple(range(0, 19, 3)), RouterConfig("linear"), neurons=6, shards=2)
    assert select_config(config, experts).shards == shards
    spec = MoESpec(tuple(torch.arange(3) + 3 * (e % 2) for e in range(6)), shards=2)
    assert select_spec(spec, experts).shards == shards


def test_a_spec_becomes_the_layer_that_its_layer_becomes() -> None:
    site = random_site(gated=True, biases=True)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    spec = MoESpec(
        tuple(torch.split(torch.arange(8, 48), 10)), torch.arange(8), Router(RouterConfig("linear"), {"weight": drawn(4, 12)}),
        gate_rule="softmax", top_k=2, selection_bias=drawn(4), compensation=Compensation(idle=drawn(4, 10)),
        weights={"up": drawn(48, 12), "output_bias": drawn(10)},
    )  # fmt: skip
    layer = MoELayer.from_spec(site, spec)
    select_experts(layer, [3, 0])
    other = MoELayer.from_spec(site, select_spec(spec, [3, 0]))
    assert other.config == replace(layer.config, neurons=site.neurons)
    for name, value in other.state_dict().items():
        assert torch.equal(value, layer.state_dict()[name]), name


def test_the_neurons_of_the_dense_network_are_remembered() -> None:
    config = MoEConfig(4, 4, "relu", False, (0, 3, 6, 9), RouterConfig("linear"))
    assert select_config(config, [0, 2]).dense_neurons == 9


@pytest.mark.parametrize(
    ("experts", "message"), [([0], "top_k is 2: choose from 1 to 1"), ([], "do not describe at least one expert")]
)
def test_too_few_experts_are_refused_and_nothing_is_changed(experts: list[int], message: str) -> None:
    layer = layer_of(ROUTERS["linear"])
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        select_experts(layer, experts)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
