"""Loads and active fractions against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from measure.small_models import HIDDEN, NEURONS, batches, converted_llama, llama, moe_of
from moeify.ir.model_graph import Batch
from moeify.ir.moe_config import RouterConfig
from moeify.layers.budget import moe_layers, set_threshold
from moeify.layers.moe_layer import MoELayer
from moeify.measure.load import expert_load, whole_active_fraction

ROW = 3 * HIDDEN
UNEQUAL = (2, 4, 14, 20)


def inputs_of(model: nn.Module, data: list[Batch]) -> dict[str, Tensor]:
    """x [tokens, hidden] of every MoE layer."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, path=path: found.setdefault(path, []).append(args[0].reshape(-1, HIDDEN))
        )
        for path, layer in moe_layers(model).items()
    ]
    with torch.no_grad():
        for batch in data:
            assert isinstance(batch, dict)
            model(**batch)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(parts) for path, parts in found.items()}


def largest(layer: MoELayer, x: Tensor, k: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """[tokens, experts]: the k largest scores of a linear router, in NumPy."""
    scores = x.numpy() @ layer.state_dict()["router.weight"].numpy().T
    chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = scores >= np.sort(scores, axis=-1)[:, -k][:, None]
    return chosen


@pytest.mark.parametrize("sizes", [(10, 10, 10, 10), UNEQUAL], ids=str)
def test_loads_by_hand(sizes: tuple[int, ...]) -> None:
    model, data = converted_llama(sizes=sizes), batches(3)
    inputs = inputs_of(model, data)
    with torch.no_grad():
        found = expert_load(model, data)
    assert [load.path for load in found] == list(inputs)
    for load in found:
        chosen = largest(moe_layers(model)[load.path], inputs[load.path], 2)
        loads = chosen.mean(0)
        assert load.tokens == 72
        assert load.loads == pytest.approx(loads)
        assert sum(load.loads) == pytest.approx(2)
        assert load.mean_on == pytest.approx(2)
        assert (load.fewest_on, load.most_on) == (2, 2)
        rows = 8 + (chosen * np.array(sizes)).sum(-1).mean()
        assert load.active_fraction == pytest.approx((rows * ROW + 4 * HIDDEN) / (NEURONS * ROW))
        shares = loads[loads > 0] / loads.sum()
        assert load.entropy == pytest.approx(-(shares * np.log(shares)).sum() / math.log(4))
        assert load.dead == tuple(np.flatnonzero(loads == 0))
    whole = whole_active_fraction(found)
    assert whole == pytest.approx(np.mean([load.active_fraction for load in found]))


def test_router_and_low_rank_term_are_counted_biases_are_not() -> None:
    router = RouterConfig("mlp", bias=True, width=6, activation="relu")
    model = converted_llama(router=router, rank=3, idle=True, output_bias=True, up_bias=True, gate_bias=True)
    (load, *_) = expert_load(model, batches(1))
    weights = (8 + 20) * ROW + 6 * (HIDDEN + 4) + 3 * 2 * HIDDEN
    assert load.active_fraction == pytest.approx(weights / (NEURONS * ROW))


def test_the_dense_neurons_of_copied_experts_are_told() -> None:
    model, path = converted_llama(), "model.layers.0.mlp"
    plain, other = expert_load(model, batches(1)), expert_load(model, batches(1), {path: NEURONS // 2})
    assert other[0].active_fraction == pytest.approx(2 * plain[0].active_fraction)
    assert other[1] == plain[1]
    weights = plain[0].active_fraction * NEURONS + plain[1].active_fraction * NEURONS
    assert whole_active_fraction(other) == pytest.approx(weights / (NEURONS * 1.5))


def test_experts_that_nobody_chooses_are_dead() -> None:
    model = converted_llama(layers=1, selection_bias=True)
    layer = moe_layers(model)["model.layers.0.mlp"]
    assert layer.selection_bias is not None
    layer.selection_bias.copy_(torch.tensor([-1e6, 0, -1e6, 0]))
    (load,) = expert_load(model, batches(2))
    assert load.dead == (0, 2)
    assert load.loads == (0, 1, 0, 1)
    assert load.entropy == pytest.approx(0.5)


def test_a_threshold_is_measured_not_assumed() -> None:
    model = converted_llama(top_k=None, threshold=0.0)
    loads = expert_load(model, batches(3))
    assert any(load.fewest_on < load.most_on for load in loads)
    assert all(load.fewest_on <= load.mean_on <= load.most_on for load in loads)
    set_threshold(model, 1e9)
    for load in expert_load(model, batches(1)):
        assert (load.mean_on, load.entropy, load.dead) == (0, 0, (0, 1, 2, 3))
        assert load.active_fraction == pytest.approx((8 * ROW + 4 * HIDDEN) / (NEURONS * ROW))


def test_tokens_under_the_mask_do_not_count() -> None:
    (batch,) = batches(1)
    assert isinstance(batch, dict)
    mask = torch.ones_like(batch["input_ids"])
    mask[:, 7:] = 0
    masked = expert_load(converted_llama(), [{**batch, "attention_mask": mask}])
    cut = expert_load(converted_llama(), [{"input_ids": batch["input_ids"][:, :7]}])
    assert masked == cut


@settings(max_examples=15, deadline=None)
@given(k=st.integers(1, 4), seed=st.integers(0, 99))
def test_loads_sum_to_k(k: int, seed: int) -> None:
    layer = moe_of(llama().get_submodule("model.layers.0.mlp"), seed=seed, top_k=k)
    x = torch.randn(31, HIDDEN, generator=torch.Generator().manual_seed(seed))
    (load,) = expert_load(layer, [(x,)])
    assert sum(load.loads) == pytest.approx(k)
    assert load.mean_on == pytest.approx(k)
    assert len(load.dead) <= 4 - k


def test_a_dense_model_has_no_load() -> None:
    assert expert_load(llama(), batches(1)) == ()
    assert whole_active_fraction(()) is None
