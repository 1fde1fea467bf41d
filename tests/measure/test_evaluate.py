"""The whole evaluation: its figures are those of its parts, and what does not apply is None with a note."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from measure.small_models import HIDDEN, VOCABULARY, batches, bert, converted_llama, llama, moe_of
from moeify.data import open_data
from moeify.errors import ConversionError, InputError
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.measure.divergence import divergence
from moeify.measure.evaluate import evaluate_model
from moeify.measure.greedy import greedy_agreement
from moeify.measure.load import expert_load, whole_active_fraction
from moeify.measure.nulls import oracle
from moeify.measure.perplexity import perplexity
from moeify.measure.substitute import computed_by


def test_figures_are_those_of_the_parts() -> None:
    model, dense, data = converted_llama(), llama(), batches(3, tokens=40)
    found = evaluate_model(model, open_data(data), dense=dense)
    first, second = found.scores
    assert (first.name, second.name) == ("dense", "converted")
    assert first.perplexity == perplexity(dense, data)
    assert first.divergence is None
    assert second.perplexity == perplexity(model, data)
    assert second.divergence == divergence(dense, model, data)
    assert found.layers == expert_load(model, data)
    assert found.active_fraction == second.active_fraction == whole_active_fraction(found.layers)
    assert found.greedy == greedy_agreement(dense, model, data)
    assert found.greedy is not None
    assert (found.batches, found.notes) == (3, ())
    assert found.data["kind"] == "batches"
    assert found.data["tokens"] == 240


def test_nulls_are_scored_on_what_they_were_not_fitted_on() -> None:
    model, dense, data = converted_llama(), llama(), batches(21)
    seen: list[tuple[str, int, int | None]] = []
    found = evaluate_model(model, data, dense=dense, nulls=True, progress=lambda *step: seen.append(step))
    names = [score.name for score in found.scores]
    assert names == [
        "dense",
        "converted",
        "all-on",
        "oracle-routing",
        "random-partition",
        "static-mask",
        "full-rank-compensation",
    ]
    assert found.batches == 19
    assert seen[-1] == ("evaluate", 19, 19)
    assert any("fitted on the first 2 of 21 batches" in note for note in found.notes)
    rest = data[2:]
    by_name = {score.name: score for score in found.scores}
    assert by_name["dense"].perplexity == perplexity(dense, rest)
    assert by_name["converted"].divergence == divergence(dense, model, rest)
    layers = moe_layers(model)
    with computed_by(layers, oracle(layers).compute):
        assert by_name["oracle-routing"].divergence == divergence(dense, model, rest)
    exact = by_name["all-on"].divergence
    assert exact is not None
    assert exact.relative_error < 1e-5
    assert by_name["all-on"].active_fraction == pytest.approx(1 + 4 / (3 * 48))
    static, routed = by_name["static-mask"].active_fraction, found.active_fraction
    assert static is not None
    assert routed is not None
    assert static == pytest.approx(routed, abs=0.5 / 48)


def test_the_seed_decides_the_random_partition() -> None:
    model, data = converted_llama(), batches(3)

    def random(seed: int) -> Any:
        score = evaluate_model(model, data, nulls=True, seed=seed).score("random-partition")
        assert score is not None
        return score.perplexity

    assert random(1) == random(1)
    assert random(1) != random(2)


def test_an_evaluation_leaves_no_trace() -> None:
    model, dense = converted_llama(threshold=0.0), llama()
    model.train()
    model.get_submodule("lm_head").eval()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    configs = [layer.config for layer in moe_layers(model).values()]
    flags = [module.training for module in model.modules()]
    evaluate_model(model, batches(3), dense=dense, nulls=True)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert [layer.config for layer in moe_layers(model).values()] == configs
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_encoder_has_no_perplexity() -> None:
    found = evaluate_model(bert(1), batches(2), dense=bert(0))
    (dense, converted) = found.scores
    assert dense.perplexity is None
    assert converted.perplexity is None
    assert converted.divergence is not None
    assert converted.divergence.output == "last_hidden_state"
    assert found.greedy is None
    assert found.active_fraction is None
    assert any("no causal language model" in note for note in found.notes)
    assert any("no MoE layer" in note for note in found.notes)


def test_without_a_dense_model() -> None:
    found = evaluate_model(converted_llama(), batches(2))
    (converted,) = found.scores
    assert converted.perplexity is not None
    assert converted.divergence is None
    assert any("no dense model was given" in note for note in found.notes)


class Classifier(nn.Module):
    """Takes [rows, hidden] floats by position and gives a bare tensor."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.ffn(x)
        return found


def test_a_bare_module_on_floats() -> None:
    mlp = llama().get_submodule("model.layers.0.mlp")
    data: list[Batch] = [(torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(i)),) for i in range(3)]
    found = evaluate_model(Classifier(moe_of(mlp)), data, dense=Classifier(mlp), nulls=True)
    assert {score.name for score in found.scores} > {"converted", "static-mask"}
    converted = found.score("converted")
    assert converted is not None
    assert converted.divergence is not None
    assert converted.divergence.output == "output"
    assert converted.divergence.kl is None
    assert [load.path for load in found.layers] == ["ffn"]


@pytest.mark.parametrize("nulls", [False, True])
def test_json_round_trips(nulls: bool) -> None:
    found = evaluate_model(converted_llama(), open_data(batches(3)), dense=llama(), nulls=nulls)
    plain = found.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["scores"][1]["perplexity"]["value"] == found.scores[1].perplexity.value  # type: ignore[union-attr]  # asserted elsewhere


def test_tables() -> None:
    found = evaluate_model(converted_llama(), batches(3, tokens=40), dense=llama(), nulls=True)
    table = found.score_table()
    assert table[0][:4] == ("model", "active fraction", "perplexity", "/ dense")
    assert len(table) == 8
    assert {len(row) for row in table} == {len(table[0])}
    layers = found.layer_table()
    assert layers[0][0] == "layer"
    assert [row[0] for row in layers[1:]] == list(moe_layers(converted_llama()))
    rows = dict(found.rows())
    assert rows["dense: perplexity"] == table[1][2]
    assert rows["static-mask: KL from dense"]
    assert rows["greedy texts: tokens agreed on"].endswith("of 64")
    assert evaluate_model(llama(), batches(1)).layer_table() == []


def test_a_stream_is_read_once() -> None:
    found = evaluate_model(converted_llama(), iter(batches(3)), nulls=True)
    assert found.batches == 2


def broken() -> nn.Module:
    model = converted_llama()
    with torch.no_grad():
        model.get_parameter("lm_head.weight").fill_(float("nan"))
    return model


FAULTS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no batch": (converted_llama, {"data": []}, InputError, "holds no batch"),
    "one batch for nulls": (converted_llama, {"data": batches(1), "nulls": True}, InputError, "need at least two batches"),
    "ids beyond the vocabulary": (
        converted_llama, {"data": [{"input_ids": torch.full((1, 4), VOCABULARY)}]}, InputError, f"below {VOCABULARY}",
    ),
    "an unknown input": (
        converted_llama, {"data": [{"pixels": torch.ones(1, 4)}]}, InputError, "LlamaForCausalLM fails on a batch of the data",
    ),
    "NaN weights": (broken, {"data": batches(1)}, ConversionError, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_faults(case: str) -> None:
    make, options, error, message = FAULTS[case]
    with pytest.raises(error, match=message) as caught:
        evaluate_model(make(), **options)
    assert "\n" not in str(caught.value)
