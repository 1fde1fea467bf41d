"""Composed rows as plain ones: for the operator, for an export, and one expert at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from layers.composed_layers import NEURONS, RULES, VARIANTS, composed_layer, frozen_names, inputs, reference_rows
from layers.dense_sites import dense_site, split_spec
from moeify.errors import UsageError
from moeify.ir.composition import Composition
from moeify.ir.moe_config import Inference, RouterConfig
from moeify.layers.folding import expert_rows, folded, folded_layers
from moeify.layers.moe_layer import MoELayer
from moeify.layers.rows import Rows

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@every_rule
@every_variant
def test_a_folded_layer_computes_the_same_from_plain_rows(variant: dict[str, Any], rule: Composition) -> None:
    layer, x = composed_layer(rule, **variant), inputs(3, 5)
    plain = folded(layer)
    torch.testing.assert_close(plain(x), layer(x))
    assert plain.config.composed is None
    assert frozen_names(plain) == set()
    for name, rows in reference_rows(layer).items():
        torch.testing.assert_close(plain.get_parameter(name).detach(), torch.from_numpy(rows))
    again = MoELayer(plain.config, dtype=torch.float64)
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again.eval()(x), layer(x))


@every_rule
def test_inside_the_block_a_model_holds_plain_rows_and_then_its_own_again(rule: Composition) -> None:
    layer, x = composed_layer(rule, **VARIANTS["gated, biases, shared"]), inputs(3, 5)
    other = MoELayer.from_spec(dense_site(hidden=7), split_spec(dense_site(hidden=7), experts=3))
    model = nn.Sequential(layer.float(), other)
    before, y = {name: id(p) for name, p in model.named_parameters()}, model(x.float())
    with folded_layers(model):
        assert model[0] is layer
        assert {name for name, _ in model.named_parameters()} >= {"0.up", "0.gate", "0.down", "0.up_bias", "1.up"}
        torch.testing.assert_close(model(x.float()), y)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert torch.equal(model(x.float()), y)


@every_rule
@pytest.mark.parametrize("shared", [False, True])
def test_the_rows_of_one_expert(shared: bool, rule: Composition) -> None:
    layer = composed_layer(rule, shared=shared, gated=True, up_bias=True)
    plain, rows = folded(layer), reference_rows(layer)
    for expert in range(4):
        start = NEURONS * (expert + shared)
        for found in (expert_rows(layer, expert), expert_rows(plain, expert)):
            assert isinstance(found, Rows)
            for name, value in rows.items():
                torch.testing.assert_close(getattr(found, name), torch.from_numpy(value[start : start + NEURONS]))
    with pytest.raises(UsageError, match="expert is 4: choose from 0 to 3"):
        expert_rows(layer, 4)


@every_rule
@pytest.mark.parametrize("variant", ["top-2, gate one", "all on, no router", "gated, biases, shared"])
def test_export_gives_one_node_of_the_operator(variant: str, rule: Composition) -> None:
    layer, auto = composed_layer(rule, dtype=torch.float32, **VARIANTS[variant]), torch.export.Dim.AUTO
    exported = torch.export.export(layer, (inputs(2, 5).float(),), dynamic_shapes=({0: auto, 1: auto},))
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(torch.ops.moeify.moe.default) == 1
    assert not any("nonzero" in str(target) for target in targets)
    torch.testing.assert_close(exported.module()(inputs(3, 4).float()), layer(inputs(3, 4).float()))


@every_rule
@pytest.mark.parametrize("mode", ["merged", "ensemble", "fixed"])
def test_a_compiled_stochastic_layer_merges_and_draws(mode: Inference, rule: Composition) -> None:
    torch._dynamo.reset()
    router = RouterConfig("stochastic", inference=mode)
    layer = composed_layer(rule, router=router, top_k=1, normalize=True, shared=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs(3, 5)), layer(inputs(3, 5)))


def test_a_layer_of_plain_rows_is_its_own_folded_form() -> None:
    layer = MoELayer.from_spec(dense_site(), split_spec(dense_site(), experts=3, shared=3))
    assert folded(layer) is layer
    assert torch.equal(expert_rows(layer, 1).up, layer.up[6:9])
