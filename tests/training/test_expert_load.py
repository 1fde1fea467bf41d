"""Which experts a model in training uses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from moeify.errors import UsageError
from moeify.layers.moe_layer import MoELayer
from moeify.layers.router_losses import entropy, probabilities
from moeify.training.expert_load import ExpertLoad, scalars
from moeify.training.settings import set_training
from training.trained_models import HIDDEN, Stack, moe_layer, values


def test_shares_dead_experts_and_entropy_since_the_last_reading() -> None:
    model, x = Stack(), values(2, 5, HIDDEN)
    load = ExpertLoad(model)
    assert load.read() == {}
    routing = [model.first.route(v) for v in (x, -x)]
    counts = torch.cat([r.chosen for r in routing]).sum(0)
    model(x)
    model(-x)
    model.eval()(x)
    model.train()
    found = load.read()
    assert list(found) == ["first", "second"]
    first = found["first"]
    assert first.tokens == 20
    assert first.shares == pytest.approx((counts / 20).tolist())
    assert sum(first.shares) == pytest.approx(2)
    assert first.dead == tuple(e for e in range(4) if not counts[e])
    mean = torch.cat([entropy(probabilities(r.scores, "one")) for r in routing]).mean().item()
    assert first.entropy == pytest.approx(mean)
    assert load.read() == {}


def test_dead_experts_are_named() -> None:
    model, x = nn.Sequential(moe_layer(top_k=1)), values(9, HIDDEN).abs()
    load = ExpertLoad(model)
    with torch.no_grad():
        dict(model.named_parameters())["0.router.weight"].copy_(torch.arange(4.0).unsqueeze(1).expand(4, HIDDEN))
    model(x)
    found = load.read()
    assert found["0"].dead == (0, 1, 2)
    assert found["0"].shares == (0, 0, 0, 1)
    assert scalars(found) == {
        "moe/0/max_share": 1, "moe/0/min_share": 0, "moe/0/dead": 3, "moe/0/entropy": found["0"].entropy, "moe/0/dropped": 0,
        "moe/dead": 3,
    }  # fmt: skip


def test_what_capacity_drops_is_told() -> None:
    model, x = nn.Sequential(moe_layer()), values(16, HIDDEN)
    layer = model[0]
    assert isinstance(layer, MoELayer)
    counts = layer.route(x).chosen.sum(0)
    load = ExpertLoad(model)
    set_training(model, capacity_factor=0.5)  # room for 0.5 x 32 / 4 = 4 tokens
    model(x)
    assert load.read()["0"].dropped == pytest.approx(float((counts - 4).clamp(min=0).sum()) / 32)


def test_padding_is_left_out_and_readers_do_not_disturb_each_other() -> None:
    model, x = Stack(), values(2, 5, HIDDEN)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    one = ExpertLoad(model)
    model(x, attention_mask=mask)
    other = ExpertLoad(model)
    assert one.read()["first"].tokens == 7
    model(x)
    assert (one.read()["first"].tokens, other.read()["first"].tokens) == (10, 10)


def test_it_goes_on_through_other_settings_and_copies() -> None:
    model, x = Stack(), values(9, HIDDEN)
    load = ExpertLoad(model)
    set_training(model, z_loss=0.1)
    model(x)
    set_training(model)
    model(x)
    assert load.read()["first"].tokens == 18
    y = copy.deepcopy(model)(x)
    assert load.read() == {}
    assert torch.equal(y, Stack()(x))


def test_layers_without_a_router_are_left_out() -> None:
    bare = moe_layer(router=None, top_k=None)
    model = nn.Sequential(bare, moe_layer())
    load = ExpertLoad(model)
    model(values(9, HIDDEN))
    assert list(load.read()) == ["1"]
    with pytest.raises(UsageError, match="no MoE layers with a router"):
        ExpertLoad(nn.Sequential(bare))
