"""Converted models become dense again: in memory, from a folder, by every strategy; nothing half-done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import moeify
from converted import call, converted, distance, main_output
from data.small_tokenizers import byte_level
from frontend.test_load_exported import export
from moeify.errors import ConversionError, InputError, OutputError, UsageError
from moeify.frontend.load_model import load_model
from moeify.layers.budget import moe_layers, set_top_k
from moeify.layers.dense_ffn import SVD
from moeify.measure.divergence import divergence
from zoo import ZOO, values

NOISE = {"upcycle-experts.by": {"kind": "noise", "std": 0.3}}


def run(model: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        return main_output(call(model, example))


def stack() -> nn.Module:
    return ZOO["residual-stack"]().model


def upcycled(output: Path | None = None, **options: Any) -> tuple[nn.Module, Any]:
    """A stack of differing copies, and its example."""
    zoo = ZOO["residual-stack"]()
    options = {"recipe": "upcycle", "experts": 3, "settings": NOISE, **options}
    return moeify.convert(zoo.model, output, example=zoo.example, **options).model, zoo.example


@pytest.mark.slow
def test_a_hugging_face_folder_comes_back_as_one(tmp_path: Path) -> None:
    zoo = ZOO["llama"]()
    zoo.model.save_pretrained(tmp_path / "llama")  # type: ignore[operator]  # a transformers model
    byte_level().save_pretrained(tmp_path / "llama")
    moeify.convert(tmp_path / "llama", tmp_path / "out", experts=4, top_k=2)
    done = moeify.to_dense(tmp_path / "out", tmp_path / "dense")
    assert done.output == tmp_path / "dense"
    assert [(layer.path, layer.experts, layer.equals) for layer in done.layers] == [
        (f"model.layers.{i}.mlp", 4, "the layer with all experts on") for i in range(2)
    ]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", local_files_only=True).eval()
    assert type(again) is type(zoo.model)
    assert distance(run(again, zoo.example), main_output(zoo.run())) < 1e-6
    names = {path.name for path in (tmp_path / "dense").iterdir()}
    assert {path.name for path in (tmp_path / "llama").iterdir()} == names
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config == json.loads((tmp_path / "llama" / "config.json").read_text())


def test_the_rows_of_each_neuron_are_what_they_were() -> None:
    dense, zoo = ZOO["llama"](), converted("llama")[0]
    moeify.to_dense(zoo.model)
    for index in range(2):
        before, after = (model.get_submodule(f"model.layers.{index}.mlp") for model in (dense.model, zoo.model))
        rows = [{tuple(row) for row in m.get_parameter("up_proj.weight").tolist()} for m in (before, after)]
        assert rows[0] == rows[1]


def test_a_state_dict_comes_back_as_a_safetensors_file(tmp_path: Path) -> None:
    model = stack()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    example = ZOO["residual-stack"]().example
    moeify.convert(tmp_path / "m.pt", tmp_path / "out", factory=stack, example=example, experts=4, top_k=1)
    moeify.to_dense(tmp_path / "out", tmp_path / "dense.safetensors", factory=stack)
    found = load_file(tmp_path / "dense.safetensors")
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in model.state_dict().items()}
    again = load_model(tmp_path / "dense.safetensors", factory=stack, example=example).model
    assert distance(run(again, example), run(model, example)) < 1e-6


@pytest.mark.parametrize("name", ["small", "fused"])
def test_an_exported_program_gets_its_parameters_back(name: str, tmp_path: Path) -> None:
    dense, example = export(name, tmp_path / "m.pt2")
    moeify.convert(tmp_path / "m.pt2", tmp_path / "out", experts=4, top_k=2)
    done = moeify.to_dense(tmp_path / "out", tmp_path / "dense.safetensors")
    assert distance(run(done.model, example), run(dense, example)) < 1e-6
    found = load_file(tmp_path / "dense.safetensors")
    assert {key: value.shape for key, value in found.items()} == {key: v.shape for key, v in dense.state_dict().items()}


def test_distances_are_measured_on_data() -> None:
    model, example = upcycled()
    other, _ = upcycled()
    batches = [(values(5, *example[0].shape[1:], seed=seed),) for seed in (3, 4)]
    done = moeify.to_dense(model, by="mean", data=batches)
    assert done.divergence is not None
    expected = divergence(other, model, batches)
    assert done.divergence.relative_error == pytest.approx(expected.relative_error, rel=1e-4)
    first, second = done.layers
    assert all(layer.equals is None and 0.1 < layer.weight_distance < 0.5 for layer in done.layers)
    assert first.output_distance is not None
    assert second.output_distance is not None
    layer, seen = moe_layers(other)[first.path], list[tuple[Tensor, Tensor]]()
    layer.register_forward_hook(lambda _, args, y: seen.append((y, model.get_submodule(first.path)(args[0]))))
    for (x,) in batches:
        run(other, (x,))
    apart = sum((a - b).square().sum() for a, b in seen) / sum(a.square().sum() for a, _ in seen)
    assert first.output_distance == pytest.approx(float(apart) ** 0.5, rel=1e-4)


def test_without_data_distances_are_told_of_weights_alone() -> None:
    done = moeify.to_dense(upcycled()[0], by="svd")
    assert done.divergence is None
    assert {layer.output_distance for layer in done.layers} == {None}
    mean = moeify.to_dense(upcycled()[0], by="mean")
    whole = moeify.to_dense(upcycled()[0], by=SVD(rank=16))
    for cut, middle, full in zip(done.layers, mean.layers, whole.layers):
        assert cut.weight_distance > middle.weight_distance
        assert full.weight_distance == pytest.approx(middle.weight_distance, rel=1e-4)


@pytest.mark.parametrize("recipe", ["upcycle", "granular-upcycle", "thor"])
def test_equal_copies_are_the_dense_model(recipe: str) -> None:
    expected = ZOO["residual-stack"]().run()
    model, example = upcycled(recipe=recipe, settings={})
    done = moeify.to_dense(model, by="mean")
    assert done.model is model
    assert not moe_layers(model)
    assert distance(run(model, example), main_output(expected)) < 1e-6


def test_what_was_hooked_for_drawn_experts_is_let_go() -> None:
    model, _ = upcycled(recipe="thor")
    assert model._forward_pre_hooks
    moeify.to_dense(model, by="mean")
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_trained_model_keeps_what_it_has_learnt_its_mode_and_dtype() -> None:
    zoo, _ = converted("bert")
    model = zoo.model.train()
    with torch.no_grad():
        for layer in moe_layers(model).values():
            layer.down.mul_(1.5)
    model.bfloat16()
    model.eval()
    expected = run(model, zoo.example)
    model.train()
    moeify.to_dense(model)
    assert all(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert distance(run(model.eval(), zoo.example), expected) < 2e-2


def test_a_frozen_ffn_comes_back_frozen() -> None:
    zoo = ZOO["residual-stack"]()
    zoo.model.get_submodule("0").requires_grad_(False)
    names = [name for name, parameter in zoo.model.named_parameters() if not parameter.requires_grad]
    model = moeify.convert(zoo.model, example=zoo.example, experts=4).model
    moeify.to_dense(model)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == names


def test_all_layers_change_or_none() -> None:
    model, example = upcycled(settings={})
    layer = moe_layers(model)["1.inner"]
    layer.config = replace(layer.config, shards=None)
    before = run(model, example)
    with pytest.raises(UsageError, match=r"^1\.inner: cannot be made dense by mean: its experts are parts"):
        moeify.to_dense(model, by="mean")
    assert len(moe_layers(model)) == 2
    assert torch.equal(run(model, example), before)


def test_what_cannot_be_made_dense_is_told_before_a_weight_is_read(tmp_path: Path) -> None:
    upcycled(tmp_path / "out")
    (tmp_path / "out" / "moeify.safetensors").unlink()
    with pytest.raises(UsageError, match=r"^0\.inner: cannot be made dense by concatenate: its experts hold 144 neurons"):
        moeify.to_dense(tmp_path / "out", tmp_path / "m.safetensors", factory=stack)
    with pytest.raises(UsageError, match=r"a .*Sequential becomes a state_dict in a safetensors file: choose a name"):
        moeify.to_dense(tmp_path / "out", tmp_path / "m", by="mean", factory=stack)
    with pytest.raises(OutputError, match="holds the model that is being read"):
        moeify.to_dense(tmp_path / "out", tmp_path / "out", by="mean", factory=stack, force=True)
    with pytest.raises(UsageError, match="tokens 5 counts data, but there are none"):
        moeify.to_dense(tmp_path / "out", by="mean", tokens=5)
    with pytest.raises(InputError, match=r"moeify\.safetensors is missing"):
        moeify.to_dense(tmp_path / "out", tmp_path / "m.safetensors", by="mean", factory=stack)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_folder_that_does_not_say_where_weights_stood_is_refused(tmp_path: Path) -> None:
    upcycled(tmp_path / "out")
    path = tmp_path / "out" / "moeify.json"
    manifest = json.loads(path.read_text())
    for layer in manifest["layers"]:
        del layer["dense"]
    path.write_text(json.dumps(manifest))
    message = r"^0\.inner: there is no way back to a dense network: the layer does not say what it was made of"
    with pytest.raises(ConversionError, match=message):
        moeify.to_dense(tmp_path / "out", by="mean", factory=stack)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("parameter", "0.inner.9.weight", r"0\.inner\.9\.weight is not there in the shape that its up has"),
        ("rows", [0, 4], r"0\.inner\.0\.weight is not there in the shape that its up has"),
        ("transposed", True, r"0\.inner\.0\.weight is not there in the shape that its up has"),
    ],
)
def test_a_folder_that_says_something_else_is_refused(field: str, value: object, message: str, tmp_path: Path) -> None:
    upcycled(tmp_path / "out")
    path = tmp_path / "out" / "moeify.json"
    manifest = json.loads(path.read_text())
    manifest["layers"][0]["dense"]["up"][field] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(ConversionError, match=message):
        moeify.to_dense(tmp_path / "out", by="mean", factory=stack)


def test_a_dense_model_is_not_made_dense() -> None:
    with pytest.raises(UsageError, match=r"^Sequential has no MoE layers: it is dense already"):
        moeify.to_dense(stack())


def test_top_k_does_not_matter_to_what_is_concatenated() -> None:
    zoo, graph = converted("gpt2", top_k=1)
    set_top_k(graph.model, None)
    expected = main_output(zoo.run())
    set_top_k(graph.model, 1)
    moeify.to_dense(graph.model)
    assert distance(main_output(zoo.run()), expected) < 1e-6


class WithMore(nn.Module):
    """An FFN module that holds a parameter which its forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)
        self.spare = nn.Parameter(torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y


def test_what_else_a_replaced_module_holds_is_kept_in_memory_and_missed_in_a_folder(tmp_path: Path) -> None:
    example = (values(5, 8),)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), WithMore()).eval()
    torch.save(model, tmp_path / "m.pt")
    moeify.convert(tmp_path / "m.pt", tmp_path / "out", example=example, experts=4, allow_pickle=True)
    moeify.convert(model, example=example, experts=4)
    moeify.to_dense(model)
    assert torch.equal(model.get_parameter("1.spare"), torch.arange(3.0))
    with pytest.raises(ConversionError, match=r"^1: there is no way back .*: 1\.spare of the dense network is in no file"):
        moeify.to_dense(tmp_path / "out", allow_pickle=True)
