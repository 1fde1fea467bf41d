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
from moeify.ir.model_graph import Batch
from moeify.ir.moe_config import RouterConfig
from moeify.ir.token_weights import damped
from moeify.layers.budget import moe_layers, set_top_k
from moeify.layers.folding import folded
from moeify.layers.moe_layer import MoELayer
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.linear_term import linear_term
from moeify.measure.null_models import null_models
from moeify.measure.nulls import Null, all_on, oracle
from moeify.measure.oracle import expert_norms, largest_choice
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


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_all_on_is_the_dense_model_for_a_partition() -> None:
    model, dense, (batch,) = converted_llama(), llama(), batches(1)
    layers = moe_layers(model)
    routed = logits_of(model, batch)
    with computed_by(layers, all_on(layers).compute):
        assert_close(logits_of(model, batch), logits_of(dense, batch))
    assert torch.equal(logits_of(model, batch), routed)
    assert float((routed - logits_of(dense, batch)).abs().max()) > 0.1


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_nulls_of_experts_on_a_frozen_core(rule: Composition) -> None:
    options: dict[str, Any] = {"top_k": 2, "gate_rule": "softmax", "gated": True, "shared": True, "output_bias": True}
    layer, plain = (composed_layer(rule, **options) for _ in range(2))
    plain, x = folded(plain), composed_inputs(30)
    for null in (all_on, oracle):
        assert_close(within(null({"": layer}), layer, x), within(null({"": plain}), plain, x))
    fractions = all_on({"": layer}).fractions
    assert fractions[""] == pytest.approx(layer.config.active_fraction(5, 4))
    set_top_k(layer, None)
    with torch.no_grad():
        assert_close(within(all_on({"": plain}), plain, x), layer(x))


@pytest.mark.parametrize(
    "options", [{}, {"gate_rule": "softmax"}, {"gate_rule": "sigmoid", "normalize": True}, {"rank": 2, "idle": True}]
)
def test_all_on_is_the_layer_without_top_k(options: dict[str, Any]) -> None:
    layer, x = layer_of(**options), sample()
    found = within(all_on({"": layer}), layer, x)
    set_top_k(layer, None)
    with torch.no_grad():
        assert_close(found, layer(x))


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
    assert_close(within(oracle({"": layer}), layer, x), by_hand(layer, x, chosen, gates))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 3))
def test_the_oracle_captures_at_least_the_norm_mass_of_the_router(seed: int, k: int) -> None:
    layer, x = layer_of(seed=seed, top_k=k), sample(20, seed)
    with torch.no_grad():
        routing = layer.route(x)
        norms = expert_norms(layer, neuron_outputs(layer, x), values_of(layer, routing.scores))
        ideal = best(norms, routing.chosen.sum(-1))
    assert torch.equal(ideal.sum(-1), routing.chosen.sum(-1))
    assert bool(((norms * ideal).sum(-1) >= (norms * routing.chosen).sum(-1) - 1e-6).all())


@pytest.mark.parametrize("given_dense", [False, True])
def test_nulls_of_the_dense_ffn_by_hand(given_dense: bool) -> None:
    """Static mask and compensation; without the dense model they are made of the layer's own rows, which are a partition."""
    model, data = converted_llama(layers=1), batches(4)
    layers, dense = moe_layers(model), llama(layers=1).get_submodule(PATH)
    ffns = {PATH: DenseFFN.of_layer(moe_of(dense, seed=5))} if given_dense else {}
    by_name = {null.name: null for null in null_models(model, layers, data[:2], ffns, 0, [])}
    x, inputs = sample(), seen(model, data[:2])
    gate, up, down = (dense.get_submodule(f"{name}_proj").get_parameter("weight").detach() for name in ("gate", "up", "down"))

    def hidden(x: Tensor) -> Tensor:
        h: Tensor = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
        return h

    h = hidden(inputs)
    gains = h.square().mean(0) * down.T.square().sum(-1)
    rows = round(layers[PATH].config.active_fraction(NEURONS) * NEURONS)
    kept = torch.zeros(NEURONS, dtype=torch.bool).index_fill_(0, gains.topk(rows).indices, True)
    mean = h.mean(0)
    static = by_name["static-mask"]
    assert_close(within(static, layers[PATH], x, PATH), hidden(x) @ (down.T * kept[:, None]) + (mean * ~kept) @ down.T)
    assert static.fractions == {PATH: rows / NEURONS}
    assert 28 < rows < 31  # shared 8, two experts of 10, and what the router's weights would hold
    with torch.no_grad():
        missing, weights = h @ down.T - layers[PATH](inputs), damped((h @ down.T).square().sum(-1))
        term, routed = linear_term(inputs, missing, weights), layers[PATH](x)
    compensated = by_name["full-rank-compensation"]
    assert_close(within(compensated, layers[PATH], x, PATH), routed + term(x))
    assert compensated.extra == {PATH: HIDDEN * HIDDEN / (3 * HIDDEN * NEURONS)}
    random = by_name["random-partition"]
    assert random.fractions[PATH] <= layers[PATH].config.active_fraction(NEURONS) < random.fractions[PATH] + 1 / NEURONS


