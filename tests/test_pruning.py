"""Pruning of experts by use, on whole models; and folders of models that have changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moeify
from converted import call, distance, main_output
from measure.small_models import batches, converted_llama, logits_of
from moeify import api
from moeify.errors import InputError, OutputError, UsageError
from moeify.ir.moe_config import RouterConfig
from moeify.layers.budget import moe_layers
from moeify.measure.load import expert_load
from zoo import ZOO


def test_the_experts_that_most_tokens_choose_stay() -> None:
    model, data = converted_llama(router=RouterConfig("linear")), batches(3)
    loads = {load.path: load.loads for load in expert_load(model, data)}
    done = moeify.prune_experts(model, 3, data)
    assert [layer.path for layer in done] == list(loads)
    for layer in done:
        (gone,) = set(range(4)) - set(layer.kept)
        assert loads[layer.path][gone] == min(loads[layer.path])
        assert layer.kept == tuple(sorted(layer.kept))
        assert layer.pruned_choices == pytest.approx(loads[layer.path][gone] / 2)
        assert moe_layers(model)[layer.path].config.experts == 3
    assert torch.isfinite(logits_of(model, data[0])).all()


def test_tokens_that_chose_none_of_the_pruned_get_the_same_output() -> None:
    model, data = converted_llama(layers=1, router=RouterConfig("linear")), batches(1)
    layer, seen = moe_layers(model)["model.layers.0.mlp"], list[Any]()
    layer.register_forward_hook(lambda _, args, y: seen.append((layer.route(args[0]).chosen, y.flatten(0, 1))))
    logits_of(model, data[0])
    (done,) = moeify.prune_experts(model, 2, data)
    logits_of(model, data[0])
    chosen, before = seen[0]
    after = seen[-1][1]
    untouched = ~chosen[:, [e for e in range(4) if e not in done.kept]].any(1)
    assert 0 < int(untouched.sum()) < len(untouched)
    torch.testing.assert_close(after[untouched], before[untouched])
    assert not torch.allclose(after[~untouched], before[~untouched])


def test_of_equals_the_lower_number_stays_and_shared_experts_do() -> None:
    model = converted_llama(layers=1, top_k=None)
    (done,) = moeify.prune_experts(model, 2, batches(1))  # all on: all are used alike
    assert done.kept == (0, 1)
    assert done.pruned_choices == pytest.approx(0.5)
    config = moe_layers(model)[done.path].config
    assert (config.shared, config.sizes, config.dense_neurons) == (8, (10, 10), 48)
    assert done.active_fraction == pytest.approx((28 * 96 + 2 * 32) / (48 * 96))


def test_layers_may_be_chosen() -> None:
    model = converted_llama()
    (done,) = moeify.prune_experts(model, 2, batches(1), layers="*.1.*")
    assert done.path == "model.layers.1.mlp"
    assert [layer.config.experts for layer in moe_layers(model).values()] == [4, 2]


@pytest.mark.parametrize(
    ("keep", "options", "error", "message"),
    [
        (1, {}, UsageError, r"^model\.layers\.0\.mlp: keep is 1: choose from 2 \(its top_k\) to 4 \(its experts\)"),
        (5, {}, UsageError, r"^model\.layers\.0\.mlp: keep is 5: choose from 2"),
        (2, {"layers": "x"}, UsageError, r"^no MoE layer matches 'x'"),
        (2, {"batches": []}, InputError, "holds no batch"),
        (2, {"batches": [{"input_ids": torch.tensor([[99]])}]}, InputError, "token id 99, ids must be below 53"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(
    keep: int, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = converted_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        moeify.prune_experts(model, keep, **{"batches": batches(1), **options})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [layer.config.experts for layer in moe_layers(model).values()] == [4, 4]


def test_layers_that_do_not_choose_or_are_not_reached_are_refused() -> None:
    with pytest.raises(UsageError, match=r"mlp: has no router, so all of its experts are in use"):
        moeify.prune_experts(converted_llama(router=None, top_k=None), 2, batches(1))
    with pytest.raises(UsageError, match="Linear has no MoE layers: convert it first"):
        moeify.prune_experts(nn.Linear(2, 2), 2, [(torch.zeros(1, 2),)])
    model = nn.ModuleDict({"used": converted_llama(), "unused": converted_llama()})
    model.forward = model["used"].forward  # the other branch is not taken
    with pytest.raises(InputError, match=r"^unused\.model\.layers\.0\.mlp: no token of the batches reaches it"):
        moeify.prune_experts(model, 2, batches(1))


def stack() -> nn.Module:
    return ZOO["residual-stack"]().model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stack with a router that was not made of its keys."""
    zoo = ZOO["residual-stack"]()
    settings = {"insert-router.by": "random"}
    moeify.convert(zoo.model, tmp_path / "out", example=zoo.example, experts=6, top_k=2, settings=settings)
    return tmp_path / "out"


