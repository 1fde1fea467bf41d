"""A layer whose choice and gates are steered: it computes the function of docs/moe-layer.md with what was steered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layers.dense_sites import dense_site, split_spec
from moeify.layers.moe_layer import MoELayer
from moeify.layers.routing import gates_of, route, values_of
from moeify.layers.sparse_mixer import sparse_mixer
from moeify.layers.steering import jittered, noisy, within_capacity, without_gating
from moeify.training.settings import set_training

GATES: dict[str, dict[str, Any]] = {
    "one": {},
    "softmax": {"gate_rule": "softmax"},
    "sigmoid, normalised": {"gate_rule": "sigmoid", "normalize": True},
    "softmax, normalised by a constant": {"gate_rule": "softmax", "normalize": True, "detach_sum": True},
    "softmax, threshold": {"gate_rule": "softmax", "top_k": None, "threshold": 0.2},
}
every_gate = pytest.mark.parametrize("gate", GATES)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_layer(gate: str = "one", **changes: Any) -> MoELayer:
    """4 experts, top-2, a shared expert, in float64."""
    site = dense_site(activation="relu", dtype=torch.float64)
    return MoELayer.from_spec(site, replace(split_spec(site, experts=4, shared=4, top_k=2), **GATES[gate], **changes))


def inputs(*lead: int) -> Tensor:
    return torch.randn(*(lead or (9,)), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def by_hand(layer: MoELayer, x: Tensor, gates: Tensor) -> Tensor:
    """S(x) + sum_e g_e E_e(x) + output_bias with those gates [tokens, experts]; every expert is computed."""
    h = torch.relu(nn.functional.linear(x, layer.up, layer.up_bias))
    shared, *sizes = (b - a for a, b in zip((0, *layer.config.offsets), layer.config.offsets))
    of_row = torch.cat((torch.ones(len(x), shared), gates.repeat_interleave(torch.tensor(sizes), -1)), -1)
    assert layer.output_bias is not None
    return (h * of_row) @ layer.down + layer.output_bias


def steered(layer: MoELayer, x: Tensor, **options: Any) -> Tensor:
    set_training(layer, **options)
    torch.manual_seed(1)
    y: Tensor = layer(x)
    return y


@every_gate
def test_noise_decides_choice_and_gates(gate: str) -> None:
    layer, x = make_layer(gate), inputs()
    y = steered(layer, x, router_noise=0.8)
    torch.manual_seed(1)
    routing = route(noisy(layer.route(x).scores, 0.8), layer._rule, None)
    torch.testing.assert_close(y, by_hand(layer, x, routing.gates))
    assert not torch.equal(routing.chosen, layer.route(x).chosen)


@every_gate
def test_jitter_is_on_what_the_router_sees_alone(gate: str) -> None:
    layer, x = make_layer(gate), inputs()
    y = steered(layer, x, jitter=0.5)
    torch.manual_seed(1)
    routing = layer.route(jittered(x, 0.5))
    torch.testing.assert_close(y, by_hand(layer, x, routing.gates))
    assert not torch.equal(routing.scores, layer.route(x).scores)


@every_gate
def test_without_gating_experts_are_drawn_and_gates_are_the_routers(gate: str) -> None:
    layer, x = make_layer(gate), inputs()
    y = steered(layer, x, gating_dropout=0.7)
    torch.manual_seed(1)
    scores = layer.route(x).scores
    chosen = without_gating(layer.route(x).chosen, 0.7)
    assert not torch.equal(chosen, layer.route(x).chosen)
    torch.testing.assert_close(y, by_hand(layer, x, gates_of(values_of(scores, layer._rule), chosen, layer._rule)))


@pytest.mark.parametrize("drop", ["gate", "position"])
@every_gate
def test_over_capacity_an_expert_is_as_if_not_chosen(gate: str, drop: Any) -> None:
    layer, x = make_layer(gate), inputs()
    routing = layer.route(x)
    values = values_of(routing.scores, layer._rule)
    chosen = within_capacity(routing.chosen, values, 0.6, drop, None)
    assert chosen.sum() < routing.chosen.sum()
    y = steered(layer, x, capacity_factor=0.6, drop=drop)
    torch.testing.assert_close(y, by_hand(layer, x, gates_of(values, chosen, layer._rule)))


@every_gate
def test_with_room_for_all_output_and_gradients_are_those_of_inference(gate: str) -> None:
    plain, layer, x = make_layer(gate), make_layer(gate), inputs(3, 3)
    y = plain(x)
    found = steered(layer, x, capacity_factor=4.0)
    torch.testing.assert_close(found, y, rtol=1e-13, atol=1e-13)
    for each in (y, found):
        torch.autograd.backward(each.square().sum())
    for (name, p), q in zip(plain.named_parameters(), layer.parameters()):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-12, atol=1e-12, msg=name)


def test_idle_vectors_stand_in_for_what_was_dropped() -> None:
    layer, x = make_layer(), inputs()
    idle = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    layer.idle = nn.Parameter(idle)
    routing = layer.route(x)
    chosen = within_capacity(routing.chosen, routing.scores, 0.6, "gate", None)
    y = steered(layer, x, capacity_factor=0.6)
    torch.testing.assert_close(y, by_hand(layer, x, chosen.double()) + (~chosen).double() @ idle)


def test_all_at_once() -> None:
    layer, x = make_layer("softmax"), inputs()
    y = steered(layer, x, jitter=0.3, router_noise=0.5, gating_dropout=0.5, capacity_factor=0.8, load=0.1, importance=0.1)
    torch.manual_seed(1)
    loud = noisy(layer.route(jittered(x, 0.3)).scores, 0.5)
    values = values_of(loud, layer._rule)
    chosen = without_gating(route(loud, layer._rule, None).chosen, 0.5)
    chosen = within_capacity(chosen, values, 0.8, "gate", None)
    torch.testing.assert_close(y, by_hand(layer, x, values * chosen))


@pytest.mark.parametrize("gate", ["softmax", "softmax, normalised by a constant"])
def test_sparse_mixer_draws_the_expert_and_makes_its_gate(gate: str) -> None:
    layer, x = make_layer(gate), inputs(40)
    layer.top_k = 1
    y = steered(layer, x, router_gradient="sparse-mixer", jitter=0.6)
    torch.manual_seed(1)
    chosen, gates = sparse_mixer(layer.route(x).scores, 0.6, "normalised" in gate)
    torch.testing.assert_close(y, by_hand(layer, x, gates))
    assert not torch.equal(chosen, layer.route(x).chosen)
    torch.autograd.backward(y.square().sum())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_a_score_that_is_not_a_number_shows_in_the_output() -> None:
    layer, x = make_layer("softmax"), inputs()
    x[3, 0] = torch.nan
    y = steered(layer, x, capacity_factor=4.0)
    assert y[3].isnan().all()
    assert y[[0, 1, 2, *range(4, 9)]].isfinite().all()


STEERING: list[dict[str, Any]] = [
    {"router_noise": 0.5}, {"jitter": 0.5}, {"gating_dropout": 0.5}, {"capacity_factor": 0.5}, {"bias_rate": 0.1},
    {"sparsity": 1.0}, {"router_gradient": "straight-through"},
]  # fmt: skip


@pytest.mark.parametrize("options", STEERING, ids=lambda options: next(iter(options)))
def test_in_inference_nothing_of_it_is_on(options: dict[str, Any]) -> None:
    layer, x = make_layer(), inputs()
    wanted = layer.eval()(x)
    set_training(layer, **options)
    state = torch.random.get_rng_state()
    assert torch.equal(layer(x), wanted)
    assert torch.equal(torch.random.get_rng_state(), state)
    layer.train()(x)
    set_training(layer)
    assert layer.training_state is None or "bias_rate" in options
    assert torch.equal(layer(x), make_layer()(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_draws_the_same_again(reentrant: bool) -> None:
    layer = make_layer("softmax")
    set_training(layer, jitter=0.3, router_noise=0.5, gating_dropout=0.5, capacity_factor=0.8, z_loss=0.1, attach=True)
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        layer.zero_grad()
        x = inputs().requires_grad_()
        y: Tensor = checkpoint(layer, x, use_reentrant=reentrant) if checkpointed else layer(x)
        torch.autograd.backward(y.square().sum())
        found.append({name: p.grad for name, p in layer.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
