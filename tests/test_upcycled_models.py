"""Upcycled models from end to end: saved, loaded, exported, trained, measured; and what is refused before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import moeify
from converted import call, distance, main_output
from moeify.errors import InputError, UsageError
from moeify.export.onnx.exporting import export_onnx
from moeify.frontend.other_checkpoints import OtherCheckpoints
from moeify.layers.budget import moe_layers
from moeify.measure.load import expert_load
from moeify.pipeline import memory
from moeify.pipeline.plan import Plan
from moeify.runtime.session import session
from moeify.training.align import align
from zoo import ZOO, Zoo, values

NOISE = {"kind": "noise", "std": 0.1}
RESIDUAL = {"kind": "residual"}
LORA = {"kind": "lora", "rank": 2, "alpha": 8}

#: caption, options of convert
CONSTRUCTIONS: dict[str, dict[str, Any]] = {
    "copies": {"recipe": "upcycle", "experts": 4},
    "copies, top-1": {"recipe": "upcycle", "experts": 4, "top_k": 1},
    "copies and a shared one": {"recipe": "upcycle", "experts": 4, "settings": {"upcycle-experts.shared": True}},
    "one layer alone": {"recipe": "upcycle", "experts": 4, "layers": "last-half"},
    "shards": {"recipe": "granular-upcycle", "experts": 3},
    "drop": {"recipe": "drop-upcycle", "experts": 4},
    "noise": {"recipe": "upcycle", "experts": 4, "settings": {"upcycle-experts.by": NOISE}},
    "residual": {"recipe": "residual-upcycle", "experts": 4},
    "lora beside a shared one": {
        "recipe": "lora-experts",
        "experts": 4,
        "settings": {"upcycle-experts.shared": True, "upcycle-experts.by": LORA},
    },
    "checkpoints": {
        "recipe": "upcycle",
        "settings": {"upcycle-experts.by": {"kind": "checkpoints", "paths": ["base.pt", "other.pt", "base.pt"]}},
    },
}
CONSTRUCTIONS |= {
    f"stochastic {by['kind']}, {mode}": {
        "recipe": "thor",
        "experts": 4,
        "settings": {"upcycle-experts.by": by, "insert-stochastic-experts.inference": mode},
    }
    for mode, by in (("fixed", NOISE), ("merged", NOISE), ("ensemble", NOISE), ("fixed", RESIDUAL), ("merged", LORA))
}
every_construction = pytest.mark.parametrize("options", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS)


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """base.pt and other.pt in the current folder, of the residual stack."""
    monkeypatch.chdir(tmp_path)
    model = ZOO["residual-stack"]().model
    torch.save(model.state_dict(), "base.pt")
    torch.save({name: 1.1 * value for name, value in model.state_dict().items()}, "other.pt")


def upcycled(options: dict[str, Any], output: Path | None = None) -> tuple[Zoo, moeify.api.Conversion]:
    zoo = ZOO["residual-stack"]()
    return zoo, moeify.convert(zoo.model, output, example=zoo.example, **options)


def skeleton() -> nn.Module:
    return ZOO["residual-stack"]().model


def example_of(zoo: Zoo) -> Tensor:
    """The one input of the stack, [rows, hidden]."""
    assert isinstance(zoo.example, tuple)
    x: Tensor = zoo.example[0]
    return x


def train(model: nn.Module, x: Tensor, steps: int = 5) -> list[float]:
    """Losses of a regression to fixed targets; every parameter that is not frozen gets a gradient at the first step, and only
    those are moved."""
    target = values(*model(x).shape, seed=9)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1), []
    for _ in range(steps):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all((p.grad is not None and bool(p.grad.isfinite().all())) == p.requires_grad for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in frozen.items())
    return losses


@pytest.mark.sampled
@every_construction
def test_converted_trained_saved_reloaded_and_exported_it_gives_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    zoo, _ = upcycled(options, tmp_path / "out")
    assert distance(call(moeify.load(tmp_path / "out", factory=skeleton), zoo.example).detach(), zoo.run()) < 1e-6
    model = moeify.load(tmp_path / "out", factory=skeleton).train()
    losses = train(model, values(64, *example_of(zoo).shape[1:], seed=3))
    assert losses[-1] < losses[0]
    model.eval()
    trained = call(model, zoo.example).detach()
    assert distance(trained, zoo.run()) > 1e-3
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == any(layer.config.composed for layer in moe_layers(model).values())
    assert {name.split(".inner.")[-1].partition(".")[0] for name in frozen} <= {"core", "output_bias"}
    export_onnx(model, zoo.example, tmp_path / "model.onnx")
    runtime = session(tmp_path / "model.onnx", threads=1)
    (found,) = runtime.run(None, {runtime.get_inputs()[0].name: example_of(zoo).numpy()})
    assert np.abs(found - trained.numpy()).max() < 1e-5 * float(trained.abs().max())


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_the_first_step_where_copies_differ(top_k: int) -> None:
    zoo, done = upcycled({"recipe": "drop-upcycle", "experts": 4, "top_k": top_k})
    done.model.train()(values(64, *example_of(zoo).shape[1:])).square().sum().backward()
    for name, parameter in done.model.named_parameters():
        assert parameter.grad is not None
        assert "router" not in name or float(parameter.grad.abs().max()) > 1e-6, name


def test_active_fraction_and_load_count_copies(tmp_path: Path) -> None:
    zoo, _ = upcycled({"recipe": "granular-upcycle", "experts": 3}, tmp_path / "out")
    loads = expert_load(moeify.load(tmp_path / "out", factory=skeleton), [zoo.example])
    for load, site in zip(loads, zoo.sites):
        hidden, neurons = site[3], site[4]
        assert load.dense_weights == neurons * 2 * hidden
        assert (load.experts, load.mean_on) == (12, 8)
        assert load.active_fraction == pytest.approx(2 + 12 * hidden / load.dense_weights)


@every_construction
def test_the_plan_counts_every_parameter_and_what_training_takes(options: dict[str, Any]) -> None:
    told: list[Plan] = []
    zoo = ZOO["residual-stack"]()
    dense = sum(p.numel() for p in zoo.model.parameters())
    done = moeify.convert(zoo.model, example=zoo.example, planned=told.append, **options)
    (plan,) = told
    assert plan.parameters_before == dense
    assert plan.parameters_after == sum(p.numel() for p in done.model.parameters())
    assert plan.weights == 4 * plan.parameters_after
    assert plan.trained_parameters == sum(p.numel() for p in done.model.parameters() if p.requires_grad)
    assert plan.optimizer_memory == 12 * plan.trained_parameters
    ffns = sum(layer.parameters_before for layer in plan.layers)
    used = done.report.active_fraction * ffns
    assert plan.active_parameters == pytest.approx(dense - ffns + used, abs=1)


@pytest.mark.parametrize("recipe", ["lora-experts", "residual-upcycle"])
def test_a_trained_model_on_frozen_cores_is_saved_and_loaded_again(recipe: str, tmp_path: Path) -> None:
    zoo, done = upcycled({"recipe": recipe, "experts": 4}, tmp_path / "out")
    model = moeify.load(tmp_path / "out", factory=skeleton).train()
    train(model, example_of(zoo))
    again = moeify.load(tmp_path / "out", factory=skeleton)
    again.load_state_dict(model.state_dict())
    model.eval()
    for k in (1, 4, None):
        moeify.set_top_k(model, k)
        moeify.set_top_k(again, k)
        assert torch.equal(call(again, zoo.example), call(model, zoo.example))
    assert all(a.requires_grad == b.requires_grad for a, b in zip(model.parameters(), again.parameters()))
    layer = moe_layers(done.model)["0.inner"]
    frozen = layer.config.frozen
    assert frozen == 48 * 16 * 2 + 48 + 16
    cost = {"lora-experts": (16 + 48) * 2 * 8, "residual-upcycle": 48 * 16 * 2}[recipe]
    assert done.report.layers[0].active_fraction == pytest.approx(1 + (2 * cost + 4 * 16) / (48 * 16 * 2))


@pytest.mark.parametrize("recipe", ["lora-experts", "residual-upcycle"])
def test_experts_on_frozen_cores_become_dense_again_are_pruned_and_written_again(recipe: str, tmp_path: Path) -> None:
    zoo, _ = upcycled({"recipe": recipe, "experts": 4, "settings": {"upcycle-experts.shared": True}}, tmp_path / "out")
    model = moeify.load(tmp_path / "out", factory=skeleton)
    moeify.to_dense(model, by="mean")
    assert distance(call(model, zoo.example).detach(), call(skeleton(), zoo.example).detach()) < 1e-6
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in skeleton().named_parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())
    model = moeify.load(tmp_path / "out", factory=skeleton)
    train(model.train(), example_of(zoo))
    moeify.prune_experts(model.eval(), 3, lambda: iter([zoo.example]))
    moeify.resave(model, tmp_path / "out", tmp_path / "again")
    again = moeify.load(tmp_path / "again", factory=skeleton)
    assert torch.equal(call(again, zoo.example), call(model, zoo.example))
    for name, parameter in again.named_parameters():
        assert parameter.requires_grad == model.get_parameter(name).requires_grad, name


def test_alignment_leaves_the_core_as_it_is() -> None:
    zoo, done = upcycled({"recipe": "lora-experts", "experts": 4, "settings": {"upcycle-experts.by": LORA}})
    dense = skeleton()
    with torch.no_grad():
        dense.get_parameter("0.inner.0.weight").mul_(1.5)
    before = {name: value.clone() for name, value in done.model.state_dict().items()}
    how = moeify.Alignment(minutes=None, steps=20, tokens=4, learning_rate=0.02)
    align(done.model, dense, [(values(6, *example_of(zoo).shape[1:], seed=seed),) for seed in range(5)], how)
    changed = {name.split(".")[2] for name, value in done.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"lora"}
    assert not done.model.get_parameter("0.inner.core.up").requires_grad


def test_lora_experts_in_bfloat16(tmp_path: Path) -> None:
    zoo = ZOO["residual-stack"]()
    model = moeify.convert(zoo.model.bfloat16(), example=zoo.example, recipe="lora-experts", experts=4).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    dense = ZOO["residual-stack"]().model.bfloat16()
    x = example_of(zoo).bfloat16()
    assert distance(model(x).detach(), dense(x).detach()) < 0.02
    model.train()(x).float().square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_evaluate_of_a_folder_counts_copies(tmp_path: Path) -> None:
    zoo, done = upcycled({"recipe": "upcycle", "experts": 4}, tmp_path / "out")
    torch.save(example_of(zoo), tmp_path / "data.pt")
    found = moeify.evaluate(
        tmp_path / "out", lambda: iter([zoo.example] * 3), dense=skeleton(), nulls=True, factory=skeleton, example=zoo.example
    )
    assert found.active_fraction is not None
    assert found.active_fraction == pytest.approx(done.report.active_fraction)
    assert found.active_fraction > 2
    divergence = found.score("converted")
    assert divergence is not None
    assert divergence.divergence is not None
    assert divergence.divergence.relative_error < 1e-5
    whole = found.score("all-on")
    assert whole is not None
    assert whole.active_fraction == pytest.approx(4 + (found.active_fraction - 2))
    assert any("the experts are copies of the FFN" in note for note in found.notes)


@pytest.mark.parametrize("mode", ["random", "fixed", "merged", "ensemble"])
def test_evaluate_measures_stochastic_experts(mode: str, tmp_path: Path) -> None:
    settings = {"upcycle-experts.by": NOISE, "insert-stochastic-experts.inference": mode}
    zoo, done = upcycled({"recipe": "thor", "experts": 4, "settings": settings}, tmp_path / "out")
    found = moeify.evaluate(
        tmp_path / "out", lambda: iter([zoo.example] * 20), dense=skeleton(), nulls=True, factory=skeleton, example=zoo.example
    )
    assert found.active_fraction == pytest.approx(1 if mode in ("random", "fixed") else 4)
    assert found.active_fraction == pytest.approx(done.report.active_fraction)
    assert [load.mean_on for load in found.layers] == [1 if mode in ("random", "fixed") else 4] * 2
    divergence = found.scores[1].divergence
    assert divergence is not None
    assert 1e-4 < divergence.relative_error < 0.5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("more chosen than there are", {"recipe": "upcycle", "experts": 4, "top_k": 5}, "top_k is 5 but there are 4 experts"),
    (
        "more shards chosen than there are",
        {"recipe": "granular-upcycle", "experts": 2, "top_k": 9},
        "top_k is 9 but there are 8",
    ),
    ("more chosen of a split", {"recipe": "random", "experts": 4, "top_k": 5}, "top_k is 5 but there are 4 experts"),
    (
        "more drawn than there are",
        {"recipe": "thor", "top_k": 3},
        "experts.top_k is 3 but there are 2 experts",
    ),
    ("copies without end", {"recipe": "upcycle", "experts": 10**9}, "makes 1000000000 experts a layer"),
    (
        "a checkpoint that is not there",
        {"recipe": "upcycle", "settings": {"upcycle-experts.by": {"kind": "checkpoints", "paths": ["base.pt", "no.pt"]}}},
        "no.pt: no such file or folder",
    ),
]


@pytest.mark.parametrize(("options", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_work_is_refused_before_a_model_is_read(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, InputError)) as error:
        moeify.convert(tmp_path / "not even there", tmp_path / "out", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_two_passes_that_make_experts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.toml").write_text(
        'name = "twice"\n[[pass]]\nname = "find-feed-forward"\n[[pass]]\nname = "upcycle-experts"\n'
        '[[pass]]\nname = "upcycle-experts"\ncopies = 2\n'
    )
    with pytest.raises(UsageError, match="upcycle-experts and upcycle-experts each make experts of the same FFN"):
        moeify.convert(tmp_path / "not even there", tmp_path / "out", recipe=tmp_path / "twice.toml")


def test_a_converted_folder_is_not_upcycled(tmp_path: Path) -> None:
    upcycled({"recipe": "upcycle", "experts": 2}, tmp_path / "out")
    with pytest.raises(InputError, match="out: is a converted model already"):
        moeify.convert(tmp_path / "out", tmp_path / "again", recipe="upcycle", factory=skeleton)


@pytest.mark.slow
def test_a_converted_module_is_not_upcycled() -> None:
    zoo, done = upcycled({"recipe": "upcycle", "experts": 2})
    with pytest.raises(InputError, match="the model is converted already: its feed-forward networks are MoE layers"):
        moeify.convert(done.model, example=zoo.example, recipe="upcycle")


def test_what_is_built_with_values_alone_is_judged_once_it_is_loaded() -> None:
    one, example = skeleton(), ZOO["residual-stack"]().example
    before = {name: value.clone() for name, value in one.state_dict().items()}

    def reading() -> nn.Module:
        assert torch.ones(1).item() == 1
        return skeleton()

    for factory in (lambda: one, reading):
        with pytest.raises(UsageError, match=r"shards is 5: the 48 neurons of 0\.inner do not divide by it; choose 4 or 6"):
            moeify.convert(
                "base.pt", factory=factory, example=example, recipe="upcycle", settings={"upcycle-experts.shards": 5}
            )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_copies_that_exceed_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 100_000)
    with pytest.raises(UsageError, match=r"^the converted weights take .* GiB and this machine has .* choose fewer experts"):
        upcycled({"recipe": "upcycle", "experts": 64}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    upcycled({"recipe": "upcycle", "experts": 2}, tmp_path / "out")


def test_the_machine_knows_its_memory() -> None:
    found = memory.machine_memory()
    assert found is not None
    assert found > 2**28


#: caption, what becomes of the state_dict, what the message says
CHECKPOINTS: list[tuple[str, Callable[[dict[str, Tensor]], object], str]] = [
    ("another shape", lambda s: s.update({"0.inner.0.weight": torch.zeros(3, 3)}), "of another shape: 0.inner.0.weight"),
    ("a name less", lambda s: s.pop("2.bias"), "missing: 2.bias"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHECKPOINTS], ids=[c[0] for c in CHECKPOINTS])
def test_a_checkpoint_of_another_model_is_refused(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    model = skeleton()
    state = dict(model.state_dict())
    change(state)
    torch.save(state, "strange.pt")
    with pytest.raises(InputError, match=r"^strange\.pt: is no checkpoint of the same Sequential") as error:
        OtherCheckpoints(model).open("strange.pt")
    assert message in str(error.value)


def test_values_that_are_not_finite_are_found_where_they_are_read() -> None:
    model = skeleton()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["0.inner.0.weight"][0, 0] = torch.nan
    torch.save(state, "strange.pt")
    read = OtherCheckpoints(model).open("strange.pt")
    assert torch.equal(read("2.bias"), state["2.bias"])
    with pytest.raises(InputError, match=r"strange\.pt: the tensor 0\.inner\.0\.weight holds NaN"):
        read("0.inner.0.weight")


@pytest.mark.slow
def test_hugging_face_folders_are_checkpoints(tmp_path: Path) -> None:
    base, other = ZOO["llama"](), ZOO["llama"]()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.01)
    for zoo, name in ((base, "base"), (other, "other")):
        zoo.model.save_pretrained(tmp_path / name)  # type: ignore[operator]  # a transformers model
    by = {"kind": "checkpoints", "paths": ["base", "other"]}
    done = moeify.convert(tmp_path / "base", recipe="upcycle", settings={"upcycle-experts.by": by})
    layer = moe_layers(done.model)["model.layers.1.mlp"]
    gate = base.model.get_parameter("model.layers.1.mlp.gate_proj.weight")
    torch.testing.assert_close(layer.gate, torch.cat((gate, 1.01 * gate)))
    assert main_output(call(done.model, base.example)).isfinite().all()


@pytest.mark.slow
def test_hugging_face_folders_of_another_width_are_refused_by_their_headers(tmp_path: Path) -> None:
    ZOO["llama"]().model.save_pretrained(tmp_path / "base")  # type: ignore[operator]  # a transformers model
    ZOO["qwen2"]().model.save_pretrained(tmp_path / "other")  # type: ignore[operator]  # a transformers model
    state = load_file(tmp_path / "other" / "model.safetensors")
    save_file({name: torch.cat((value, value)) for name, value in state.items()}, tmp_path / "other" / "model.safetensors")
    by = {"kind": "checkpoints", "paths": ["base", "other"]}
    with pytest.raises(
        InputError, match=r"^other: is no checkpoint of the same model as .*base: .* is \[.*\] here and \[.*\] there"
    ):
        moeify.convert(tmp_path / "base", recipe="upcycle", settings={"upcycle-experts.by": by})
