"""Layers on a frozen core do what others do: experts are selected, merged and gathered, and their sparsity is seen."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from layers.composed_layers import RULES, composed_layer, inputs
from moeify.ir.composition import Composition
from moeify.layers.dense_ffn import Mean
from moeify.layers.expert_selection import select_experts
from moeify.layers.folding import folded
from moeify.layers.hidden_sparsity import HiddenSparsity

both_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
beside_a_shared_one = pytest.mark.parametrize("shared", [False, True])


@both_rules
@beside_a_shared_one
def test_some_of_its_experts_are_those_of_the_folded_layer(rule: Composition, shared: bool) -> None:
    layer = composed_layer(rule, shared=shared, top_k=2, gated=True, activation="silu", up_bias=True, gate_bias=True)
    plain, x = folded(copy.deepcopy(layer)), inputs(3, 5)  # it shares what is no row
    for one in (layer, plain):
        select_experts(one, [3, 1, 1])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x))
    assert not layer.get_parameter("core.up").requires_grad


@both_rules
@beside_a_shared_one
def test_one_merged_expert_a_sequence(rule: Composition, shared: bool) -> None:
    layer = composed_layer(rule, shared=shared, top_k=2)
    plain, x = folded(layer), inputs(3, 5)
    for one in (layer, plain):
        one.config = replace(one.config, smear=True)
    found = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(found, plain(x))
    found.square().sum().backward()
    own = layer.get_parameter(f"{rule.kind}.up_b" if rule.kind == "lora" else f"{rule.kind}.up")
    assert own.grad is not None
    assert own.grad.abs().sum() > 0


@both_rules
def test_the_mean_of_its_experts(rule: Composition) -> None:
    layer = composed_layer(rule, top_k=2, gate_rule="softmax", normalize=True)
    found, wanted = Mean().gather(layer), Mean().gather(folded(layer))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])


@both_rules
def test_its_hidden_activations_are_seen(rule: Composition) -> None:
    layer = composed_layer(rule, top_k=2, shared=True)
    plain, x = folded(layer), inputs(7)
    losses = []
    for one in (layer, plain):
        watch = HiddenSparsity(x, floor=-1.0)
        with torch.no_grad():
            one._run(x, replace(one._weights, watch=watch))
        losses.append(watch.loss(None))
    torch.testing.assert_close(*losses)
    assert float(losses[0]) > 1