def seen(model: nn.Module, data: list[Batch]) -> Tensor:
    """The first layer's inputs on the data."""
    inputs: list[Tensor] = []
    handle = moe_layers(model)[PATH].register_forward_pre_hook(lambda _, args: inputs.append(args[0].reshape(-1, HIDDEN)))
    for batch in data:
        logits_of(model, batch)
    handle.remove()
    return torch.cat(inputs)


def test_padding_fits_no_null() -> None:
    model = converted_llama(layers=1)
    ids = batches(1, tokens=12)[0]["input_ids"]  # type: ignore[call-overload]  # a dict
    mask = torch.ones_like(ids).index_fill_(1, torch.arange(8, 12), 0)
    short: list[Batch] = [{"input_ids": ids[:, :8]}]
    padded: list[Batch] = [{"input_ids": ids, "attention_mask": mask}]
    x = sample()
    outputs = []
    for data in (short, padded):
        layers = moe_layers(model)
        outputs.append([within(n, layers[PATH], x, PATH) for n in null_models(model, layers, data, {}, 0, [])])
    assert [len(found) for found in outputs] == [len(ALL)] * 2
    for one, other in zip(*outputs):
        assert_close(one, other)


def test_the_oracle_measures_what_it_uses() -> None:
    layer, x = layer_of(sizes=(2, 4, 14, 20)), sample()
    null = oracle({"": layer})
    within(null, layer, x)
    assert null.meter is not None
    (load,) = null.meter.results({"": layer})
    with torch.no_grad():
        h, routing = neuron_outputs(layer, x), layer.route(x)
        chosen = largest_choice(layer, h, values_of(layer, routing.scores), routing.chosen.sum(-1))
    rows = 8 + float((chosen.float() @ torch.tensor([2.0, 4.0, 14.0, 20.0])).mean())
    assert load.active_fraction == pytest.approx(rows / NEURONS + 4 * HIDDEN / (3 * HIDDEN * NEURONS))


def nulls_of(model: nn.Module) -> tuple[Null, ...]:
    return null_models(model, moe_layers(model), batches(1), {}, 0, [])


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
    assert different == 5
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


ALL = ["all-on", "oracle-routing", "random-partition", "static-mask", "full-rank-compensation"]

#: Caption -> model, whether the dense model is given, the nulls that there are, a note about it.
NOTES: dict[str, tuple[Callable[[], nn.Module], bool, list[str], str]] = {
    "all five": (converted_llama, True, ALL, ""),
    "own rows": (converted_llama, False, ALL, "made of the converted layers' own rows"),
    "scaled experts": (lambda: converted_llama(gate_rule="softmax"), False, ALL[:2], "give the dense model"),
    "scaled experts beside the dense ones": (lambda: converted_llama(gate_rule="softmax"), True, ALL, ""),
    "fewer rows": (lambda: converted_llama(neurons=50), False, ALL[:2], "give the dense model"),
    "fewer rows, no routing": (lambda: converted_llama(neurons=50, router=None, top_k=None), True, ALL[2:], ""),
    "copies": (lambda: converted_llama(shards=2), True, ALL[:2], "the experts are copies"),
    "all experts on": (lambda: converted_llama(top_k=4), True, [], "every layer runs all of its experts"),
    "a dense model": (llama, True, [], "every layer runs all of its experts"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
def test_which_nulls_fit(case: str) -> None:
    make, known, names, note = NOTES[case]
    model, notes = make(), list[str]()
    layers = moe_layers(model)
    dense = {path: DenseFFN.of_layer(moe_of(llama().get_submodule(path))) for path in layers} if known else {}
    found = null_models(model, layers, batches(1), dense, 0, notes)
    assert [null.name for null in found] == names
    assert all(null.what for null in found)
    assert (note in notes[0]) if note else not notes
