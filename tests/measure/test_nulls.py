"""Null models: what they compute, by hand, and that they leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layers.composed_layers import RULES, composed_layer
from layers.composed_layers import inputs as composed_inputs
from measure.small_models import HIDDEN, NEURONS, batches, converted_llama, llama, logits_of, moe_of
from moeify.ir.composition import Composition
from moeify.ir.moe_config import RouterConfig
from moeify.layers.budget import moe_layers, set_top_k
from moeify.layers.folding import folded
from moeify.layers.moe_layer import MoELayer
from moeify.measure.null_models import null_models
from moeify.measure.nulls import Null, all_on, dealt_rows, expert_norms, oracle, random_partition
from moeify.measure.static_mask import static_mask
from moeify.measure.substitute import best, computed_by, neuron_outputs, values_of

PATH = "model.layers.0.mlp"
MLP = RouterConfig("mlp", width=5, activation="relu")


def within(null: Null, layer: MoELayer, x: Tensor, path: str = "") -> Tensor:
    with torch.no_grad(), computed_by({path: layer}, null.compute):
        found: Tensor = layer(x)
    return found


def sample(tokens: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def layer_of(**options: Any) -> MoELayer:
    return moe_of(llama().get_submodule(PATH), **options)


def by_hand(layer: MoELayer, x: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
    """docs/moe-layer.md token by token, in float64."""
    t = {name: value.double() for name, value in layer.state_dict().items()}
    h = torch.nn.functional.silu(x.double() @ t["gate"].T) * (x.double() @ t["up"].T)
    offsets = layer.config.offsets
    y: Tensor = h[:, : offsets[0]] @ t["down"][: offsets[0]]
    for e, (start, end) in enumerate(zip(offsets, offsets[1:])):
        part = gates[:, e : e + 1].double() * (h[:, start:end] @ t["down"][start:end])
        idle = t["idle"][e] if "idle" in t else torch.zeros(HIDDEN, dtype=torch.float64)
        y = y + torch.where(chosen[:, e : e + 1], part, idle)
    if "low_rank_in" in t:
        y = y + x.double() @ t["low_rank_in"].T @ t["low_rank_out"]
    return y


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_all_on_is_the_dense_model_for_a_partition() -> None:
    model, dense, (batch,) = converted_llama(), llama(), batches(1)
    layers = moe_layers(model)
    routed = logits_of(model, batch)
    with computed_by(layers, all_on(layers).compute):
        close(logits_of(model, batch), logits_of(dense, batch))
    assert torch.equal(logits_of(model, batch), routed)
    assert float((routed - logits_of(dense, batch)).abs().max()) > 0.1


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_nulls_of_experts_on_a_frozen_core(rule: Composition) -> None:
    options: dict[str, Any] = {"top_k": 2, "gate_rule": "softmax", "gated": True, "shared": True, "output_bias": True}
    layer, plain = (composed_layer(rule, **options) for _ in range(2))
    plain, x = folded(plain), composed_inputs(30)
    for null in (all_on, oracle):
        close(within(null({"": layer}), layer, x), within(null({"": plain}), plain, x))
    fractions = all_on({"": layer}).fractions
    assert fractions[""] == pytest.approx(layer.config.active_fraction(5, 4))
    set_top_k(layer, None)
    with torch.no_grad():
        close(within(all_on({"": plain}), plain, x), layer(x))


@pytest.mark.parametrize(
    "options", [{}, {"gate_rule": "softmax"}, {"gate_rule": "sigmoid", "normalize": True}, {"rank": 2, "idle": True}]
)
def test_all_on_is_the_layer_without_top_k(options: dict[str, Any]) -> None:
    layer, x = layer_of(**options), sample()
    found = within(all_on({"": layer}), layer, x)
    set_top_k(layer, None)
    with torch.no_grad():
        close(found, layer(x))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"gate_rule": "softmax"}, {"gate_rule": "sigmoid", "normalize": True}, {"rank": 2, "idle": True},
        {"sizes": (2, 4, 14, 20)}, {"top_k": None, "threshold": 0.0}, {"shared": 0, "sizes": (12, 12, 12, 12)}, {"router": MLP},
    ],
    ids=str,
)  # fmt: skip
def test_oracle_by_hand(options: dict[str, Any]) -> None:
    layer, x = layer_of(**options), sample()
    with torch.no_grad():
        routing = layer.route(x)
    values = {"softmax": lambda s: s.softmax(-1), "sigmoid": torch.sigmoid, "one": torch.ones_like}[layer.config.gate_rule](
        routing.scores.double()
    )
    weights = layer.state_dict()
    h = torch.nn.functional.silu(x @ weights["gate"].T) * (x @ weights["up"].T)
    runs = list(zip(layer.config.offsets, layer.config.offsets[1:]))
    norms = torch.stack([(h[:, a:b] @ weights["down"][a:b]).norm(dim=-1) for a, b in runs], -1) * values
    chosen = torch.zeros_like(routing.chosen)
    for token, count in enumerate(routing.chosen.sum(-1).tolist()):
        chosen[token, norms[token].topk(count).indices] = True
    gates = values * chosen
    gates = gates / gates.sum(-1, keepdim=True).clamp_min(1e-12) if layer.config.normalize else gates
    close(within(oracle({"": layer}), layer, x), by_hand(layer, x, chosen, gates))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 3))
def test_the_oracle_captures_at_least_the_norm_mass_of_the_router(seed: int, k: int) -> None:
    layer, x = layer_of(seed=seed, top_k=k), sample(20, seed)
    with torch.no_grad():
        routing = layer.route(x)
        norms = expert_norms(layer, x, neuron_outputs(layer, x), values_of(layer, routing.scores))
        ideal = best(norms, routing.chosen.sum(-1))
    assert torch.equal(ideal.sum(-1), routing.chosen.sum(-1))
    assert bool(((norms * ideal).sum(-1) >= (norms * routing.chosen).sum(-1) - 1e-6).all())


@pytest.mark.parametrize("options", [{}, {"sizes": (2, 4, 14, 20)}, {"router": MLP}, {"rank": 2, "idle": True}], ids=str)
def test_random_partition_by_hand(options: dict[str, Any]) -> None:
    layer, x = layer_of(**options), sample()
    null = random_partition({"a": layer}, seed=3)
    found = within(null, layer, x, "a")
    # Every token's output is the sum of the rows of the new shared expert and of two of the new experts.
    order = dealt_rows(layer, "a", 3)
    assert sorted(order.tolist()) == list(range(NEURONS))
    dealt = layer_of(**{**options, "router": RouterConfig("average-key"), "rank": 0, "idle": False})
    with torch.no_grad():
        for name in ("up", "gate", "down"):
            dealt.get_parameter(name).copy_(layer.get_parameter(name)[order])
        runs = zip(dealt.config.offsets, dealt.config.offsets[1:])
        dealt.state_dict()["router.weight"].copy_(torch.stack([dealt.get_parameter("gate")[a:b].mean(0) for a, b in runs]))
        close(found, dealt(x))
    assert not torch.equal(found, within(random_partition({"a": layer}, seed=4), layer, x, "a"))
    assert torch.equal(found, within(random_partition({"a": layer}, seed=3), layer, x, "a"))


def test_static_mask_by_hand() -> None:
    model, data = converted_llama(layers=1), batches(4)
    layers = moe_layers(model)
    layer = layers[PATH]
    null = static_mask(model, layers, data[:2])
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].reshape(-1, HIDDEN)))
    for batch in data[:2]:
        logits_of(model, batch)
    handle.remove()
    weights = layer.state_dict()

    def hidden(x: Tensor) -> Tensor:
        h: Tensor = torch.nn.functional.silu(x @ weights["gate"].T) * (x @ weights["up"].T)
        return h

    gains = hidden(torch.cat(inputs)).square().mean(0) * weights["down"].square().sum(-1)
    rows = round(layer.config.active_fraction(NEURONS) * NEURONS)
    kept = gains.topk(rows).indices
    x = sample()
    close(within(null, layer, x, PATH), hidden(x)[:, kept] @ weights["down"][kept])
    assert null.fractions == {PATH: rows / NEURONS}
    assert 28 < rows < 31  # shared 8, two experts of 10, and what the router's weights would hold


def nulls_of(model: nn.Module) -> list[Null]:
    layers = moe_layers(model)
    return [all_on(layers), oracle(layers), random_partition(layers), static_mask(model, layers, batches(1))]


def test_nulls_leave_no_trace() -> None:
    model, (batch,) = converted_llama(rank=2, idle=True, selection_bias=True), batches(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {path: set(vars(layer)) for path, layer in moe_layers(model).items()}
    output = logits_of(model, batch)
    different = 0
    for null in nulls_of(model):
        with computed_by(moe_layers(model), null.compute):
            different += not torch.equal(logits_of(model, batch), output)
        assert torch.equal(logits_of(model, batch), output)
    assert different == 4
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {path: set(vars(layer)) for path, layer in moe_layers(model).items()} == attributes


def test_a_null_that_fails_leaves_no_trace_either() -> None:
    model, (batch,) = converted_llama(), batches(1)
    output = logits_of(model, batch)

    def failing(layer: MoELayer, x: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), computed_by(moe_layers(model), dict.fromkeys(moe_layers(model), failing)):
        logits_of(model, batch)
    assert torch.equal(logits_of(model, batch), output)


NOTES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], list[str], str]] = {
    "all four": (converted_llama, {}, ["all-on", "oracle-routing", "random-partition", "static-mask"], ""),
    "scaled experts": (
        lambda: converted_llama(gate_rule="softmax"), {}, ["all-on", "oracle-routing", "random-partition"], "no static mask",
    ),
    "copied experts": (converted_llama, {PATH: 24}, ["all-on", "oracle-routing"], "no random partition and no static mask"),
    "all experts on": (lambda: converted_llama(top_k=4), {}, [], "no layer chooses among its experts"),
    "a dense model": (llama, {}, [], "no layer chooses among its experts"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
def test_which_nulls_fit(case: str) -> None:
    make, neurons, names, note = NOTES[case]
    model, notes = make(), list[str]()
    found = null_models(model, moe_layers(model), batches(1), neurons, 0, notes)
    assert [null.name for null in found] == names
    assert all(null.what for null in found)
    assert (note in notes[0]) if note else not notes
