"""Bytes and operations of runs: by formulas, and as an eager model that is metered shows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from measure.small_models import HIDDEN, NEURONS, VOCABULARY, converted_llama
from moeify.errors import UsageError
from moeify.export.onnx.model_interface import model_interface
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.budget import moe_layers, set_top_k
from moeify.speed.eager_work import eager_work
from moeify.speed.work import Work, dense_work, layer_work, metered_work
from moeify.speed.workload import Place, Workload

CONFIG = MoEConfig(
    hidden=8, output=6, activation="silu", gated=True, offsets=(4, 8, 12, 20), router=RouterConfig("linear"), top_k=1, rank=2,
    neurons=20,
)  # fmt: skip
ROW, ALWAYS = 8 + 8 + 6, 4 * (8 + 8 + 6) + 3 * 8 + 2 * (8 + 6)


def chosen(*experts: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(experts), 3).bool()


def test_one_token_reads_what_the_plan_calls_active() -> None:
    config = MoEConfig(
        hidden=8, output=8, activation="relu", gated=False, offsets=(0, 5, 10, 15, 20), router=RouterConfig("linear"), top_k=2
    )
    on = torch.tensor([[True, False, False, True]])
    assert layer_work(config, on).weights == round(config.active_fraction(20) * dense_work(config, 1).weights)
    assert layer_work(config, on).flops == 2 * layer_work(config, on).weights


def test_an_expert_is_read_once_and_works_for_each_token() -> None:
    assert layer_work(CONFIG, chosen(0, 0, 2)) == Work((4 + 8) * ROW + ALWAYS, 2 * ((4 + 4 + 8) * ROW + 3 * ALWAYS))
    assert layer_work(CONFIG, chosen(1)) == Work(4 * ROW + ALWAYS, 2 * (4 * ROW + ALWAYS))
    assert dense_work(CONFIG, 3) == Work(20 * ROW, 2 * 3 * 20 * ROW)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Two layers of four experts, two of them on, and a shared one; the head has weights of its own."""
    return converted_llama()


def rest(model: nn.Module) -> tuple[int, int]:
    """Weights outside MoE layers that a run reads: matrices, and the vectors of norms; no table of embeddings."""
    own = {id(p) for layer in moe_layers(model).values() for p in layer.parameters()}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = [p for p in model.parameters() if id(p) not in own | tables]
    return sum(p.numel() for p in found if p.ndim == 2), sum(p.numel() for p in found if p.ndim == 1)


def test_a_run_is_metered_by_what_it_does(model: nn.Module) -> None:
    ids = torch.arange(5)[None] + 1
    with torch.no_grad(), metered_work(model) as meter:
        model(input_ids=ids)
    ffns = sum((dense_work(layer.config, 5) for layer in moe_layers(model).values()), Work())
    matrices, vectors = rest(model)
    assert ffns.weights == 2 * 3 * HIDDEN * NEURONS
    assert meter.dense == Work(ffns.weights + matrices + vectors, ffns.flops + 2 * 5 * matrices)
    active = sum(layer.config.active_fraction(NEURONS) for layer in moe_layers(model).values()) / 2
    assert meter.converted.flops == round(active * ffns.flops) + 2 * 5 * matrices


def test_all_experts_on_cost_the_router_more(model: nn.Module) -> None:
    layers = moe_layers(model)
    set_top_k(model, 4)
    try:
        with torch.no_grad(), metered_work(model) as meter:
            model(input_ids=torch.tensor([[1]]))
    finally:
        set_top_k(model, 2)
    routers = sum(layer.config.experts * layer.config.hidden for layer in layers.values())
    assert meter.converted.weights - meter.dense.weights == routers == 2 * 4 * HIDDEN
    assert meter.converted.flops - meter.dense.flops == 2 * routers


def test_a_step_works_on_one_token_whatever_the_cache_holds(model: nn.Module) -> None:
    interface = model_interface(model, {"input_ids": torch.arange(4)[None]})
    like = {name: tensor.numpy() for name, tensor in zip(interface.inputs, interface.example)}
    workload = Workload(like, {}, cached=True, vocabulary=20)
    places = [Place(1), Place(1, 3), Place(1, 9), Place(4)]
    found = eager_work(model, interface, workload, places, seed=0)
    assert found[places[1]].dense == found[places[2]].dense == found[places[0]].dense
    assert found[places[3]].dense.flops == 4 * found[places[0]].dense.flops
    assert found[places[3]].dense.weights == found[places[0]].dense.weights


def test_a_place_that_a_model_cannot_be_run_at(model: nn.Module) -> None:
    interface = model_interface(model, {"input_ids": torch.arange(4)[None]})
    workload = Workload({}, {}, cached=True, text=np.array([VOCABULARY]))
    with pytest.raises(UsageError, match=r"the model cannot run 3 tokens: .*index out of range.*; ask for fewer"):
        eager_work(model, interface, workload, [Place(3)], seed=0)


def test_inputs_are_drawn_for_what_the_axes_are() -> None:
    rng = np.random.default_rng(0)
    words = {"input_ids": np.array([[1, 2, 3]] * 2), "attention_mask": np.array([[1, 1, 0]] * 2)}
    free = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
    workload = Workload(words, free, cached=False, vocabulary=50, text=np.arange(10, 17))
    drawn = workload.draw(4, rng)
    assert workload.unit == "tokens"
    assert [value.shape for value in drawn.values()] == [(1, 4), (1, 4)]
    assert set(np.diff(drawn["input_ids"][0]).tolist()) <= {1, -6}  # the text in its order, round
    assert drawn["attention_mask"].all()
    images = Workload({"x": np.zeros((2, 3, 8), np.float32) + 7}, {"x": ("batch", 3, "width")}, cached=False)
    assert images.unit == "rows"
    assert images.draw(5, rng)["x"].shape == (5, 3, 8)
    assert (images.draw(5, rng)["x"] == 7).all()
