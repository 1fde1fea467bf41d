"""One pass over data gives the loads of `expert_load`, and co-activations that can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from measure.small_models import HIDDEN, batches, converted_llama, llama
from measure.test_load import inputs_of
from moeify.errors import InputError
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.layers.rows import Rows
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.load import expert_load
from moeify.measure.routing_facts import RoutingFacts, routing_facts

PATHS = [f"model.layers.{index}.mlp" for index in range(2)]


def dense() -> dict[str, DenseFFN]:
    model = llama()
    found = {}
    for path in PATHS:
        weights = {name: model.get_parameter(f"{path}.{name}_proj.weight").detach() for name in ("up", "gate", "down")}
        found[path] = DenseFFN("silu", Rows(weights["up"], weights["down"].T, weights["gate"]), None)
    return found


def facts(model: nn.Module, *rest: Any) -> RoutingFacts:
    return routing_facts(model, moe_layers(model), *rest)


def padded(data: list[Batch]) -> list[Batch]:
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    return [{**batch, "attention_mask": mask} for batch in data if isinstance(batch, dict)]


@pytest.mark.parametrize("data", [batches(3), padded(batches(3))], ids=["whole", "padded"])
def test_loads_are_those_of_expert_load(data: list[Batch]) -> None:
    model = converted_llama()
    found = facts(model, data, (), {})
    assert found.loads == expert_load(model, data)
    assert found.together == ()


def test_pairs_of_experts_by_hand() -> None:
    model, data = converted_llama(), batches(3)
    (found,) = facts(model, data, PATHS[:1], {}).together
    x = inputs_of(model, data)[PATHS[0]]
    with torch.no_grad():
        chosen = moe_layers(model)[PATHS[0]].route(x).chosen.double()
    assert found.experts is not None
    assert np.allclose(found.experts, (chosen.T @ chosen / len(x)).numpy())
    assert found.tokens == 72


def correlation(strength: Tensor, sizes: tuple[int, ...]) -> float:
    matrix, group = np.corrcoef(strength.abs().double().numpy().T), np.repeat(np.arange(len(sizes)), sizes)
    same = (group[:, None] == group) & ~np.eye(len(group), dtype=bool)
    return float(matrix[same].mean())


def test_neurons_before_are_in_the_order_of_the_dense_model() -> None:
    model, data, sizes = converted_llama(), batches(3), (8, 10, 10, 10, 10)
    (found,) = facts(model, data, PATHS[:1], dense()).together
    x = inputs_of(model, data)[PATHS[0]]
    assert x.shape[1] == HIDDEN
    layer = moe_layers(model)[PATHS[0]]
    with torch.no_grad():
        before, after = dense()[PATHS[0]].hidden(x), DenseFFN.of_layer(layer).hidden(x)
    assert found.before is not None
    assert found.neurons is not None
    assert found.before.within == pytest.approx(correlation(before, sizes))
    assert found.neurons.within == pytest.approx(correlation(after, sizes))
    assert found.before.within != pytest.approx(found.neurons.within)
    assert (found.reason, found.reason_before) == ("", "")


def test_what_cannot_be_shown_says_why() -> None:
    data = batches(2)
    (without,) = facts(converted_llama(), data, PATHS[:1], {}).together
    assert without.before is None
    assert without.reason_before == "the dense model was not given"
    other = {PATHS[0]: dense()[PATHS[1]]}
    (of_another,) = facts(converted_llama(), data, PATHS[:1], other).together
    assert of_another.reason_before == "its rows are not those of the dense model"
    (single,) = facts(converted_llama(shared=8, sizes=(1,) * 40), data, PATHS[:1], {}).together
    assert (single.neurons, single.reason) == (None, "every expert is one neuron")
    assert single.experts is not None
    (copies,) = facts(converted_llama(shared=0, sizes=(12,) * 4, shards=1, neurons=12), data, PATHS[:1], {}).together
    assert copies.reason == "its experts are no partition of the dense FFN's neurons"


def test_no_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the data holds no batch to look at$"):
        facts(converted_llama(), [], (), {})