def test_a_pruned_model_is_saved_loaded_and_exported(folder: Path, tmp_path: Path) -> None:
    model, example = moeify.load(folder, factory=stack), ZOO["residual-stack"]().example
    moeify.prune_experts(model, 3, [example])
    with torch.no_grad():
        expected = main_output(call(model, example))
    assert moeify.resave(model, folder, tmp_path / "pruned") == tmp_path / "pruned"
    again = moeify.load(tmp_path / "pruned", factory=stack)
    with torch.no_grad():
        assert distance(main_output(call(again, example)), expected) < 1e-6
    for name in ("recipe.toml", "report.json"):
        assert (tmp_path / "pruned" / name).read_bytes() == (folder / name).read_bytes()
    rows = moeify.inspect(tmp_path / "pruned").rows
    assert [row["experts"] for row in rows] == [3, 3]
    report = api.export(tmp_path / "pruned", tmp_path / "m.onnx", factory=stack, example=example)
    assert len(report.moe_layers) == 2


def test_a_trained_model_is_saved_as_a_folder_again(folder: Path, tmp_path: Path) -> None:
    model, example = moeify.load(folder, factory=stack).train(), ZOO["residual-stack"]().example
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.autograd.backward(main_output(call(model, example)).square().sum())
    optimizer.step()
    moeify.resave(model, folder, tmp_path / "trained")
    again = moeify.load(tmp_path / "trained", factory=stack)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    moeify.to_dense(tmp_path / "trained", factory=stack)


def test_a_hugging_face_model_is_saved_as_a_folder_again(tmp_path: Path) -> None:
    zoo = ZOO["llama"]()
    zoo.model.save_pretrained(tmp_path / "llama")  # type: ignore[operator]  # a transformers model
    moeify.convert(tmp_path / "llama", tmp_path / "out", experts=4)
    model = moeify.load(tmp_path / "out")
    moeify.set_top_k(model, 3)
    moeify.resave(model, tmp_path / "out", tmp_path / "again")
    names = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")}
    assert {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*")} == names
    again = moeify.load(tmp_path / "again")
    assert {layer.top_k for layer in moe_layers(again).values()} == {3}
    with torch.no_grad():
        assert torch.equal(main_output(call(again, zoo.example)), main_output(call(model, zoo.example)))


def test_what_is_not_of_the_folder_is_not_saved_as_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out: is not what the model came from: its MoE layers are 0\.inner, 1\.inner"):
        moeify.resave(stack(), folder, tmp_path / "new")
    model = moeify.load(folder, factory=stack)
    with pytest.raises(OutputError, match="holds the model that is being read"):
        moeify.resave(model, folder, folder, force=True)
    (folder / "recipe.toml").write_text("")
    with pytest.raises(InputError, match=r"recipe\.toml is damaged"):
        moeify.resave(model, folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert json.loads((folder / "moeify.json").read_text())["format"] == 1
