"""Balance by a bias on the choice, without a loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moeify.errors import UsageError
from moeify.layers.moe_layer import MoELayer
from moeify.training.selection_bias import update_after_steps, update_selection_bias
from moeify.training.settings import set_training
from training.trained_models import EXPERTS, HIDDEN, Stack, moe_layer, values


def bias_of(layer: MoELayer) -> list[float]:
    assert layer.selection_bias is not None
    return [float(b) for b in layer.selection_bias]


def test_it_moves_by_the_sign_of_the_missing_load() -> None:
    model, x = nn.Sequential(moe_layer(top_k=1)), values(9, HIDDEN)
    layer = model[0]
    assert isinstance(layer, MoELayer)
    load = layer.route(x).chosen.sum(0).double()
    set_training(model, bias_rate=0.25)
    assert layer.config.selection_bias
    assert bias_of(layer) == [0] * EXPERTS
    update_selection_bias(model)
    assert bias_of(layer) == [0] * EXPERTS  # no token was seen
    model(x)
    update_selection_bias(model)
    assert bias_of(layer) == (0.25 * (load.mean() - load).sign()).tolist()
    update_selection_bias(model)
    assert bias_of(layer) == (0.25 * (load.mean() - load).sign()).tolist()
    model.eval()(x)
    update_selection_bias(model)
    assert bias_of(layer) == (0.25 * (load.mean() - load).sign()).tolist()


def test_loads_of_accumulated_batches_add_up_and_padding_is_left_out() -> None:
    model, x = Stack(), values(2, 5, HIDDEN)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    load = model.first.route(x[mask != 0]).chosen.sum(0) + model.first.route(-x).chosen.sum(0)
    set_training(model, bias_rate=1.0)
    model(x, attention_mask=mask)
    model(-x)
    update_selection_bias(model)
    assert bias_of(model.first) == (load.double().mean() - load).sign().tolist()


def test_it_evens_the_load_and_stays_in_the_model() -> None:
    model, x = Stack(), values(256, HIDDEN) + 0.5
    with torch.no_grad():
        dict(model.named_parameters())["first.router.weight"][0] += 0.5
    worst = []
    set_training(model, bias_rate=0.02)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = update_after_steps(model, optimizer)
    for _ in range(80):
        model(x).sum().backward()
        optimizer.step()
        worst.append(model.first.route(x).chosen.sum(0).max().item() / 128)
    assert worst[0] > 1.2
    assert worst[-1] < 1.1
    before = bias_of(model.first)
    handle.remove()
    model(x)
    optimizer.step()
    assert bias_of(model.first) == before
    set_training(model)
    assert model.first.route(x).chosen.sum(0).max().item() / 128 < 1.1
    other = Stack()
    set_training(other, bias_rate=1.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_a_cast_of_the_model_costs_no_small_steps() -> None:
    model = Stack()
    set_training(model, bias_rate=0.001)
    model.bfloat16()
    assert model.first.selection_bias is not None
    model.first.selection_bias += 1
    model(values(9, HIDDEN).bfloat16())
    update_selection_bias(model)
    assert any(b not in (1.0,) for b in bias_of(model.first))
    assert model.first.selection_bias.dtype == torch.float32


def test_without_a_rate_there_is_nothing_to_update() -> None:
    model = Stack()
    set_training(model, z_loss=1.0)
    with pytest.raises(UsageError, match="no selection bias to update"):
        update_selection_bias(model)
