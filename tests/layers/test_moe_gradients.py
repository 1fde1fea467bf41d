"""Gradients of the eager layer and of the operator; training: dropout, checkpoints, autocast, idle experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from layers.dense_sites import dense_site, split_spec
from layers.layer_cases import FLOATS, by_functions, by_operator, case_tensors
from moe_cases import VARIANTS, Case, Variant, random_case
from moeify.ir.feed_forward import Rewrite
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, Router
from moeify.layers.moe_layer import MoELayer

WAYS: dict[str, Callable[[Case, dict[str, Any]], Tensor]] = {"eager": by_functions, "operator": by_operator}
SMOOTH = {
    "softmax, top-2": Variant(lead=(3,), k=2, gate_rule="softmax", up_bias=True, output_bias=True),
    "sigmoid, normalised, gated, shared": Variant(
        lead=(3,), k=2, shared=2, sizes=(1, 3, 2), gate_rule="sigmoid", normalize=True, gated=True, activation="silu",
        up_bias=True, gate_bias=True,
    ),
    "threshold, compensation": Variant(lead=(3,), threshold=True, gate_rule="softmax", idle=True, rank=2),
    "all on, sigmoid": Variant(lead=(1, 2), shared=1, gate_rule="sigmoid", output_bias=True),
    "gate one, normalised, threshold": Variant(lead=(3,), threshold=True, normalize=True, idle=True),
    "one token": Variant(lead=(1,), k=2, gate_rule="softmax", output_bias=True, idle=True),
}  # fmt: skip


def leaves(case: Case) -> dict[str, Any]:
    tensors = case_tensors(case, torch.float64)
    return {n: v.requires_grad_() if n in FLOATS and v is not None else v for n, v in tensors.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("caption", SMOOTH)
def test_gradients_are_those_of_the_function(caption: str, way: str) -> None:
    case = random_case(np.random.default_rng(3), replace(SMOOTH[caption], hidden=4, output=3))
    tensors = leaves(case)
    # The straight-through gradient of the rule `one` is not that of its value.
    names = [n for n in FLOATS if tensors[n] is not None and (n != "scores" or case.variant.gate_rule != "one")]

    def function(*values: Tensor) -> Tensor:
        return WAYS[way](case, tensors | dict(zip(names, values)))

    if "scores" not in names:
        tensors["scores"] = tensors["scores"].detach()
    assert torch.autograd.gradcheck(function, [tensors[n] for n in names])


@pytest.mark.parametrize("caption", VARIANTS)
def test_the_operator_has_the_gradients_of_the_eager_layer(caption: str) -> None:
    case = random_case(np.random.default_rng(1), VARIANTS[caption])
    found = {}
    for way, function in WAYS.items():
        tensors = leaves(case)
        y = function(case, tensors)
        torch.autograd.backward((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum())
        found[way] = y, {n: tensors[n].grad for n in FLOATS if tensors[n] is not None}
    assert torch.equal(found["eager"][0], found["operator"][0])
    for name, gradient in found["operator"][1].items():
        eager = found["eager"][1][name]
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if eager is None else eager, rtol=1e-12, atol=1e-14)


def test_the_operator_gives_no_gradient_that_nobody_asked_for() -> None:
    case = random_case(np.random.default_rng(1), Variant(k=2))
    tensors = case_tensors(case, torch.float64)
    tensors["up"].requires_grad_()
    torch.autograd.backward(by_operator(case, tensors).sum())
    assert tensors["up"].grad is not None
    assert tensors["x"].grad is None


@pytest.mark.parametrize("way", WAYS)
def test_experts_that_nobody_chose_are_not_read(way: str) -> None:
    variant = Variant(lead=(6,), k=2, shared=2, gated=True, activation="silu", up_bias=True, gate_rule="softmax")
    case = random_case(np.random.default_rng(0), variant)
    tensors = case_tensors(case, torch.float64)
    tensors["scores"][:, 1] = -50.0
    first, last = tensors["offsets"][1:3]
    for name in ("up", "gate", "down", "up_bias"):
        tensors[name][first:last] = torch.nan
        tensors[name].requires_grad_()
    tensors["x"].requires_grad_()
    y = WAYS[way](case, tensors)
    assert y.isfinite().all()
    torch.autograd.backward(y.sum())
    for name in ("x", "up", "gate", "down", "up_bias"):
        assert tensors[name].grad.isfinite().all(), name
    assert (tensors["up"].grad[first:last] == 0).all()


def test_the_router_learns_under_gate_one() -> None:
    site = dense_site(dtype=torch.float64)
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, top_k=2))
    x = torch.randn(8, site.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_all_on_in_training_gives_the_router_its_gradient() -> None:
    site = dense_site(dtype=torch.float64)
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, shared=4))
    x = torch.randn(8, site.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = MoELayer.from_spec(site, split_spec(site, experts=4, shared=4))
    chosen.threshold = -1e9
    gradients = []
    for each in (layer, chosen):
        each(x).square().sum().backward()
        gradients.append(dict(each.named_parameters())["router.weight"].grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    site = dense_site(gated=True, dtype=torch.float64)
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, top_k=2))
    x = torch.randn(8, site.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = torch.autograd.grad(layer(x).square().sum(), (x, *layer.parameters()))
    layer.zero_grad()
    y = checkpoint(layer, x, use_reentrant=reentrant)
    y.square().sum().backward()
    for wanted, found in zip(plain, (x.grad, *(p.grad for p in layer.parameters()))):
        assert found is not None
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("top_k", [2, None])
def test_bfloat16_autocast(top_k: int | None, rank: int) -> None:
    site = dense_site(activation="softplus")
    low_rank = Compensation(None, torch.ones(rank, 6), torch.ones(rank, 6)) if rank else Compensation()
    layer = MoELayer.from_spec(site, replace(split_spec(site, experts=4, top_k=top_k), compensation=low_rank))
    x = torch.randn(8, site.hidden, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        chosen = layer.route(x).chosen
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    if torch.equal(chosen, layer.route(x).chosen):
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["hidden", "output"])
@pytest.mark.parametrize("top_k", [2, None])
def test_dropout_is_that_of_training_alone(kind: str, top_k: int | None) -> None:
    rates: dict[str, Any] = {f"{kind}_dropout": 0.5}
    rewrite = Rewrite("submodule", {"ffn": "mlp"}, **rates)
    site = dense_site(neurons=64, hidden=16, activation="relu", rewrite=rewrite)
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, top_k=top_k))
    plain = MoELayer(replace(layer.config, hidden_dropout=0.0, output_dropout=0.0))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, site.hidden, generator=torch.Generator().manual_seed(0)).expand(4000, -1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        drawn, truth = layer(x), plain(x)
    if kind == "output":
        kept = drawn != 0
        assert 0.45 < kept.float().mean() < 0.55
        torch.testing.assert_close(drawn[kept], 2 * truth[kept])
    deviation = drawn.std(0)
    assert (deviation > 0.01).all()
    assert ((drawn.mean(0) - truth[0]).abs() < 5 * deviation / len(x) ** 0.5).all()
    assert torch.equal(layer.eval()(x), plain.eval()(x))


def test_the_average_key_router_moves_the_keys() -> None:
    site = dense_site(dtype=torch.float64)
    router = Router(RouterConfig("average-key"), {"weight": torch.zeros(4, site.hidden)})
    layer = MoELayer.from_spec(site, replace(split_spec(site, experts=4, top_k=2), router=router))
    x = torch.randn(8, site.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = layer.route(x).scores
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), layer.up)
    torch.testing.assert_close(gradient[:3], (x.sum(0) / 3).expand(3, -1))
    assert (gradient[3:] == 0).all()
