"""Experts added to a converted model, and taken out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import moeify
from converted import call, distance, main_output
from layers.stochastic_layers import stochastic_layer
from measure.small_models import HIDDEN, batches, converted_llama, logits_of
from moeify import api
from moeify.errors import UsageError
from moeify.ir.moe_config import RouterConfig
from moeify.layers.budget import moe_layers, set_top_k
from moeify.layers.moe_layer import MoELayer
from moeify.layers.routers import ScoringRouter
from moeify.training.selection_bias import update_selection_bias
from zoo import ZOO

FIRST = "model.layers.0.mlp"
MLP = RouterConfig("mlp", width=5, activation="tanh", bias=True)
NEURON = RouterConfig("neuron", activation="silu", gated=True, bias=True)
SPECTRAL = RouterConfig("spectral", width=3, gated=True)


def first(model: nn.Module) -> MoELayer:
    return moe_layers(model)[FIRST]


def tokens(count: int = 200) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "router", [RouterConfig("linear"), RouterConfig("average-key"), MLP, NEURON, SPECTRAL], ids=lambda r: r.kind
)
def test_a_copy_changes_nothing_where_one_of_the_two_is_chosen(router: RouterConfig) -> None:
    model, data = converted_llama(router=router, top_k=1), batches(1)
    before = logits_of(model, data[0])
    assert moeify.add_expert(model, copy_of=2) == {f"model.layers.{i}.mlp": 4 for i in range(2)}
    torch.testing.assert_close(logits_of(model, data[0]), before)
    layer = first(model)
    assert layer.config.sizes == (10,) * 5
    assert torch.equal(layer.up[-10:], layer.up[layer.config.offsets[2] : layer.config.offsets[3]])
    scores = layer.route(tokens()).scores
    torch.testing.assert_close(scores[:, 4], scores[:, 2])


def test_an_expert_that_was_added_is_taken_out_again() -> None:
    model = converted_llama(router=RouterConfig("linear", bias=True), selection_bias=True, idle=True)
    before = copy.deepcopy(model.state_dict())
    moeify.add_expert(model, copy_of=1)
    moeify.remove_expert(model, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("router", [RouterConfig("linear"), NEURON, SPECTRAL], ids=lambda r: r.kind)
def test_those_behind_the_one_taken_out_move_up(router: RouterConfig) -> None:
    model, x = converted_llama(router=router, top_k=2), tokens()
    before = first(model).route(x)
    moeify.remove_expert(model, 1)
    after = first(model).route(x)
    torch.testing.assert_close(after.scores, before.scores[:, [0, 2, 3]])
    same = ~before.chosen[:, 1]
    assert torch.equal(after.chosen[same], before.chosen[same][:, [0, 2, 3]])


@pytest.mark.parametrize(("router", "width"), [(RouterConfig("linear"), HIDDEN), (MLP, 5)], ids=["linear", "mlp"])
def test_a_row_may_be_given(router: RouterConfig, width: int) -> None:
    model, row = converted_llama(router=router), torch.arange(float(width))
    moeify.add_expert(model, copy_of=0, row=row)
    for layer in moe_layers(model).values():
        assert isinstance(layer.router, ScoringRouter)
        rows = layer.router.get_parameter("weight" if layer.router.config.kind == "linear" else "weight_out")
        assert torch.equal(rows[-1], row)
    moeify.add_expert(model, copy_of=0, row={FIRST: -row}, layers="*.0.*")
    assert [layer.config.experts for layer in moe_layers(model).values()] == [6, 5]
    scores = first(model).route(tokens()).scores
    assert not torch.equal(scores[:, -1], scores[:, -2])


def test_the_two_are_told_apart_by_training() -> None:
    model = converted_llama(layers=1, router=RouterConfig("linear"), top_k=1).train()
    moeify.add_expert(model, copy_of=0)
    layer, optimizer = first(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in batches(3):
        assert isinstance(batch, dict)
        torch.autograd.backward(model(**batch, labels=batch["input_ids"]).loss)
        optimizer.step()
        optimizer.zero_grad()
    scores = layer.eval().route(tokens()).scores
    assert not torch.allclose(scores[:, 0], scores[:, 4])
    assert layer.route(tokens()).chosen[:, 4].any()


def test_the_new_one_is_trained_alone_behind_a_mask() -> None:
    """As docs/ways-back.md says."""
    model = converted_llama(layers=1, router=RouterConfig("linear"), top_k=1).train()
    moeify.add_expert(model, copy_of=0, row=torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0)))
    layer = first(model)
    assert layer.gate is not None
    new = torch.zeros(layer.config.rows, 1)
    new[layer.config.offsets[-2] :] = 1
    for rows in (layer.up, layer.gate, layer.down):
        rows.register_hook(lambda gradient: gradient * new)  # type: ignore[no-untyped-call]  # of torch
    before = layer.up.detach().clone()
    optimizer = torch.optim.AdamW([layer.up, layer.gate, layer.down], lr=1e-2, weight_decay=0.0)
    for batch in batches(2):
        assert isinstance(batch, dict)
        torch.autograd.backward(model(**batch, labels=batch["input_ids"]).loss)
        optimizer.step()
    changed = (layer.up != before).any(1)
    assert changed[-10:].all()
    assert not changed[:-10].any()


def test_an_average_key_router_follows_the_new_keys() -> None:
    model = converted_llama(layers=1).train()
    moeify.add_expert(model, copy_of=3)
    layer = first(model)
    assert layer.gate is not None
    with torch.no_grad():
        layer.gate[-10:] += 1
    layer(tokens())
    assert layer.router is not None
    weight = layer.router.get_buffer("weight")
    torch.testing.assert_close(weight[4], weight[3] + 1)


def test_a_stochastic_layer_draws_from_one_more() -> None:
    layer = stochastic_layer(3, scope="token")
    model = nn.Sequential(layer)
    moeify.add_expert(model, copy_of=0)
    assert layer.route(torch.zeros(200, 6)).chosen.any(0).tolist() == [True] * 4
    moeify.set_inference(model, "merged")
    assert layer(torch.zeros(2, 6)).shape == (2, 6)


def stack() -> nn.Module:
    return ZOO["residual-stack"]().model


def test_the_result_is_saved_loaded_and_exported(tmp_path: Path) -> None:
    zoo = ZOO["residual-stack"]()
    settings = {"upcycle-experts.by": {"kind": "noise", "std": 0.3}}
    moeify.convert(zoo.model, tmp_path / "out", example=zoo.example, recipe="upcycle", experts=3, settings=settings)
    model = moeify.load(tmp_path / "out", factory=stack)
    moeify.add_expert(model, copy_of=1, row=torch.ones(16))
    moeify.remove_expert(model, 0)
    set_top_k(model, 3)
    with torch.no_grad():
        expected = main_output(call(model, zoo.example))
    moeify.resave(model, tmp_path / "out", tmp_path / "new")
    again = moeify.load(tmp_path / "new", factory=stack)
    with torch.no_grad():
        assert distance(main_output(call(again, zoo.example)), expected) < 1e-6
    report = api.export(tmp_path / "new", tmp_path / "m.onnx", factory=stack, example=zoo.example)
    assert len(report.moe_layers) == 2
    moeify.to_dense(tmp_path / "new", by="mean", factory=stack)


def remove_where_all_are_on(model: nn.Module) -> None:
    set_top_k(model, 4, layers="*.1.*")
    moeify.remove_expert(model, 0)


REFUSED: list[tuple[str, Any, str]] = [
    ("no such expert", lambda m: moeify.add_expert(m, copy_of=4), rf"^{FIRST}: copy_of is 4: choose from 0 to 3"),
    ("an expert from behind", lambda m: moeify.remove_expert(m, -1), rf"^{FIRST}: index is -1: choose from 0 to 3"),
    ("a glob of none", lambda m: moeify.remove_expert(m, 0, layers="x"), "^no MoE layer matches 'x'"),
    ("a row too long", lambda m: moeify.add_expert(m, copy_of=0, row=torch.zeros(33)), r"row has the shape \[33\], .*\[32\]"),
    (
        "a row of no layer",
        lambda m: moeify.add_expert(m, copy_of=0, row={"model.layers.9.mlp": torch.zeros(32)}),
        r"row names the layer 'model\.layers\.9\.mlp', which gets no expert: did you mean",
    ),
    (
        "a row that one layer cannot take",
        lambda m: moeify.add_expert(m, copy_of=0, row={"model.layers.1.mlp": torch.zeros(1)}),
        r"^model\.layers\.1\.mlp: row has the shape",
    ),
    (
        "one that top-k needs",
        remove_where_all_are_on,
        r"^model\.layers\.1\.mlp: no expert can be taken out: top_k is 4: choose from 1 to 3",
    ),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_changes(change: Any, message: str) -> None:
    model = converted_llama(router=RouterConfig("linear"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=message):
        change(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [layer.config.experts for layer in moe_layers(model).values()] == [4, 4]


def test_routers_without_rows_of_their_own_take_none() -> None:
    with pytest.raises(UsageError, match="row is for a linear or mlp router, and this layer's is average-key"):
        moeify.add_expert(converted_llama(), copy_of=0, row=torch.zeros(HIDDEN))
    with pytest.raises(UsageError, match="row is for a linear or mlp router, and this layer's is none"):
        moeify.add_expert(converted_llama(router=None, top_k=None), copy_of=0, row=torch.zeros(HIDDEN))


def test_what_was_counted_of_the_old_experts_is_forgotten() -> None:
    model = converted_llama(layers=1, router=RouterConfig("linear")).train()
    moeify.set_training(model, bias_rate=0.1)
    for change in (lambda: moeify.add_expert(model, copy_of=0), lambda: moeify.remove_expert(model, 1)):
        call(model, batches(1)[0])
        change()
        call(model, batches(1)[0])
        update_selection_bias(model)
        bias = first(model).selection_bias
        assert bias is not None
        assert len(bias) == first(model).config.experts
