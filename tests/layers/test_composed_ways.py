"""Whatever else can be done with a layer, experts on a frozen core do as their folded rows do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import moeify
from layers.composed_layers import NEURONS, RULES, composed_layer, frozen_names, inputs
from moeify.errors import UsageError
from moeify.ir.composed_spec import ComposedSpec
from moeify.ir.composition import Composition
from moeify.ir.expert_selection import select_config, select_spec
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import MoESpec
from moeify.layers.dense_ffn import SVD, Concatenate, Gathering, Mean
from moeify.layers.expert_selection import select_experts
from moeify.layers.folding import folded
from moeify.layers.hidden_sparsity import HiddenSparsity
from moeify.layers.moe_layer import MoELayer
from moeify.training.parameter_groups import parameter_groups

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

WHOLE: dict[str, Any] = {
    "gated": True, "activation": "silu", "up_bias": True, "gate_bias": True, "output_bias": True, "gate_rule": "softmax",
}  # fmt: skip


def pair(rule: Composition, **options: Any) -> tuple[MoELayer, MoELayer]:
    """A layer, and its folded form with a router of its own."""
    layer = composed_layer(rule, **WHOLE, **options)
    return layer, folded(composed_layer(rule, **WHOLE, **options))


@every_rule
@pytest.mark.parametrize("shared", [False, True])
def test_smear(shared: bool, rule: Composition) -> None:
    layer, plain = pair(rule, shared=shared, top_k=2, smear=True)
    x = inputs(3, 5)
    torch.testing.assert_close(layer(x), plain(x))
    assert not torch.allclose(layer(x), composed_layer(rule, **WHOLE, shared=shared, top_k=2)(x))
    layer.train()(x).square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is None} == frozen_names(layer)


@every_rule
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("experts", [[2, 0], [0, 1, 2, 3, 3], [3]])
def test_selected_experts(experts: list[int], shared: bool, rule: Composition) -> None:
    layer, plain = pair(rule, shared=shared, top_k=1, idle=True)
    core = layer.get_parameter("core.up").detach().clone()
    for one in (layer, plain):
        select_experts(one, experts)
    torch.testing.assert_close(layer(inputs(9)), plain(inputs(9)))
    assert layer.config.composed == rule
    assert layer.config.experts == len(experts)
    assert torch.equal(layer.get_parameter("core.up"), core)
    assert frozen_names(layer) == {f"core.{n}" for n in ("up", "gate", "down", "up_bias", "gate_bias")} | {"output_bias"}
    fresh = MoELayer(layer.config, dtype=torch.float64)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(inputs(9)), layer(inputs(9)))


@every_rule
def test_selected_experts_of_a_spec(rule: Composition) -> None:
    own = {"up_a" if rule.kind == "lora" else "up": torch.arange(4.0).view(4, 1, 1).expand(4, 2, 3)}
    neurons = torch.arange(NEURONS)
    for shared in (neurons[:0], neurons):
        composed = ComposedSpec(rule, own=own)
        spec = MoESpec((neurons,) * (4 - bool(len(shared))), shared, normalize=True, shards=1, composed=composed)
        left = select_spec(spec, [2, 0]).composed
        assert left is not None
        assert [int(run[0, 0]) for run in next(iter(left.own.values()))] == ([0, 3, 1] if len(shared) else [2, 0])


@every_rule
def test_an_expert_more_and_one_less(rule: Composition) -> None:
    layer, plain = pair(rule, shared=True, top_k=2, router=RouterConfig("linear"))
    for one in (layer, plain):
        model = nn.Sequential(one)
        moeify.add_expert(model, copy_of=1, row=inputs(1)[0])
        moeify.remove_expert(model, 0)
    torch.testing.assert_close(layer(inputs(9)), plain(inputs(9)))
    before = composed_layer(rule, **WHOLE, shared=True, top_k=2, router=RouterConfig("linear")).config
    assert layer.config == select_config(before, [1, 2, 3, 1])


@every_rule
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("strategy", [Mean(), SVD(), SVD(rank=2)], ids=str)
def test_gathered_into_a_dense_network(strategy: Gathering, shared: bool, rule: Composition) -> None:
    layer, plain = pair(rule, shared=shared, top_k=2)
    strategy.check(layer.config, NEURONS)
    found, expected = strategy.gather(layer), strategy.gather(plain)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    with pytest.raises(UsageError, match="its experts are copies of it: gather them by mean"):
        Concatenate().check(layer.config, NEURONS)


#: caption -> what training does: nothing that is drawn
TRAINING: dict[str, dict[str, Any]] = {
    "losses": {"load_balance": 0.1, "z_loss": 0.1, "importance": 0.1},
    "sparsity": {"sparsity": 0.1, "sparsity_floor": -0.2},
    "capacity": {"capacity_factor": 0.6},
}


@every_rule
@pytest.mark.parametrize("options", TRAINING.values(), ids=TRAINING)
def test_training(options: dict[str, Any], rule: Composition) -> None:
    outputs: list[Tensor] = []
    for layer in pair(rule, shared=True, top_k=2):
        model = nn.Sequential(layer).train()
        moeify.set_training(model, **options)
        y = model(inputs(3, 7))
        outputs += [y, moeify.auxiliary_loss(model) if "capacity_factor" not in options else y.sum()]
        (y.square().sum() + outputs[-1]).backward()
        assert {n for n, p in layer.named_parameters() if p.grad is None} == frozen_names(layer)
    torch.testing.assert_close(outputs[:2], outputs[2:])
    if options.get("capacity_factor"):
        assert not torch.allclose(outputs[0], composed_layer(rule, **WHOLE, shared=True, top_k=2)(inputs(3, 7)))


@every_rule
def test_parameter_groups_leave_the_core_out(rule: Composition) -> None:
    model = nn.Sequential(composed_layer(rule, **WHOLE, top_k=2), nn.Linear(7, 3))
    found = {group["part"]: group["params"] for group in parameter_groups(model)}
    own = model.get_submodule(f"0.{rule.kind}")
    assert {id(p) for p in found["experts"]} == {id(p) for p in own.parameters()}
    assert len(found["router"]) == len(found["rest"]) == 2


@every_rule
def test_hidden_activations_are_seen(rule: Composition) -> None:
    losses, x = [], inputs(7)
    for one in pair(rule, top_k=2, shared=True):
        watch = HiddenSparsity(x, floor=-1.0)
        with torch.no_grad():
            one._run(x, replace(one._weights, watch=watch))
        losses.append(watch.loss(None))
    torch.testing.assert_close(*losses)
    assert float(losses[0]) > 1
