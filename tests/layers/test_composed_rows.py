"""Experts on a frozen core: the layer against the float64 reference, what is trained, and what is computed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from layers.composed_layers import (
    HIDDEN,
    NEURONS,
    OUTPUT,
    RULES,
    VARIANTS,
    composed_layer,
    expected,
    frozen_names,
    inputs,
    reference_rows,
)
from layers.layer_cases import relative_error
from moeify.errors import UsageError
from moeify.ir.composition import Composition
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer
from moeify.layers.operator import as_node
from moeify.layers.routers import AverageKeyRouter

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def train_on(y: Tensor) -> None:
    torch.autograd.backward(y.float().square().sum())


def by_operator(layer: MoELayer, x: Tensor) -> Tensor:
    """y as graphs compute it: by the operator, from folded rows."""
    return as_node(x, layer._scores(x), layer._weights, layer._offsets, layer._rule, layer.selection_bias)


@every_rule
@every_variant
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_equals_the_reference(dtype: torch.dtype, variant: dict[str, Any], rule: Composition) -> None:
    layer, x = composed_layer(rule, dtype=dtype, **variant), inputs(3, 5, dtype=dtype)
    truth = expected(layer, x)
    assert relative_error(layer(x), truth) <= TOLERANCE[dtype]
    with torch.no_grad():
        assert relative_error(layer(x), truth) <= TOLERANCE[dtype]


@every_rule
@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 1, 3)])
def test_any_leading_dims(lead: tuple[int, ...], rule: Composition) -> None:
    layer, x = composed_layer(rule, top_k=2, shared=True), inputs(*lead)
    assert relative_error(layer(x), expected(layer, x)) <= 1e-12


@every_rule
@every_variant
def test_gradients_are_those_of_folded_rows_and_reach_what_is_trained_alone(variant: dict[str, Any], rule: Composition) -> None:
    layer, x = composed_layer(rule, **variant).train(), inputs(8).requires_grad_()
    train_on(layer(x))
    assert {name for name, p in layer.named_parameters() if p.grad is None} == frozen_names(layer)
    assert {name.partition(".")[0] for name in frozen_names(layer)} == {"core"} | ({"output_bias"} & variant.keys())
    found = {name: p.grad for name, p in (*layer.named_parameters(), ("x", x)) if p.grad is not None}
    layer.zero_grad()
    x.grad = None
    train_on(by_operator(layer, x))
    folded = {name: p.grad for name, p in (*layer.named_parameters(), ("x", x)) if p.grad is not None}
    # A router without a part in y gets no gradient from the operator, and zeros from the layer.
    assert found.keys() - folded.keys() <= {"router.weight", "router.bias"}
    for name, gradient in folded.items():
        torch.testing.assert_close(found[name], gradient)


@every_rule
@pytest.mark.parametrize("variant", ["top-2, softmax, normalised", "gated, biases, shared"])
def test_compiled_it_computes_and_trains_the_same(variant: str, rule: Composition) -> None:
    torch._dynamo.reset()
    layer, x = composed_layer(rule, **VARIANTS[variant]), inputs(8)
    train_on(layer(x))
    wanted = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad()
    train_on(torch.compile(layer, fullgraph=True, backend="aot_eager")(x))
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == (wanted[name] is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name])


@every_rule
def test_adamw_with_weight_decay_leaves_the_core_bit_for_bit(rule: Composition) -> None:
    layer, x = composed_layer(rule, **VARIANTS["gated, biases, shared"]).train(), inputs(40)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        train_on(layer(x))
        optimizer.step()
    assert not {name for name in frozen_names(layer) if not torch.equal(before[name], layer.get_parameter(name))}
    assert not {n for n, p in layer.named_parameters() if p.requires_grad and torch.equal(before[n], p)}
    assert len(optimizer.state) == sum(p.requires_grad for p in layer.parameters())


@every_rule
def test_experts_that_nobody_chose_are_not_read(rule: Composition) -> None:
    layer, x = composed_layer(rule, top_k=2, gate_rule="softmax", shared=True, up_bias=True), inputs(9)
    own = list(layer.get_submodule(rule.kind).parameters())
    with torch.no_grad():
        layer.router.bias[1] = -100.0  # type: ignore[union-attr, operator]  # a linear router
        for parameter in own:
            parameter[2] = torch.nan  # run 0 is the shared expert
    y = layer(x)
    assert y.isfinite().all()
    train_on(y)
    for parameter in own:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert (parameter.grad[2] == 0).all()


@every_rule
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, None])
def test_flops_are_the_active_fraction(top_k: int | None, shared: bool, gated: bool, rule: Composition) -> None:
    options: dict[str, Any] = {"gate_rule": "softmax", "shared": shared, "gated": gated, "neurons": 50}
    layer = composed_layer(rule, top_k=top_k, dtype=torch.float32, **options)
    x, config = inputs(64, dtype=torch.float32), layer.config
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        layer(x)
    dense = 2 * 64 * 50 * (HIDDEN * (1 + gated) + OUTPUT)
    assert counter.get_total_flops() / dense == pytest.approx(config.active_fraction(50))


@every_rule
@every_variant
def test_the_config_counts_what_the_layer_holds(variant: dict[str, Any], rule: Composition) -> None:
    layer = composed_layer(rule, **variant)
    config, found = layer.config, list(layer.named_parameters())
    router_biases = sum(p.numel() for name, p in found if name == "router.bias")
    assert config.parameters + config.vectors + router_biases == sum(p.numel() for _, p in found)
    assert config.frozen == sum(p.numel() for _, p in found if not p.requires_grad)
    assert MoEConfig.from_json(config.to_json()) == config


@every_rule
@pytest.mark.parametrize("shared", [False, True])
def test_merged_rows_are_the_mean_of_the_experts(shared: bool, rule: Composition) -> None:
    options: dict[str, Any] = {
        "top_k": 1,
        "normalize": True,
        "gated": True,
        "up_bias": True,
        "gate_bias": True,
        "shared": shared,
    }
    layer = composed_layer(rule, router=RouterConfig("stochastic", inference="merged"), **options)
    rows, size = reference_rows(layer), NEURONS * shared
    means = {name: torch.from_numpy(value[size:].reshape(4, NEURONS, *value.shape[1:]).mean(0)) for name, value in rows.items()}
    merged = layer._weights.merged()
    assert merged.offsets == (size, size + NEURONS)
    for name, mean in means.items():
        torch.testing.assert_close(getattr(merged.rows, name), torch.cat((torch.from_numpy(rows[name][:size]), mean)))
    x = inputs(4)
    assert layer(x).shape == (4, OUTPUT)
    assert layer.route(x).chosen.all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"])
@every_rule
def test_a_copy_stays_frozen_and_computes_the_same(rule: Composition, copied: Callable[[MoELayer], MoELayer]) -> None:
    layer, x = composed_layer(rule, top_k=2, output_bias=True), inputs(5)
    twin = copied(layer)
    assert frozen_names(twin) == frozen_names(layer) == {"core.up", "core.down", "output_bias"}
    assert torch.equal(twin(x), layer(x))
    twin.top_k = 1
    assert not torch.equal(twin(x), layer(x))
    again = MoELayer(layer.config, device="meta")
    again.load_state_dict(layer.state_dict(), assign=True)
    assert frozen_names(again) == frozen_names(layer)
    assert torch.equal(again.eval()(x), layer(x))


@every_rule
def test_bfloat16_autocast(rule: Composition) -> None:
    layer, x = composed_layer(rule, top_k=2, gated=True, activation="softplus", dtype=torch.float32), inputs(8).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, chosen = layer(x), layer.route(x).chosen
    train_on(y)
    assert y.dtype == torch.bfloat16
    assert all(p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in layer.parameters())
    assert torch.equal(chosen, layer.route(x).chosen)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


@every_rule
def test_dropout_is_that_of_training_alone(rule: Composition) -> None:
    layer = composed_layer(rule, top_k=2, hidden_dropout=0.5, neurons=64)
    plain, x = composed_layer(rule, top_k=2, neurons=64), inputs(1).expand(4000, -1)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        drawn, truth = layer.train()(x), plain(x)
    deviation = drawn.std(0)
    assert (deviation > 0.01).all()
    assert ((drawn.mean(0) - truth[0]).abs() < 5 * deviation / len(x) ** 0.5).all()
    torch.testing.assert_close(layer.eval()(x), truth)


@every_rule
def test_an_average_key_router_follows_composed_keys(rule: Composition) -> None:
    layer = composed_layer(rule, top_k=2, gated=True, router=RouterConfig("average-key"), shared=True).train()
    x = inputs(4)
    scores = layer.route(x).scores
    keys = torch.from_numpy(reference_rows(layer)["gate"][NEURONS:].reshape(4, NEURONS, HIDDEN).mean(1))
    torch.testing.assert_close(scores, x @ keys.T)
    assert isinstance(layer.eval().router, AverageKeyRouter)
    torch.testing.assert_close(layer.state_dict()["router.weight"], keys)
    train_on(scores[:, 0])
    grad = next(p.grad for n, p in layer.named_parameters() if n in ("residual.gate", "lora.gate_a"))
    assert grad is not None
    assert [float(g.abs().max()) > 0 for g in grad] == [False, True, False, False, False]


SMALL = MoEConfig(4, 4, "relu", False, (0, 3, 6), neurons=3, shards=1, composed=Composition("residual"))
WRONG: list[tuple[str, Callable[[], object], str]] = [
    ("another size", lambda: replace(SMALL, offsets=(0, 3, 5)), "every expert has as many rows as the core, 3"),
    ("a small shared expert", lambda: replace(SMALL, offsets=(2, 5, 8)), "every expert has as many rows as the core, 3"),
    ("no size", lambda: replace(SMALL, neurons=None), "every expert has as many rows as the core, None"),
    ("shards", lambda: replace(SMALL, shards=2), "every expert has as many rows as the core"),
    ("an unknown kind", lambda: Composition("loar"), "composition is 'loar': choose one of residual, lora"),  # type: ignore[arg-type]  # wrong on purpose
    ("no rank", lambda: Composition("lora", 0, 1.0), "rank of lora is 0 and alpha 1.0: choose a rank from 1"),
    ("no alpha", lambda: Composition("lora", 1), "choose a rank from 1 and an alpha above 0"),
    ("a rank of residuals", lambda: Composition("residual", 1), "rank 1 and alpha 0.0 are for lora"),
]


@pytest.mark.parametrize(("make", "message"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_wrong_shapes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
