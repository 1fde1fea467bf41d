"""Routers: equal to the specs that made them; the average-key router follows its keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from layers.dense_sites import dense_site, split_spec
from moe_reference import scores
from moeify.errors import UsageError
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import Router
from moeify.layers.moe_layer import MoELayer
from moeify.layers.routers import build_router


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


ROUTERS = {
    "linear": Router(RouterConfig("linear"), {"weight": drawn(3, 6)}),
    "linear, bias": Router(RouterConfig("linear", bias=True), {"weight": drawn(3, 6), "bias": drawn(3)}),
    "mlp": Router(RouterConfig("mlp", width=5, activation="tanh"), {"weight_in": drawn(5, 6), "weight_out": drawn(3, 5)}),
    "mlp, bias, abs": Router(
        RouterConfig("mlp", bias=True, width=5, activation="gelu", output="abs"),
        {"weight_in": drawn(5, 6), "bias_in": drawn(5), "weight_out": drawn(3, 5), "bias_out": drawn(3)},
    ),
    "unit input": Router(RouterConfig("linear", bias=True, unit_input=True), {"weight": drawn(3, 6), "bias": drawn(3)}),
    "mlp, unit input, relative": Router(
        RouterConfig("mlp", width=5, activation="tanh", unit_input=True, output="relative"),
        {"weight_in": drawn(5, 6), "weight_out": drawn(3, 5)},
    ),
    "neuron": Router(RouterConfig("neuron", activation="gelu"), {"up": drawn(3, 6)}),
    "neuron, gated, abs": Router(
        RouterConfig("neuron", activation="silu", gated=True, output="abs"), {"up": drawn(3, 6), "gate": drawn(3, 6) + 0.1}
    ),
    "neuron, gated, biases": Router(
        RouterConfig("neuron", activation="silu", gated=True, bias=True),
        {"up": drawn(3, 6), "gate": drawn(3, 6) - 0.1, "up_bias": drawn(3), "gate_bias": drawn(3) + 0.2},
    ),
    "spectral": Router(RouterConfig("spectral", width=2), {"up": drawn(6, 6)}),
    "spectral, gated": Router(
        RouterConfig("spectral", width=2, gated=True), {"up": drawn(6, 6), "gate": drawn(6, 6) * 2 + 0.3}
    ),
    "mlp, no activation": Router(RouterConfig("mlp", width=2), {"weight_in": drawn(2, 6), "weight_out": drawn(3, 2)}),
}


@pytest.mark.parametrize("caption", ROUTERS)
def test_scores_equal_those_of_the_spec(caption: str) -> None:
    site, router = dense_site(), ROUTERS[caption]
    layer = MoELayer.from_spec(site, replace(split_spec(site, experts=3), router=router))
    x = drawn(7, site.hidden)
    torch.testing.assert_close(layer.route(x).scores, router.scores(x))


@pytest.mark.parametrize("caption", ROUTERS)
def test_scores_are_those_of_the_definition(caption: str) -> None:
    router = ROUTERS[caption]
    config, x = router.config, drawn(7, 6)
    tensors = {name: value.double().numpy() for name, value in router.tensors.items()}
    tensors["experts"] = np.array(3)
    wanted = [
        scores(
            token, tensors, kind=config.kind, activation=config.activation or "identity", output=config.output,
            unit_input=config.unit_input,
        )
        for token in x.double().numpy()
    ]  # fmt: skip
    torch.testing.assert_close(router.scores(x).double(), torch.from_numpy(np.array(wanted)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("caption", ROUTERS)
def test_parameters_are_the_weights_of_its_matrices(caption: str) -> None:
    router = ROUTERS[caption]
    matrices = sum(value.numel() for value in router.tensors.values() if value.ndim == 2)
    assert router.config.parameters(hidden=6, experts=3) == matrices
    assert router.config.shapes(hidden=6, experts=3) == {name: tuple(value.shape) for name, value in router.tensors.items()}


@pytest.mark.parametrize("caption", ["mlp, unit input, relative", "spectral, gated", "unit input"])
def test_a_token_of_zeros_and_half_precision_give_finite_scores(caption: str) -> None:
    x = torch.cat((torch.zeros(1, 6), 10 * drawn(3, 6))).half()
    scores = ROUTERS[caption].scores(x)
    assert scores.dtype == torch.float16
    assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("caption", ROUTERS)
def test_every_router_has_a_gradient(caption: str) -> None:
    layer = MoELayer.from_spec(dense_site(), replace(split_spec(dense_site(), experts=3), router=ROUTERS[caption], top_k=1))
    layer(drawn(7, 6)).square().sum().backward()
    assert layer.router is not None
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in layer.router.parameters())


def average_key_layer(gated: bool, bias: bool, sizes: tuple[int, ...]) -> MoELayer:
    site = dense_site(gated=gated)
    split = split_spec(site, experts=3)
    tensors = {"weight": torch.zeros(3, site.hidden)} | ({"bias": torch.zeros(3)} if bias else {})
    shared, *experts = torch.split_with_sizes(torch.arange(site.neurons), [site.neurons - sum(sizes), *sizes])
    router = Router(RouterConfig("average-key", bias=bias), tensors)
    return MoELayer.from_spec(site, replace(split, shared=shared, experts=tuple(experts), router=router, top_k=1))


@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 3, 3), (5, 2, 1)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_average_key_is_the_mean_pre_activation(gated: bool, bias: bool, sizes: tuple[int, ...]) -> None:
    layer = average_key_layer(gated, bias, sizes)
    x = drawn(7, 6)
    keys, key_bias = (layer.gate, layer.gate_bias) if gated else (layer.up, layer.up_bias)
    assert keys is not None
    assert key_bias is not None
    fired = x @ keys.T + (key_bias if bias else 0.0)
    offsets = layer.config.offsets
    wanted = torch.stack([fired[:, a:b].mean(1) for a, b in zip(offsets, offsets[1:])], 1)
    torch.testing.assert_close(layer.route(x).scores, wanted)
    torch.testing.assert_close(layer.eval().route(x).scores, wanted)


def test_the_average_key_follows_in_training_and_rests_in_eval() -> None:
    layer = average_key_layer(False, False, (4, 4, 4))
    x = drawn(7, 6)
    before = layer.route(x).scores
    with torch.no_grad():
        layer.up.mul_(2.0)
    torch.testing.assert_close(layer.route(x).scores, 2 * before)
    with torch.no_grad():
        layer.up.mul_(2.0)
    torch.testing.assert_close(layer.state_dict()["router.weight"] @ x[0], 4 * before[0])  # saved in training: up to date
    layer.eval()
    torch.testing.assert_close(layer.route(x).scores, 4 * before)
    with torch.no_grad():
        layer.up.mul_(2.0)
    torch.testing.assert_close(layer.route(x).scores, 4 * before)
    assert "router.weight" not in dict(layer.named_parameters())


def test_an_unknown_kind_is_refused() -> None:
    router = RouterConfig("cosine")  # type: ignore[arg-type]  # what a damaged file could hold
    shape = MoEConfig(hidden=4, output=4, activation="relu", gated=False, offsets=(0, 2, 4), router=router)
    with pytest.raises(UsageError, match="router kind is 'cosine': choose one of linear, average-key, mlp"):
        build_router(shape)
